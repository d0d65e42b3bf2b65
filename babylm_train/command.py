"""One parser, one --help and one way to end for all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from babylm_train.errors import InputError, Interrupted, RunError, explain_invalid, fail, nearest

MULTIRUN = {"--multirun", "-m"}
FLAGS = {"--config-dir": "config_dir", "-cd": "config_dir", "--config-name": "config_name", "-cn": "config_name"}


@dataclass
class CommandLine:
    """What was typed. places: words without `=`. options: the command's own. overrides: the rest, of a run's keys."""

    places: list[str]
    options: Any
    overrides: list[str]
    config_name: str = "config"
    config_dir: str | None = None

    def one_run(self) -> Path:
        """The one place that was typed. Raises InputError: none was, or several."""
        if len(self.places) != 1:
            raise InputError(f"give one run's directory, got {' '.join(self.places) or 'none'}")
        return Path(self.places[0])


def read_command_line(arguments: Sequence[str], options: Any = None, *, overrides: bool = False) -> CommandLine:
    """Takes a command's words apart: fields of the dataclass `options`, and places or, with `overrides`, a run's keys.

    Raises InputError: an unknown key or flag, a value of another type.
    """
    known = {field.name for field in fields(options)} if options else set()
    own: dict[str, str | None] = {}
    line, left = CommandLine([], None, []), iter(arguments)
    for argument in left:
        key, equals, value = argument.partition("=")
        if overrides and key in FLAGS:
            setattr(line, FLAGS[key], value if equals else next(left, ""))
        elif overrides and argument in MULTIRUN:
            continue
        elif argument.startswith(("-", "–", "—", "−")):
            raise InputError(f"{key}: no such flag; keys have no dashes: {key.lstrip('-–—−')}=value")
        elif equals and key in known:
            own[key] = None if value == "null" else value
        elif overrides:
            line.overrides.append(argument)
        elif equals:
            raise InputError(f"{key}: no such option{nearest(key, known)} (there are {', '.join(sorted(known))})")
        else:
            line.places.append(argument)
    try:
        line.options = TypeAdapter(options).validate_python(own) if options else None
    except ValidationError as error:
        raise InputError(explain_invalid(error)) from error
    return line


def start(main: Callable[[CommandLine], None], page: str, options: Any = None, *, overrides: bool = False) -> NoReturn:
    """Runs the command `main` and ends the process: for --help with `page`, for an error with one line and its code."""
    try:
        if {"--help", "-h"} & set(sys.argv):
            shown = [
                f"  {f.name}={'null' if f.default is None else f.default}" for f in (fields(options) if options else ())
            ]
            print("\n".join([page.strip(), *(["\noptions and their defaults:", *shown] if shown else [])]))
        else:
            main(read_command_line(sys.argv[1:], options, overrides=overrides))
    except RunError as error:
        fail(error)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        fail(Interrupted("interrupted; nothing was written"))
    sys.exit(0)
