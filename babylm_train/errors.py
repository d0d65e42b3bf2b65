"""What a run can end with: typed errors that entry points map to exit codes, and signals that ask it to stop."""

import contextlib
import dataclasses
import difflib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # a scheduler's, before it takes the machine away
T = TypeVar("T")


@dataclass_transform(field_specifiers=(pydantic.Field, dataclasses.field))
def arguments(*, frozen: bool = True) -> Callable[[type[T]], type[T]]:
    """Decorates a class that conf/ names, or that a user builds: its fields are its arguments.

    They are checked where it is built, by their types and `pydantic.Field(gt=..., le=...)`, without conversions;
    unknown ones are refused (pydantic.ValidationError).
    """
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
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
    """SIGTERM, SIGUSR1 or SIGUSR2 arrived; the state is saved and the same command continues."""

    exit_code = 75


class Interrupted(PreemptedError):
    """The same after Ctrl-C."""

    exit_code = 130


def printable(text: object) -> str:
    """`text` on one line, whatever would move a terminal's cursor written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(error: BaseException) -> str:
    """Its message without line breaks, nor anything that a terminal would obey."""
    return printable(" ".join(str(error).split()))


def show_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as an aligned table of printable text, numbers on the right, a header above."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, *([printable(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    left = [isinstance(rows[0][name], str) and not rows[0][name][:1].isdigit() for name in names]
    padded = (
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ]
        for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


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
def memory_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Raises OutOfMemory where memory is full: `what` that means, and a `remedy`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        detail = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OutOfMemory(f"out of memory: {what} ({detail}){remedy}") from error


def explain_invalid(error: ValidationError, at: str = "") -> str:
    """One line for the first thing that pydantic refused: `at.field: what was expected, got value`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in (*([at] if at else []), *first["loc"]))
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is not set: give {key}=..."
    return f"{key} must be {said}, got {printable(first['input'])[:100]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean NAME?` where something known is near: the same last part, or similar letters."""
    names = list(known)
    close = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]]
    close = close or difflib.get_close_matches(name, names, 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""


@contextlib.contextmanager
def handle_signals(
    handler: Callable[[int, Any], object] | signal.Handlers, signals: Iterable[int] = SIGNALS
) -> Iterator[None]:
    """Meanwhile `signals` are handled by `handler`. Outside the main thread: nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in signals if main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Preemption:
    """Whether a run was asked to stop. In `training` it stops after the current update, elsewhere at once.

    Raises:
        PreemptedError: from the handler, where there is nothing to save. KeyboardInterrupt: the same after Ctrl-C; a
            second Ctrl-C ends the run at once, wherever it is.
    """

    def __init__(self) -> None:
        self.signal, self.training = 0, False

    def handle(self, number: int, _frame: object = None) -> None:
        """Handles a signal."""
        again = self.signal == number == signal.SIGINT
        self.signal = number
        if number == signal.SIGINT and (again or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            raise PreemptedError("preempted outside training: nothing to save; the same command continues")

    def __call__(self) -> bool:
        return bool(self.signal)


@contextlib.contextmanager
def watch_signals() -> Iterator[Preemption]:
    """Yields whether SIGNALS or Ctrl-C have asked to stop since.

    Raises:
        Interrupted: instead of a PreemptedError after Ctrl-C.
    """
    preemption = Preemption()
    with handle_signals(preemption.handle, (*SIGNALS, signal.SIGINT)):
        try:
            yield preemption
        except PreemptedError as error:
            if preemption.signal != signal.SIGINT:
                raise
            raise Interrupted(str(error).replace("preempted", "interrupted", 1)) from error
