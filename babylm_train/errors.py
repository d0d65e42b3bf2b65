"""The errors a run can end with. Library code raises them; only the entry points map them to exit codes."""

import sys
from functools import partial
from typing import NoReturn

import pydantic.dataclasses
from pydantic import ConfigDict

# Decorates a class that conf/ names, or that a user builds: its fields are its arguments, checked by their types and
# `pydantic.Field(gt=..., le=...)` where it is built, without conversions; unknown ones are refused (ValidationError).
arguments = partial(
    pydantic.dataclasses.dataclass,
    frozen=True,
    config=ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False),
)


class RunError(Exception):
    """A failure whose message is one line for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(RunError):
    """Bad input or configuration. The message names the key, the file, the line or the byte."""

    exit_code = 2


class InUse(InputError):
    """Another process is running in the directory."""


class DivergedError(RunError):
    """The loss became NaN or infinite, or fp16 overflowed too often in a row. No bad update was applied."""

    exit_code = 3


class StorageError(RunError):
    """The disk is full, read-only, or failed. Earlier checkpoints are intact."""

    exit_code = 4


class OutOfMemory(RunError):
    """The model or the batch does not fit; the message gives the sizes."""

    exit_code = 5


class PreemptedError(RunError):
    """SIGTERM or SIGUSR1 arrived; the state is saved and the same command continues."""

    exit_code = 75


def printable(text: object) -> str:
    """`text` on one line, whatever would move a terminal's cursor written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(error: RunError) -> str:
    """Its message without line breaks, nor anything that a terminal would obey."""
    return printable(" ".join(str(error).split()))


def fail(error: RunError) -> NoReturn:
    """Ends an entry point: one line on standard error, and the exit code of the error's kind."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(error.exit_code)
