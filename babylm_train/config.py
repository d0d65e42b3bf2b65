"""From a command line to a composed and checked configuration; what of one is named, saved and compared."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from babylm_train.errors import InputError, nearest, one_line

CONF = next(folder / "conf" for folder in Path(__file__).parents if (folder / "conf").is_dir())  # packaged, or beside
OUTPUTS = Path("multirun_outputs")

# What a `_target_` may name, by group, beside the callables of ours that conf/ names there.
ALLOWED = {
    "optimizer": r"torch\.optim\.[A-Z]\w*",
    "model": r"transformers\.(?!Auto)[A-Z]\w*Config",
    "hydra": r"hydra\._internal\.core_plugins\.basic_(launcher|sweeper)\.Basic\w+"
    r"|hydra_plugins\.[\w.]+(Launcher|Sweeper)|optuna\.samplers\.[A-Z]\w*",
}
EXTRA = "BABYLM_ALLOW_TARGETS"  # packages of a user's own classes, comma-separated
# What a file from outside conf/ may set of `hydra`: that it is a sweep, of what, and how much a job gets.
FOREIGN = r"mode|sweeper\.(params\.(?![+~]*hydra\b).*|n_trials|direction|sampler\.seed)"
RESOURCES = r"launcher\.(n_jobs|timeout_min|(cpus|gpus)_per_(task|node)|nodes|mem_gb|array_parallelism|max_num_timeout)"
COMPOSED = ("overrides.", "runtime.", "job.override_dirname", "job.config_name")  # what Hydra itself writes there
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError, AttributeError)
# Keys that do not change what a run computes.
FREE = ("study", "resume", "logger", "job_timeout", "zip", "distributed")
FREE_LEAVES = ("data.cache_dir", "trainer.save_every", "trainer.keep_last")

OLDER = {  # here: keys of other tools, by their last part
    "curriculum/strategy=combined curriculum.strategy.morphological=0.5": "morphological_weight",
    "curriculum/strategy=combined curriculum.strategy.length=0.3": "length_weight frequency_weight",
    "curriculum/strategy=dynamic curriculum/strategy@curriculum.strategy.base=length": "base_strategy",
    "group=option, such as optimizer=adamw": "type name",
    "precision=bf16 or precision=fp16": "use_amp amp fp16 bf16",
    "trainer.epochs=10": "epochs max_epochs num_epochs num_train_epochs",
    "trainer.gradient_accumulation_steps=2": "accumulate_grad_batches gradient_accumulation",
    "trainer.max_grad_norm=1.0": "gradient_clip_val grad_clip",
    "trainer.eval_every=100, trainer.save_every=100, trainer.log_every=10": "eval_steps save_steps logging_steps",
    "optimizer.lr=3e-4": "learning_rate max_lr",
    "scheduler=cosine_with_min_lr": "min_lr min_lr_rate",
    "data.max_length=256": "block_size context_length max_seq_length seq_len max_position_embeddings",
    "data=text data.train=FILE": "train_file dataset dataset_path",
    "model.config.n_layer, n_embd, n_head, or as the model has them": "n_layer num_layers d_model hidden_size n_heads",
    "logger=none": "wandb use_wandb report_to",
    "resume=FOLDER": "resume_from_checkpoint ckpt_path",
    "seed=1": "seed_everything",
    "hydra.run.dir=FOLDER": "output_dir out_dir",
}


@contextlib.contextmanager
def open_conf(name: str = "config", folder: str | None = None) -> Iterator[None]:
    """Meanwhile Hydra composes from conf/, and from a `folder` of the user's own, whatever signs its name has."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"--config-dir {folder}: no such folder")
    primary = Path(folder or CONF) / f"{name.removesuffix('.yaml')}.yaml"
    try:  # Hydra imports the packages that a primary configuration's searchpath names, before anyone can look
        found = OmegaConf.select(OmegaConf.load(primary), "hydra.searchpath") if primary.is_file() else None
    except COMPOSING as error:
        raise InputError(f"{primary}: {one_line(error)[:300]}") from error
    if found is not None:
        raise InputError(f"{primary}: hydra.searchpath has to be on the command line")
    version.setbase("1.3")
    search_path, before = create_config_search_path(str(CONF)), GlobalHydra.instance().hydra
    if folder is not None:
        search_path.prepend("typed", f"file://{os.path.abspath(folder)}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("babylm_train", search_path)
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def read_overrides(arguments: Sequence[str]) -> list[Override]:
    """What was typed, as Hydra's grammar reads it; text that it stumbles over is taken as if it stood in quotes."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # for glob(*)
    found = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        key, equals, value = argument.partition("=")
        literal = re.search(r"^\s|\s$|,", value) and os.path.exists(value)
        value = _quote(value) if literal else re.sub(r"(?<![^,])None(?![^,])", "null", value)
        if os.path.isdir(CONF / key):  # no group has such an option, and Hydra has no words for it
            value = re.sub(r"(?i)(?<![^,])(\d+|true|false|null)(?![^,])", r"'\1'", value)
        value = re.sub(r"^choice\((.*)\)$", r"\1", value)  # the same sweep; Hydra loses the quotes inside a choice
        words = re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][,{}:'"]+""", _quote_word, value)
        readings = (value, words, _quote(value)) if equals else (value,) if argument.startswith("~") else ()
        for text in readings:
            with contextlib.suppress(HydraException):
                found += parser.parse_overrides([f"{key}{equals}{text}"])
                break
        else:
            joined = f", and without a space: {before}{argument}" if before.endswith(",") else ""
            raise InputError(f"{argument}: keys are given as key=value{joined}")
    return found


