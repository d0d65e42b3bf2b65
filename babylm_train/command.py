"""One parser, one --help and one way to end for all commands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from babylm_train.errors import InputError, RunError, explain_invalid, fail, nearest

FLAGS = {"--config-dir": "config_dir", "-cd": "config_dir", "--config-name": "config_name", "-cn": "config_name"}


@dataclass(frozen=True)
class CommandLine:
    """What was typed. places: words without `=`. options: the command's own. overrides: the rest, of a run's keys."""

    places: list[str]
    options: Any
    overrides: list[str]
    config_name: str = "config"
    config_dir: str | None = None


@dataclass
class NoOptions:
    """Of a command that has no options of its own."""


def read_command_line(
    arguments: Sequence[str], options: type = NoOptions, *, places: str = "", overrides: bool = False
) -> CommandLine:
    """Takes the arguments of a command apart.

    Args:
        options: a dataclass; each `key=value` whose key is one of its fields is read as that field's type.
        places: what the words without `=` name, as the help shows it; empty: there are none.
        overrides: other `key=value` words are a run's overrides, and Hydra's --config-dir and --config-name are taken.

    Raises:
        InputError: an unknown key or flag, with the nearest known one, or a value of another type.
    """
    known = {field.name for field in fields(options)}
    words: list[str] = []
    own: dict[str, str] = {}
    rest: list[str] = []
    flags: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        key, equals, value = argument.partition("=")
        if overrides and key in FLAGS:
            flags[FLAGS[key]] = value if equals else next(left, "")
        elif argument.startswith("-"):
            name = key.lstrip("-")
            hint = _nearest_key(name) if overrides else nearest(name, known)
            raise InputError(f"{key}: no such flag; keys have no dashes: {name}=value{hint}")
        elif equals and key in known:
            own[key] = value
        elif overrides:
            rest.append(argument)
        elif equals:
            raise InputError(f"{key}: no such option{nearest(key, known)} (there are {', '.join(sorted(known))})")
        elif places:
            words.append(argument)
        else:
            raise InputError(f"{argument}: options are given as key=value")
    try:
        made: Any = TypeAdapter(options).validate_python({k: None if v == "null" else v for k, v in own.items()})
    except ValidationError as error:
        raise InputError(explain_invalid(error)) from error
    return CommandLine(words, made, rest, **flags)


def _nearest_key(name: str) -> str:
    from babylm_train.config import check_command_line, essential, plain, suggest

    return suggest(name, essential(plain(check_command_line([])[0])))


def start(
    main: Callable[[CommandLine], None], page: str, options: type, *, places: str = "", overrides: bool = False
) -> NoReturn:
    """Runs a command and ends the process: help is a page and exit 0, an error is one line and its exit code.

    Args:
        main: the command. page: its help, the module's docstring. options, places, overrides: as read_command_line.
    """
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h"} & set(arguments):
            print(help_page(page, options))
        else:
            main(read_command_line(arguments, options, places=places, overrides=overrides))
    except RunError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def help_page(page: str, options: type) -> str:
    """`page`, and the options with their defaults."""
    shown = [f"  {f.name}={'null' if f.default is None else f.default}" for f in fields(options)]
    return inspect.cleandoc(page) + ("\n\noptions and their defaults:\n" + "\n".join(shown) if shown else "")
