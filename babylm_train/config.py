"""Checks on the composed configuration, before anything is instantiated or written."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from babylm_train.errors import InputError

PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"

# What a `_target_` may name, beside the callables of ours that a fragment in conf/ names. Exact shapes, so that no
# alias slips in; `resolve` checks besides that the object was defined where its name says.
ALLOWED = (
    r"torch\.optim\.[A-Z]\w*",
    r"transformers\.(?!Auto)[A-Z]\w*Config",
)
HYDRA_ALLOWED = (
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)",
    r"hydra_plugins\.babylm_train\.\w+Launcher",
    r"hydra_plugins\.hydra_optuna_sweeper\.[\w.]+Sweeper",
    r"optuna\.samplers\.[A-Z]\w*",
)
LOGGING_CLASSES = r"logging\.(StreamHandler|NullHandler)"  # a file's name and its lines would be the config's to choose
PROGRAMS = (
    "job.env_set",
    "launcher.",
)  # what steers or runs other programs comes from the command line, not from a file
ENVIRONMENT = ("data", "logger", "resume", "study")  # where the text of an environment variable may stand
EXTRA = "BABYLM_ALLOW_TARGETS"  # module prefixes of a user's own classes, comma-separated

# The largest whole number of a name; beyond it is a slip of the keyboard that would take hours, or all memory, to show.
LARGEST = {"seed": 2**32 - 1, "max_steps": 10**8, "epochs": 10**5, "n_layer": 10**4, "num_hidden_layers": 10**4}
LARGEST |= dict.fromkeys(("batch_size", "gradient_accumulation_steps", "max_length", "vocab_size"), 10**6)
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

FREE = ("study", "resume", "logger", "job_timeout")  # top-level keys that do not change what a run computes
FREE_LEAVES = ("data.cache_dir", "trainer.save_every", "trainer.keep_last")


def register_resolvers() -> None:
    """Makes `${run_name:}` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_name", lambda _root_: run_name(_root_), replace=True)


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


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, resolved, without Hydra's own node."""
    values = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]), resolve=True
    )
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def public(config: DictConfig) -> dict[str, Any]:
    """As `plain`, but text that comes from the environment stays `${oc.env:NAME}`: what may be saved or sent."""
    resolve = OmegaConf.register_new_resolver
    try:
        resolve("oc.env", lambda name, *_: f"${{oc.env:{name}}}", replace=True)
        resolve("oc.decode", str, replace=True)
        masked = plain(config)
    finally:
        resolve("oc.env", oc.env, replace=True)
        resolve("oc.decode", oc.decode, replace=True)
    return _merge(plain(config), masked)


def _merge(value: Any, masked: Any) -> Any:
    if isinstance(value, dict) and isinstance(masked, dict):
        return {k: _merge(v, masked[k]) for k, v in value.items()}
    if isinstance(value, list) and isinstance(masked, list):
        return [_merge(v, m) for v, m in zip(value, masked, strict=True)]
    return masked if isinstance(value, str) and "${oc.env:" in str(masked) else value


def essential(values: dict[str, Any]) -> dict[str, Any]:
    """What determines the result: the configuration as `key.key: value`, without the keys that change nothing."""
    leaves = dict(_leaves({k: v for k, v in values.items() if k not in FREE}))
    return {k: v for k, v in leaves.items() if k not in FREE_LEAVES}