def _quote(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _quote_word(found: re.Match[str]) -> str:
    word = found[0].strip()
    return word if re.fullmatch(r"['\"].*|[\w./:+~-]*", word, re.ASCII | re.DOTALL) else _quote(word)


def compose_each(name: str, overrides: list[Override], folder: str | None) -> list[DictConfig]:
    """The configuration, or the first job of a sweep and one more for each further value of a swept key; checked."""
    first = _compose(name, spread(overrides)[0])
    swept = dict(first.hydra.sweeper.get("params") or {})
    typed = {override.key_or_group for override in overrides}
    if twice := typed & swept.keys():
        others = ",".join(f'{key}:"{values}"' for key, values in swept.items())
        what = f"change its lists instead: 'hydra.sweeper.params={{{others}}}'"
        raise InputError(f"{min(twice)} is swept by the experiment: {what}")
    jobs = spread(overrides + read_overrides([f"{key}={value}" for key, value in swept.items()]))
    configs = [_compose(name, job) for job in jobs] if len(jobs) > 1 or swept else [first]
    for config in configs:
        try:
            check_targets(plain(config) | {"hydra": OmegaConf.to_container(config.hydra, resolve=False)})
        except MissingMandatoryValue as error:
            raise InputError(f"{error.full_key} has to be given") from error
        except OmegaConfBaseException as error:
            raise InputError(one_line(error)[:300]) from error
        if not config.hydra.run.dir:
            raise InputError("hydra.run.dir= is empty: give a folder, or leave it out")
        if config.hydra.job.chdir:
            raise InputError("hydra.job.chdir=true: paths are those of the folder you start in; leave it out")
    if folder is not None or "hydra.searchpath" in typed:
        _check_foreign(configs, overrides, typed)
    return configs


def _compose(name: str, overrides: list[str]) -> DictConfig:
    try:
        config = compose(name, overrides, return_hydra_config=True)
    except COMPOSING as error:
        raise InputError(_explain(error, name, overrides)) from None
    given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    if sorted(given["task"] + given["hydra"]) != sorted(overrides):
        raise InputError("hydra.overrides: comes from the command line, not from a file")
    return config


def _check_foreign(configs: list[DictConfig], overrides: list[Override], typed: set[str]) -> None:
    """Holds `hydra` against what it is without the files of other people, who may set what FOREIGN lists only."""
    ours = []
    for o in overrides:
        is_option = o.package is None and (CONF / o.key_or_group / f"{o.value()}.yaml").is_file()
        if is_option or (o.is_hydra_override() and o.key_or_group != "hydra.searchpath"):
            ours.append(o)
    with open_conf():
        theirs = _leaves_of(_compose("config", spread(ours)[0]).hydra)
    for config in configs:
        mine = _leaves_of(config.hydra)
        for key in sorted(mine.keys() | theirs.keys()):
            same = mine.get(key) == theirs.get(key) or key.startswith(COMPOSED) or f"hydra.{key}" in typed
            number = re.fullmatch(RESOURCES, key) and isinstance(mine.get(key), int | float)
            if not same and not number and not re.fullmatch(FOREIGN, key):
                raise InputError(f"hydra.{key} comes from the command line or conf/, not from a file of others")
        cache = str(plain(config)["data"].get("cache_dir", OUTPUTS))
        if "data.cache_dir" not in typed and not Path(cache).resolve().is_relative_to(OUTPUTS.resolve()):
            raise InputError(f"data.cache_dir={cache} is outside {OUTPUTS}: it has to be on the command line")


def check_command_line(arguments: Sequence[str], name: str = "config", folder: str | None = None) -> list[DictConfig]:
    """What a command line composes, see compose_each."""
    with open_conf(name, folder):
        return compose_each(name, read_overrides(arguments), folder)


def compose_one(arguments: Sequence[str] = (), name: str = "config", folder: str | None = None) -> DictConfig:
    """The configuration of one run, checked. Raises InputError: as for a run, or it is a sweep."""
    first, *others = check_command_line(arguments, name, folder)
    if others:
        raise InputError(f"{' '.join(arguments)[:200]}: this takes one configuration, not a sweep")
    return first


def spread(overrides: list[Override]) -> list[list[str]]:
    """The first job of a sweep, then one variation a further value of each swept key."""
    values: list[list[str]] = []
    for override in overrides:
        if override.is_sweep_override() and override.is_discrete_sweep():
            key = str(override.input_line).partition("=")[0]
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            if not values[-1]:
                raise InputError(f"{override.input_line}: a sweep over nothing")
        elif not override.is_sweep_override():
            values.append([str(override.input_line)])
    first = [options[0] for options in values]
    return [first, *([*first[:i], value, *first[i + 1 :]] for i, v in enumerate(values) for value in v[1:])]


def _explain(error: Exception, name: str, overrides: list[str]) -> str:
    if isinstance(error, MissingConfigException) and error.options:
        missing = str(error.missing_cfg_file)
        typed = next((o for o in overrides if o.replace("=", "/", 1) == missing), "=".join(missing.rsplit("/", 1)))
        hint = "; files are data=text data.train=FILE" * typed.startswith("data=")
        near = nearest(typed.partition("=")[2], error.options)
        return f"{typed}: no such option{near} ({', '.join(error.options)}){hint}"
    if found := re.match(r"Could not override '(.*)'", str(error)):
        parent, _, key = found[1].rpartition(".")
        files = sorted((CONF / parent.replace(".", "/")).glob("*.yaml"))
        if having := [p.stem for p in files if re.search(rf"^{re.escape(key)}:", p.read_text(encoding="utf8"), re.M)]:
            return f"{found[1]}: only {parent.replace('.', '/')}={' or '.join(having)} has it"
        groups = [o for o in overrides if "." not in o.partition("=")[0] and not o.startswith(found[1])]
        made = compose(name, groups, return_hydra_config=True)
        leaves = {key for key in _leaves_of(made) if not key.startswith("hydra.") and not key.endswith("_target_")}
        known = leaves | {str(group) for group in made.hydra.runtime.choices} - {found[1]}
        return f"{found[1]}: no such key or group with these options{suggest(found[1], sorted(known))}"
    chosen = " ".join(o for o in overrides if "." not in o.partition("=")[0])  # what of it names files
    return f"{chosen or name}: {one_line(error)[:300] or type(error).__name__}"


def suggest(key: str, known: Iterable[str]) -> str:
    """What to type for a key that does not exist, as the end of a message."""
    other = next((here for here, theirs in OLDER.items() if key.rpartition(".")[2] in theirs.split()), None)
    return f"; here it is {other}" if other else nearest(key, known)


def check_targets(node: Any, at: str = "") -> None:
    """Raises InputError for a `_target_` in `node`, however deep, that is not on the list; imports nothing."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        here = f"{at}.{key}" if at else str(key)
        if key == "_target_" and not _is_allowed(value, at.partition(".")[0]):
            raise InputError(f"{here}={value} is not allowed; packages of your own are listed in {EXTRA}=...")
        check_targets(value, here)


def _is_allowed(target: Any, group: str) -> bool:
    extra = tuple(f"{name.strip().rstrip('.')}." for name in os.environ.get(EXTRA, "").split(",") if name.strip())
    name, pattern = str(target), ALLOWED.get(group, r"\b\B")
    return name in _named_in_conf(group) or name.startswith(extra) or re.fullmatch(pattern, name) is not None


@functools.cache
def _named_in_conf(group: str) -> frozenset[str]:
    texts = (path.read_text(encoding="utf8") for path in (CONF / group).rglob("*.yaml")) if group else ()
    return frozenset(name for text in texts for name in re.findall(r"^ *_target_: *([\w.]+)", text, re.MULTILINE))


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, resolved, without what is the sweep's."""
    values: Any = OmegaConf.to_container(_of_a_run(config), resolve=True, throw_on_missing=True)
    return {str(key): value for key, value in values.items()}


def _of_a_run(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "pruner")])


