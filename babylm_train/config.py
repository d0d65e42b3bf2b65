"""From a command line to a composed and checked configuration; what of one is named, saved and compared."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from babylm_train.errors import InputError, nearest
from babylm_train.files import read

PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"
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

COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError)  # ValueError: `group=3`

FREE = ("study", "resume", "logger", "job_timeout", "zip")  # top-level keys that do not change what a run computes
FREE_LEAVES = ("data.cache_dir", "trainer.save_every", "trainer.keep_last")

OLDER = {  # keys of other tools, by their last part
    "morphological_weight": "curriculum/strategy=combined curriculum.strategy.morphological=0.5",
    "length_weight": "curriculum/strategy=combined curriculum.strategy.length=0.3",
    "base_strategy": "curriculum/strategy=dynamic curriculum/strategy@curriculum.strategy.base=length",
    "type": "group=option, such as optimizer=adamw",
    "name": "group=option, such as scheduler=cosine",
    "use_amp": "precision=bf16",
    "fp16": "precision=fp16",
    "bf16": "precision=bf16",
    "num_epochs": "trainer.epochs=10",
    "num_train_epochs": "trainer.epochs=10",
    "learning_rate": "optimizer.lr=3e-4",
    "output_dir": "hydra.run.dir=FOLDER",
}


class ConfigFolder(SearchPathPlugin):
    """Hydra looks for fragments in the folder of --config-dir as well, whatever signs its name has."""

    path: ClassVar[str | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra."""
        if self.path is not None:
            anchor = SearchPathQuery(provider="schema")
            search_path.prepend(provider="command-line", path=f"file://{os.path.abspath(self.path)}", anchor=anchor)


class Composer:
    """A context in which configurations are composed.

    Args:
        name: of the primary configuration. folder: with fragments of the user's own, beside conf/; None: there is none.
    """

    def __init__(self, name: str = "config", folder: str | None = None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"--config-dir {folder}: no such folder")
        self.name, self.folder = name.removesuffix(".yaml"), folder

    def __enter__(self) -> Composer:
        self._refuse_search_path()
        register_resolvers()
        Plugins.instance().register(ConfigFolder)
        self.before = GlobalHydra.instance().hydra
        self._open(self.folder)
        return self

    def __exit__(self, *_: Any) -> None:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = self.before

    def _refuse_search_path(self) -> None:
        """Hydra imports the packages that a primary configuration's hydra.searchpath names, before anyone can look."""
        primary = Path(self.folder or CONF) / f"{self.name}.yaml"
        try:
            found = OmegaConf.select(OmegaConf.load(primary), "hydra.searchpath") if primary.is_file() else None
        except COMPOSING as error:
            raise InputError(f"{primary}: {first_line(error)}") from error
        if found is not None:
            raise InputError(f"{primary}: hydra.searchpath has to be on the command line")

    def _open(self, folder: str | None) -> None:
        GlobalHydra.instance().clear()
        ConfigFolder.path = folder
        initialize_config_dir(str(CONF), job_name="babylm_train", version_base="1.3")
        ConfigFolder.path = None

    def read_overrides(self, arguments: Sequence[str]) -> list[Override]:
        """What was typed, as Hydra's grammar reads it; text that it stumbles over is taken as if it stood in quotes.

        Raises:
            InputError: a word that is no override.
        """
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # for glob(*)
        found = []
        for number, argument in enumerate(arguments):
            if "=" not in argument and not argument.startswith("~"):
                before = arguments[number - 1] if number else ""
                joined = f", and without a space: {before}{argument}" if before.endswith(",") else ""
                raise InputError(f"{argument}: keys are given as key=value{joined}")
            readings = _readings(argument)
            for text in readings:
                try:
                    found += parser.parse_overrides([text])
                    break
                except HydraException:
                    if text == readings[-1]:
                        raise InputError(f"{argument}: cannot be read as key=value") from None
        return found

    def compose_each(self, overrides: list[Override]) -> list[DictConfig]:
        """The configuration, or the first job of a sweep and one more for each further value of a swept key; checked.

        Raises:
            InputError: naming the key, with the nearest existing one where there is one.
        """
        first = self._compose(spread(overrides)[0])
        swept = dict(first.hydra.sweeper.get("params") or {})
        typed = {override.key_or_group for override in overrides}
        if twice := typed & swept.keys():
            raise InputError(f"{min(twice)} is swept by the experiment: change hydra.sweeper.params instead")
        jobs = spread(overrides + self.read_overrides([f"{key}={value}" for key, value in swept.items()]))
        configs = [first, *map(self._compose, jobs[1:])] if not swept else [*map(self._compose, jobs)]
        for config in configs:
            check(config)
        if self.folder is not None or "hydra.searchpath" in typed:
            self._check_foreign(configs, overrides, typed)
        return configs

    def _compose(self, overrides: list[str]) -> DictConfig:
        try:
            config = compose(self.name, overrides, return_hydra_config=True)
        except COMPOSING:
            raise InputError(_explain(self.name, overrides)) from None
        given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        if sorted(given["task"] + given["hydra"]) != sorted(overrides):
            raise InputError("hydra.overrides: comes from the command line, not from a file")
        return config

    def _check_foreign(self, configs: list[DictConfig], overrides: list[Override], typed: set[str]) -> None:
        """Holds `hydra` against what it is without the files of other people, who may set what FOREIGN lists only."""
        ours = [o for o in overrides if o.key_or_group != "hydra.searchpath" and (o.is_hydra_override() or _is_ours(o))]
        self._open(None)
        theirs = _leaves_of(Composer()._compose(spread(ours)[0]).hydra)
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
        self._open(self.folder)


