"""The errors a run can end with. Library code raises them; only the entry points map them to exit codes."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar, cast, dataclass_transform

import pydantic.dataclasses

T = TypeVar("T")


@dataclass_transform(field_specifiers=(pydantic.Field, dataclasses.field))
def arguments(*, frozen: bool = True) -> Callable[[type[T]], type[T]]:
    """Decorates a class that conf/ names, or that a user builds: its fields are its arguments.

    They are checked where it is built, by their types and `pydantic.Field(gt=..., le=...)`, without conversions;
    unknown ones are refused (pydantic.ValidationError).
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return cast(Callable[[type[T]], type[T]], pydantic.dataclasses.dataclass(frozen=frozen, config=config))


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


def is_memory_error(error: BaseException) -> bool:
    """Is it one of the ways in which torch says that memory is full?"""
    said = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED")
    full = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return full or isinstance(error, MemoryError)


@contextlib.contextmanager
def memory_errors(rows: int, length: int) -> Iterator[None]:
    """Says what to do where micro-batches of `rows` x `length` do not fit. Raises OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        detail = next(line for line in str(error).splitlines() if line.strip())
        raise OutOfMemory(
            f"out of memory with micro-batches of {rows} rows x {length} tokens ({detail}); halve trainer.batch_size "
            "and double trainer.gradient_accumulation_steps for the same updates"
        ) from error