def public(config: DictConfig) -> dict[str, Any]:
    """As `plain`, but what comes from the environment stays `${oc.env:NAME}`: what may be saved or sent."""
    resolve = OmegaConf.register_new_resolver
    try:
        resolve("oc.env", lambda name, *_: f"${{oc.env:{name}}}", replace=True)
        resolve("oc.decode", str, replace=True)
        return plain(config)
    finally:
        resolve("oc.env", oc.env, replace=True)
        resolve("oc.decode", oc.decode, replace=True)


def saved_config(config: DictConfig) -> str:
    """The configuration as YAML; interpolations stay unresolved, so no environment value is written."""
    return OmegaConf.to_yaml(_of_a_run(config))


def essential(values: dict[str, Any]) -> dict[str, Any]:
    """What determines the result: the configuration as `key.key: value`, without the keys that change nothing."""
    return {key: v for key, v in _leaves(values) if key.partition(".")[0] not in FREE and key not in FREE_LEAVES}


def config_hash(config: DictConfig) -> str:
    """sha256 of the essential configuration, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(essential(plain(config)), sort_keys=True, default=str).encode()).hexdigest()


def run_name(config: DictConfig) -> str:
    """Directory name of a run: its overrides in ASCII, and a hash of its configuration, by which it is found again."""
    digest = config_hash(config)[:8]
    for there in sorted(Path(config.hydra.sweep.dir).glob(f"*-{digest}")):
        return there.name
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # a variable's value is no name
    words = []
    for key, _, value in (str(override).lstrip("+~").partition("=") for override in task):
        if key not in ("study", "resume"):
            word = re.split(r"[./]", key)[-1] + (f"-{value[-32:]}" if value else "")
            words.append(re.sub(r"[^A-Za-z0-9.~-]+", "_", word).strip("_"))
    while len("_".join(words)) > 120:  # the longest are paths and the like; the hash stands for them too
        words.remove(max(words, key=len))
    return f"{'_'.join(words).strip('-_.') or 'default'}-{digest}"


def _leaves_of(config: DictConfig) -> dict[str, Any]:
    return dict(_leaves(OmegaConf.to_container(config, resolve=False)))


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, node


warnings.filterwarnings("ignore", r"register_new_resolver\(\) is deprecated")  # in 2.4, which is not required yet
OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(_root_), replace=True)