def register_resolvers() -> None:
    """Makes `${run_name:}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(_root_), replace=True)


def check_command_line(
    arguments: Sequence[str], config_name: str = "config", config_dir: str | None = None
) -> list[DictConfig]:
    """What a command line composes, see Composer.compose_each."""
    with Composer(config_name, config_dir) as composer:
        return composer.compose_each(composer.read_overrides(arguments))


def _readings(argument: str) -> list[str]:
    """`argument`, then with more and more of its value in quotes: words with other letters, parts of a sweep, all."""
    key, equals, value = argument.partition("=")
    value = re.sub(r"^choice\((.*)\)$", r"\1", value)  # the same sweep; Hydra loses the quotes inside a choice

    def quote(text: str) -> str:
        return str(QuotedString(text, Quote.single).with_quotes())

    def quote_word(found: re.Match[str]) -> str:
        word = found[0].strip()
        return word if word.isascii() or word[0] in "'\"" else quote(word)

    words = re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][,(){}:'"]+""", quote_word, value)
    inside, brackets = (value[1:-1], "[{}]") if re.fullmatch(r"\[.*\]", value) else (value, "{}")
    parts = brackets.format(",".join(quote(part) for part in inside.split(",")))
    return [f"{key}={text}" for text in (value, words, parts, quote(value))] if equals else [argument]


def spread(overrides: list[Override]) -> list[list[str]]:
    """The first job of a sweep, then one variation a further value of each swept key."""
    values: list[list[str]] = []
    for override in overrides:
        if override.is_sweep_override() and override.is_discrete_sweep():
            key = str(override.input_line).partition("=")[0]
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            values.append([str(override.input_line)])
    first = [options[0] for options in values]
    return [first, *([*first[:i], value, *first[i + 1 :]] for i, v in enumerate(values) for value in v[1:])]


def _is_ours(override: Override) -> bool:
    """Is it the choice of an option that conf/ has?"""
    group = override.key_or_group
    return override.package is None and (CONF / group / f"{override.value()}.yaml").is_file()


def _explain(name: str, overrides: Sequence[str]) -> str:
    """One line on the first of `overrides` with which nothing can be composed."""
    fine: list[str] = []
    try:
        compose(name)
    except COMPOSING as error:
        return f"--config-name {name}: {first_line(error)}"
    for override in sorted(overrides, key=lambda o: "." in o.partition("=")[0]):  # groups first: they bring the keys
        key = override.partition("=")[0].lstrip("+~").partition("@")[0]
        try:
            compose(name, [*fine, override])
            fine.append(override)
        except MissingConfigException as error:
            known = ", ".join(error.options or ())
            return f"{override}: no such option{nearest(override.partition('=')[2], error.options or ())} ({known})"
        except COMPOSING as error:
            made = compose(name, fine, return_hydra_config=True)
            names = [*_leaves_of(made), *map(str, made.hydra.runtime.choices)]
            if override[0] in "+~" or any(there == key or there.startswith(f"{key}.") for there in names):
                return f"{key}: {first_line(error)}"
            return f"{key}: no such key or group with these options{suggest(key, names)}"
    raise AssertionError(fine)


def suggest(key: str, known: Iterable[str]) -> str:
    """What to type for a key that does not exist, as the end of a message."""
    other = OLDER.get(key.rpartition(".")[2])
    return f"; here it is {other}" if other else nearest(key, known)


