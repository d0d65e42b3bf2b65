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
    """Decorates a class that conf/ names: its fields are its arguments, checked without conversions by pydantic."""
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return cast(Callable[[type[T]], type[T]], pydantic.dataclasses.dataclass(frozen=frozen, config=config))


class RunError(Exception):
    exit_code = 1  # of the command line; the message is one line for the user


class InputError(RunError):
    exit_code = 2  # bad input or configuration; the message names the key, the file, the line or the byte


class InUse(InputError):
    """Another process is running in the directory."""


class DivergedError(RunError):
    exit_code = 3  # the loss became NaN or infinite, or fp16 overflowed too often in a row; no bad update was applied


class StorageError(RunError):
    exit_code = 4  # the disk is full, read-only, or failed; earlier checkpoints are intact


class OutOfMemory(RunError):
    exit_code = 5  # the model or the batch does not fit; the message gives the sizes


class PeerLost(RunError):
    exit_code = 1  # another process of a distributed run has ended, and has said why


class PreemptedError(RunError):
    exit_code = 75  # a signal of SIGNALS arrived; the state is saved and the same command continues


class Interrupted(PreemptedError):
    exit_code = 130  # the same after Ctrl-C


def printable(text: object) -> str:
    """`text` on one line, whatever would move a terminal's cursor written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def one_line(error: object) -> str:
    """Its message without line breaks, nor anything that a terminal would obey."""
    return printable(" ".join(str(error).split()))


def show_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as an aligned table of printable text, numbers on the right, a header above."""
    columns = []
    for name, first in rows[0].items() if rows else ():
        cells = [printable(cell) for cell in (name, *(row.get(name, "") for row in rows))]
        width = max(map(len, cells))
        is_text = isinstance(first, str) and not first[:1].isdigit()
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


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
def memory_errors(what: str) -> Iterator[None]:
    """Raises OutOfMemory, saying `what` that means, where memory is full."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise OutOfMemory(f"out of memory: {what} ({one_line(error)[:200]})") from error


@contextlib.contextmanager
def load_errors(what: str) -> Iterator[None]:
    """Whatever libraries make of a stranger's damaged files becomes an InputError that begins with `what`."""
    try:
        yield
    except Exception as error:  # `tokenizers` raises nothing narrower
        if is_memory_error(error):
            raise
        raise InputError(f"{what} cannot be loaded: {(str(error).strip() or type(error).__name__)[:300]}") from error


def explain_invalid(error: ValidationError, at: str = "") -> str:
    """One line for the first thing that pydantic refused: `at.field: what was expected, got value`."""
    first = error.errors()[0]
    key = ".".join(map(str, ([at] if at else []) + [*first["loc"]]))
    if first["type"].startswith("missing"):
        return f"{key} is missing"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, got {printable(first['input'])[:100]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean NAME?` where something known is near: the same last part, or similar letters."""
    names = {n.lower(): n for n in known}
    last = name.lower().rpartition(".")[2]
    close = [n for n in names if n.rpartition(".")[2] == last] or difflib.get_close_matches(name.lower(), names, 1, 0.5)
    return f", did you mean {names[close[0]]}?" if close else ""


@contextlib.contextmanager
def handle_signals(handler: Any, signals: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Meanwhile `signals` are handled by `handler`. Outside the main thread: nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in signals if main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Preemption:
    """Whether a run was asked to stop: in `training` after the current update, elsewhere or by two Ctrl-C at once."""

    def __init__(self) -> None:
        self.signal, self.training = 0, False

    def handle(self, number: int, _frame: object = None) -> None:
        again, self.signal = self.signal == number == signal.SIGINT, number
        if again or not self.training:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise PreemptedError("preempted outside training: nothing to save; the same command continues")

    def __call__(self) -> bool:
        return bool(self.signal)


@contextlib.contextmanager
def watch_signals() -> Iterator[Preemption]:
    """Yields whether SIGNALS or Ctrl-C have asked to stop since; after Ctrl-C a PreemptedError becomes Interrupted."""
    preemption = Preemption()
    with handle_signals(preemption.handle, (*SIGNALS, signal.SIGINT)):
        try:
            yield preemption
        except PreemptedError as error:
            if preemption.signal != signal.SIGINT:
                raise
            raise Interrupted(str(error).replace("preempted", "interrupted", 1)) from error