def config_hash(config: DictConfig) -> str:
    """sha256 of the essential configuration, 64 hexadecimal digits."""
    text = json.dumps(essential(plain(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_command_line(
    arguments: Sequence[str], config_name: str = "config", config_dir: str | None = None
) -> list[DictConfig]:
    """Composes what the command line asks for and checks it, one configuration a value of each sweep.

    Returns:
        The configurations, the plain run or the sweep's first job before the others.

    Raises:
        InputError: naming the key, with the nearest existing one where there is one.
    """
    with _composer(config_dir) as make:
        try:
            loader = GlobalHydra.instance().config_loader()  # for glob(*)
            overrides = OverridesParser.create(config_loader=loader).parse_overrides([quoted(a) for a in arguments])
        except HydraException as error:
            raise InputError(_first_line(error)) from error
        first = make(config_name, _spread(overrides)[0])
    swept = first.hydra.sweeper.get("params") or {}
    given = {override.key_or_group for override in overrides}
    if twice := [key for key in swept if key in given]:
        raise InputError(f"{twice[0]} is swept by the experiment: change hydra.sweeper.params instead")
    overrides += OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in swept.items()])
    configs, references = [], {}
    with _composer(config_dir) as make:
        for number, chosen in enumerate(_spread(overrides)):
            config = make(config_name, chosen) if number or swept else first
            choices = tuple(_choices(config))
            if choices not in references:
                references[choices] = make(config_name, list(choices))
            check(config, references[choices])
            configs.append(config)
    return configs


def quoted(argument: str) -> str:
    """`key=value`, its value in quotes where Hydra's grammar could not read it: a path in Devanagari, say."""
    key, equals, value = argument.partition("=")
    if not equals or value.isascii() or value[0] in "'\"[{(":
        return argument
    return key + "='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def check(config: DictConfig, reference: DictConfig) -> None:
    """Holds a composed configuration against the fragments it was composed from.

    Args:
        config: as composed, with its `hydra` node. reference: the same choices without any value overridden.

    Raises:
        InputError: a `_target_` that is not allowed, an unknown key, a wrong type, a value that is not set.
    """
    try:
        values, known = plain(config), plain(reference)
        hydra = OmegaConf.to_container(config.hydra, resolve=False) if "hydra" in config else {}
    except OmegaConfBaseException as error:
        raise InputError(_first_line(error)) from error
    check_targets(values, ALLOWED)
    check_targets(hydra, ALLOWED + HYDRA_ALLOWED, "hydra")
    _check_hydra(config, reference)
    for key, value in _leaves(public(config)):
        if "${oc.env:" in str(value) and key.partition(".")[0] not in ENVIRONMENT:
            raise InputError(f"{key}: the text of an environment variable may stand in {', '.join(ENVIRONMENT)} only")
    _check_keys(values, known, ())
    _check_values(values)
    if gone := [key for key in ("seed", "study", "resume") if key not in values]:
        raise InputError(f"{gone[0]}: the key is missing")
    if not isinstance(values["resume"], (str, type(None))):
        raise InputError(f"resume must be a path (a number in quotes), got {values['resume']!r}")
    if re.search(r"^\.|/|^$", str(values["study"])):
        raise InputError(f"study={values['study']}: the name of a directory is needed, without / and no . before it")
    timeout = values.get("job_timeout")
    if timeout is not None and (isinstance(timeout, (bool, str)) or not timeout > 0):
        raise InputError(f"job_timeout must be seconds above 0, or null, got {timeout!r}")
    missing = sorted(key for key, value in _leaves(values) if value == "???")
    if missing:
        raise InputError(f"{missing[0]} is not set: give {missing[0]}=...")


def check_targets(node: Any, allowed: tuple[str, ...], at: str = "") -> None:
    """Refuses every `_target_` in `node`, however deep, that is not on the list.

    Raises:
        InputError: naming the key and the target.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{at}.{key}" if at else str(key)
            if key in ("_target_", "()") or (at.startswith("hydra") and key == "class"):
                patterns = (LOGGING_CLASSES,) if key == "class" else () if key == "()" else allowed + _extra()
                mine = key == "_target_" and value in _own_targets()
                if not mine and not (isinstance(value, str) and any(re.fullmatch(p, value) for p in patterns)):
                    raise InputError(f"{here}={value} is not allowed; SECURITY.md says what may be named")
            else:
                check_targets(value, allowed, here)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, allowed, f"{at}[{index}]")
    elif at.startswith("hydra.") and re.match(r"(ext|cfg)://(?!sys\.std(out|err)$)", str(node)):
        raise InputError(f"{at}={node} is not allowed: it would import a module")


@functools.cache
def _own_targets() -> frozenset[str]:
    """Every callable of ours that a fragment in conf/ names: what is not offered there is no target."""
    texts = (path.read_text(encoding="utf8") for path in CONF.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_: *(babylm_train[\w.]+)", text))


def resolve(target: str, key: str) -> Any:
    """The class or function an allowed `_target_` names, only if it was defined under that name.

    Raises:
        InputError: there is no such object, or the name is an alias of something else.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{key}._target_={target} does not exist: {error}") from error
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or not (home == module or home.startswith(module + ".")):
        raise InputError(f"{key}._target_={target} is not allowed: it is {home}.{getattr(found, '__name__', found)}")
    return found


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line for an error of Hydra's or OmegaConf's, with the nearest existing name."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        name = (error.missing_cfg_file or "").removesuffix(".yaml")
        group, _, option = name.rpartition("/")
        return (
            f"{group}={option}: no such option{_nearest(option, error.options)} (there are {', '.join(error.options)})"
        )
    message = _first_line(error)
    found = re.search(
        r"Could not (?:override|append to config|delete from config)\.?,? '([^']+)'", message
    ) or re.search(r"Could not override '([^']+)'", message)
    if found:
        with _composer(None) as make:
            config = make("config", [])
            known = [key for key, _ in _leaves(plain(config))]
            groups = [g for g in config.hydra.runtime.choices if not g.startswith("hydra")]
        key = found.group(1).split("@")[0]
        if key in known:
            return f"{key}: the chosen options have no such key"
        return f"{key}: no such key or group{_nearest(key, [*known, *groups])}"
    return message


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""


def _check_keys(node: dict[str, Any], known: dict[str, Any], path: tuple[str, ...]) -> None:
    for key, value in node.items():
        here = ".".join((*path, str(key)))
        if key in ("_target_", "_partial_", "_convert_"):
            continue
        if key not in known:
            _check_argument(node, key, here, known)
        elif isinstance(known[key], dict):
            if not isinstance(value, dict):
                raise InputError(f"{here} is a group of keys ({', '.join(map(str, known[key]))}), got {value!r}")
            if value.get("_target_") == known[key].get("_target_"):
                _check_keys(value, known[key], (*path, str(key)))
        elif "_target_" in node and hasattr(resolve(node["_target_"], here), "__pydantic_validator__"):
            continue  # it checks itself
        elif value != known[key] or isinstance(value, bool) != isinstance(known[key], bool):  # 0 is not false
            declared = None in (value, known[key]) or isinstance(value, list)
            _check_type(here, value, known[key], _annotation(node, key, here) if declared else "")


def _check_hydra(config: DictConfig, reference: DictConfig) -> None:
    """Environment and launcher texts that the command line did not give: a file must not choose what else is run."""
    if "hydra" not in config:
        return
    mine, theirs = (dict(_leaves(OmegaConf.to_container(c.hydra, resolve=False))) for c in (config, reference))
    given = [o.lstrip("+~").partition("=")[0] for o in config.hydra.overrides.hydra]
    for key, value in mine.items():
        steers = key.startswith(PROGRAMS) and isinstance(value, (str, list)) and key != "launcher._target_"
        if steers and theirs.get(key) != value and not any(f"hydra.{key}".startswith(g) for g in given):
            raise InputError(f"hydra.{key} steers other programs: it may stand on the command line, not in a file")


def _check_values(node: Any, at: str = "") -> None:
    """Text that can be printed and written, whole numbers within LARGEST."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _check_values(value, f"{at}.{key}" if at else str(key))
    elif isinstance(node, str) and UNPRINTABLE.search(node):
        raise InputError(f"{at}={node!r} holds a control character, or bytes that are not UTF-8")
    elif isinstance(node, int) and abs(node) > (largest := LARGEST.get(at.rpartition(".")[2], 2**31 - 1)):
        raise InputError(f"{at} must be at most {largest}, got {node}")


def _check_argument(node: dict[str, Any], key: str, here: str, known: dict[str, Any]) -> None:
    """A key that no fragment sets is fine if the node's target takes it."""
    takes: list[str] = []
    if "_target_" in node:
        parameters = inspect.signature(resolve(node["_target_"], here.rpartition(".")[0])).parameters
        takes = [name for name in parameters if not name.startswith("_")]
        if key in takes:
            return
    prefix = here.rpartition(".")[0]
    nearest = _nearest(key, {*takes, *known} - {"_target_", "_partial_"})
    raise InputError(f"{here}: unknown key{nearest.replace('mean ', f'mean {prefix}.' if prefix else 'mean ')}")


def _annotation(node: dict[str, Any], key: str, here: str) -> str:
    """The declared type of an argument whose default or value is null, as text; empty where nothing is declared."""
    if "_target_" not in node:
        return ""
    parameter = inspect.signature(resolve(node["_target_"], here.rpartition(".")[0])).parameters.get(key)
    return "" if parameter is None or parameter.annotation is inspect.Parameter.empty else str(parameter.annotation)


def _check_type(key: str, value: Any, default: Any, annotation: str) -> None:
    if value is None or default is None:
        kinds = set(re.findall(r"None|Optional|int|float|str|bool|list|Sequence|tuple", annotation))
        given = {type(None): {"None", "Optional"}, int: {"int", "float"}, list: {"list", "Sequence", "tuple"}}.get(
            type(value), {type(value).__name__}
        )
        if value is not default and (kinds or value is None) and not kinds & given and value != "???":
            raise InputError(f"{key} must be {' or '.join(sorted(kinds)) or type(default).__name__}, got {value!r}")
        return
    if "???" in (value, default):
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted = {
        bool: ("true or false", isinstance(value, bool)),
        int: ("a whole number", number and float(value).is_integer() and not isinstance(value, float)),
        float: ("a number", number),
        str: ("text", isinstance(value, str) or number or bool(re.search("list|Sequence|tuple", annotation))),
        list: ("a list", isinstance(value, list)),
    }.get(type(default))
    if wanted and not wanted[1]:
        raise InputError(f"{key} must be {wanted[0]}, got {value!r}")


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, node


def _choices(config: DictConfig) -> list[str]:
    chosen = OmegaConf.to_container(config.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    groups = [
        f"{group}={option}"
        for group, option in ((str(group), option) for group, option in chosen.items())
        if option is not None
        and group != "experiment"
        and (group == "hydra/launcher" or not group.startswith("hydra/"))
    ]
    return groups + [o for o in config.hydra.overrides.hydra if o.startswith("hydra.searchpath")]


def _spread(overrides: list[Override]) -> list[list[str]]:
    """The first job of a sweep, then one variation a further value of each swept key."""
    values: list[list[str]] = []
    for override in overrides:
        if override.is_sweep_override() and override.is_discrete_sweep():
            key = override.input_line.partition("=")[0] if override.input_line else override.get_key_element()
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            values.append([override.input_line or ""])
    first = [options[0] for options in values]
    rest = [[*first[:i], option, *first[i + 1 :]] for i, options in enumerate(values) for option in options[1:]]
    return [first, *rest]


class _composer:
    """A context in which configurations can be composed, whatever Hydra was doing before."""

    def __init__(self, config_dir: str | None) -> None:
        self.extra = [f"hydra.searchpath=[file://{os.path.abspath(config_dir)}]"] if config_dir else []

    def __enter__(self) -> Any:
        register_resolvers()
        self.before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        self.context = initialize_config_dir(str(CONF), version_base="1.3")
        self.context.__enter__()
        return self._compose

    def _compose(self, name: str, overrides: list[str]) -> DictConfig:
        try:
            return compose(name, [*self.extra, *overrides], return_hydra_config=True)
        except YAMLError as error:
            raise InputError(_first_line(error)) from error
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: `group=3`
            if overrides:
                raise InputError(explain(error, overrides)) from error
            raise

    def __exit__(self, *_: Any) -> None:
        self.context.__exit__(None, None, None)
        GlobalHydra.instance().hydra = self.before


def _extra() -> tuple[str, ...]:
    prefixes = [p.strip().rstrip(".") for p in os.environ.get(EXTRA, "").split(",") if p.strip()]
    return tuple(re.escape(p) + r"(\.\w+)*" for p in prefixes)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