def first_line(error: BaseException) -> str:
    """What an error of a library's says first, with the line below it, which often names the place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def check(config: DictConfig) -> None:
    """Raises InputError where a value cannot be resolved, or a `_target_` is not allowed."""
    try:
        check_targets(plain(config))
        check_targets({"hydra": OmegaConf.to_container(config.hydra, resolve=False)})
    except OmegaConfBaseException as error:
        raise InputError(first_line(error)) from error
    if config.hydra.job.chdir:
        raise InputError("hydra.job.chdir=true: paths are those of the folder you start in; leave it out")


def check_targets(node: Any, at: str = "") -> None:
    """Refuses every `_target_` in `node`, however deep, that is not on the list; before anything is imported.

    Raises:
        InputError: naming the key and the target.
    """
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        here = f"{at}.{key}" if at else str(key)
        if key == "_target_" and not is_allowed(value, at.partition(".")[0]):
            raise InputError(f"{here}={value} is not allowed; packages of your own are listed in {EXTRA}=...")
        check_targets(value, here)


def is_allowed(target: Any, group: str) -> bool:
    """May a `_target_` below `group` name it?"""
    packages = [package.strip().rstrip(".") for package in os.environ.get(EXTRA, "").split(",")]
    return isinstance(target, str) and (
        target in _named_in_conf(group)
        or re.fullmatch(ALLOWED.get(group, r"\b\B"), target) is not None
        or any(target.startswith(f"{package}.") for package in packages if package)
    )


@functools.cache
def _named_in_conf(group: str) -> frozenset[str]:
    texts = (path.read_text(encoding="utf8") for path in (CONF / group).rglob("*.yaml")) if group else ()
    return frozenset(name for text in texts for name in re.findall(r"^ *_target_: *([\w.]+)", text, re.MULTILINE))


def find_target(target: str, key: str) -> Any:
    """The class or function that an allowed `_target_` names, only if it was defined under that name.

    Raises:
        InputError: there is no such object, or the name is an alias of something else.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{key}._target_={target} does not exist: {error}") from error
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or not (home == module or home.startswith(f"{module}.")):
        raise InputError(f"{key}._target_={target} is not allowed: it is {home}.{getattr(found, '__name__', found)}")
    return found


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, resolved, without Hydra's own node."""
    values: Any = OmegaConf.to_container(_without_hydra(config), resolve=True)
    return {str(key): value for key, value in values.items()}


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


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
    return OmegaConf.to_yaml(_without_hydra(config))


def load_config(path: Path) -> DictConfig:
    """What saved_config wrote. Raises InputError: missing, damaged, or no configuration; names the file."""
    try:
        config = DictConfig(read(path, dict[str, Any]))
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{path} is no configuration of a run: {first_line(error)}") from error
    return config


def essential(values: dict[str, Any]) -> dict[str, Any]:
    """What determines the result: the configuration as `key.key: value`, without the keys that change nothing."""
    return {key: v for key, v in _leaves(values) if key.partition(".")[0] not in FREE and key not in FREE_LEAVES}


def config_hash(config: DictConfig) -> str:
    """sha256 of the essential configuration, 64 hexadecimal digits."""
    text = json.dumps(essential(plain(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(config: DictConfig) -> str:
    """Directory name of a run: its overrides as readable ASCII, and a hash of its whole configuration.

    The same configuration always has the same name and another one never shares it, so repeating a command resumes,
    in whatever order and words it is repeated: the study is searched for the hash before a new name is made.
    """
    digest = config_hash(config)[:8]
    for there in sorted(Path(config.hydra.sweep.dir).glob(f"*-{digest}")):
        return there.name
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # a variable's value is no name
    words = [_shorten(str(o)) for o in task if not str(o).lstrip("+~").startswith(("study=", "resume="))]
    while len("_".join(words)) > 120:  # the longest are paths and the like; the hash stands for them too
        words.remove(max(words, key=len))
    return f"{'_'.join(words).strip('-_.') or 'default'}-{digest}"


def _shorten(override: str) -> str:
    """`a/b.key=some/value` as key-value, with no sign that a shell or Hydra's grammar would read."""
    key, _, value = override.partition("=")
    key = re.split(r"[./]", key.lstrip("+"))[-1]
    if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", value):  # as drawn by a search
        value = f"{float(value):.4g}"
    return re.sub(r"[^A-Za-z0-9.~-]+", "_", f"{key}-{value[-32:]}" if value else key).strip("_")


def _leaves_of(config: DictConfig) -> dict[str, Any]:
    """The values as `key.key: value`, interpolations as they are written."""
    return dict(_leaves(OmegaConf.to_container(config, resolve=False)))


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, node
