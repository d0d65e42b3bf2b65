"""Jobs of a study, each in a process of its own: whatever one does to itself, the others go on."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from filelock import FileLock

from babylm_train.errors import InUse, PreemptedError, RunError, one_line
from babylm_train.files import write_json
from babylm_train.preemption import SIGNALS, handled

SWEEP = "BABYLM_SWEEP"  # id of the sweep and process that runs it: launchers hand the environment on to their workers
OUTCOMES = ".sweeps"  # in the study's directory: what became of each job of a sweep, until the sweep has ended
STATUS = {1: "failed", 2: "bad_input", 3: "diverged", 4: "storage", 5: "out_of_memory", 75: "preempted"}
GRACE, SLURM_GRACE = 30.0, 100.0  # seconds a job has to save its state before it is killed; SLURM's signal leaves 120
REQUEUED = 900.0  # seconds that SLURM has to end a job it preempts: one that has ended is not put back into the queue


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `busy`: another process is at it. `cause` and `traceback` are empty where it finished."""

    status: str
    cause: str = ""
    exit_code: int = 0
    val_loss: float = math.inf
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """The outcome of a job that raised `error`."""
        if isinstance(error, RunError):
            busy = isinstance(error, InUse)
            return cls("busy" if busy else STATUS[error.exit_code], one_line(error), error.exit_code)
        name = "exited" if isinstance(error, SystemExit) else "failed"
        return cls(name, f"{type(error).__name__}: {error}", 1, traceback="".join(traceback.format_exception(error)))


def context() -> Any:
    """Processes are forked from one that has imported torch and done nothing with it: a job starts in no time.

    Signals that ask jobs to stop often reach every process of a session. The one they are forked from must not heed
    them, or nobody could tell how its jobs ended; what is ignored here it goes on ignoring.
    """
    made = multiprocessing.get_context("forkserver")
    # loky's workers name their own way of starting processes, which has to be known in those as well
    made.set_forkserver_preload(["babylm_train.study.preload"] + ["joblib.externals.loky"] * ("joblib" in sys.modules))
    with handled(signal.SIG_IGN):
        forkserver.ensure_running()
    return made


def isolated(job: Callable[..., float], arguments: tuple[Any, ...], timeout: float | None) -> Outcome:
    """Runs `job(*arguments)`, which returns a validation loss, in a process of its own.

    SIGTERM, SIGUSR1 and SIGUSR2 are passed on to it; it then has GRACE seconds to save its state.

    Args:
        timeout: seconds it may take; then it is asked to save and stop, and GRACE seconds later killed.

    Raises:
        PreemptedError: this process was asked to stop; the job has stopped as well.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=_child, args=(theirs, job, arguments))
    process.start()
    theirs.close()
    stopping = _Stopping(process)
    with handled(stopping.handle) as before:
        outcome = _wait(process, ours, stopping, time.monotonic() + (timeout or math.inf))
    if executor() and callable(again := before.get(stopping.got)):  # submitit's, which puts the job back into the queue
        again(stopping.got, None)
    if stopping.asked:
        if stopping.got == signal.SIGTERM and executor() == "slurm":
            time.sleep(REQUEUED)
        if outcome.status == "killed":
            raise PreemptedError("preempted, and killed before it had saved: goes on from its last checkpoint")
        raise PreemptedError("preempted: the running job has saved its state; the same command continues")
    if stopping.late and outcome.status != "finished":  # it may have been about to end
        return Outcome("timed_out", f"took longer than job_timeout={timeout:g} s", 1)
    return outcome


def executor() -> str:
    """`slurm` or `local` in a job of submitit's, empty elsewhere."""
    return os.environ.get("SUBMITIT_EXECUTOR", "")


def _wait(process: Any, ours: connection.Connection, stopping: _Stopping, until: float) -> Outcome:
    outcome = None
    while process.exitcode is None:
        connection.wait([process.sentinel, *([] if outcome else [ours])], timeout=0.5)
        if outcome is None and ours.poll():
            with contextlib.suppress(EOFError):  # it died without a word
                outcome = ours.recv()
        if time.monotonic() > until and not stopping.since:
            stopping.late = True
            stopping.stop()
        if stopping.parent_is_gone():
            stopping.asked = True
            stopping.stop()
        if stopping.since and time.monotonic() - stopping.since > (SLURM_GRACE if executor() == "slurm" else GRACE):
            process.kill()
        process.join(0)
    if outcome is not None:
        return outcome
    code = process.exitcode
    if code >= 0:
        return Outcome("exited", f"ended with exit code {code} and no result", code or 1)
    hint = " (so does the kernel where memory runs out)" if code == -signal.SIGKILL else ""
    return Outcome("killed", f"killed by {signal.Signals(-code).name}{hint}", 1)


class _Stopping:
    """Passes signals on to a job."""

    def __init__(self, process: Any) -> None:
        self.process, self.asked, self.late, self.since, self.got = process, False, False, 0.0, 0
        self.worker_of = os.getppid() if os.environ.get(SWEEP, "").endswith(f"-{os.getppid()}") else None

    def handle(self, number: int, _frame: object) -> None:
        """Handles a signal."""
        self.asked, self.got = True, number
        self.stop()

    def stop(self) -> None:
        """Asks the job to save and end."""
        self.since = self.since or time.monotonic()
        self.process.terminate()

    def parent_is_gone(self) -> bool:
        """Is this a launcher's worker, and has the sweep that it works for died?"""
        return self.worker_of is not None and not self.asked and os.getppid() != self.worker_of


def _child(theirs: connection.Connection, job: Callable[..., float], arguments: tuple[Any, ...]) -> None:
    for number in SIGNALS:  # ignored in the process that this one was forked from
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()

    def tell(outcome: Outcome) -> None:
        with contextlib.suppress(BrokenPipeError):  # who watched over it has died
            theirs.send(outcome)

    try:
        tell(Outcome("finished", val_loss=job(*arguments)))
    except KeyboardInterrupt:
        sys.exit(130)
    except RunError as error:
        tell(Outcome.of(error))
        sys.exit(error.exit_code)
    except BaseException as error:  # a bug: told, and raised as it is
        tell(Outcome.of(error))
        raise


def _follow_parent() -> None:
    """Saves and ends the job when the process that watches over it has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def failed_since(directory: Path, moment: int) -> Outcome | None:
    """How the run in `directory` failed since `moment` (nanoseconds since 1970), preemption aside."""
    path = directory / "result.json"
    if not path.exists() or path.stat().st_mtime_ns < moment:
        return None
    result = json.loads(path.read_text(encoding="utf8"))
    if result["status"] in ("finished", "preempted"):
        return None
    return Outcome(result["status"], result["cause"], result["exit_code"])


class Sweep:
    """One `--multirun` command, and what became of its jobs, wherever a launcher ran them.

    Args:
        directory: of the study.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.folder = directory, directory / OUTCOMES / name

    @property
    def began(self) -> int:
        """When the sweep did, in nanoseconds since 1970."""
        return int(self.folder.name.partition("-")[0])

    @classmethod
    def current(cls, directory: Path) -> Sweep:
        """The sweep that this process, or the one that started it, runs."""
        return cls(directory, os.environ[SWEEP])

    def note(self, job: str, outcome: Outcome) -> None:
        """Remembers how `job`, a folder in the study's directory, ended, or that it is `running` in this process."""
        write_json(self._path(job), {**asdict(outcome), "host": socket.gethostname(), "pid": os.getpid()})

    def outcome(self, job: str) -> Outcome | None:
        """What became of `job` in this sweep so far."""
        return self._read(self._path(job))[0] if self._path(job).exists() else None

    def outcomes(self) -> dict[str, Outcome]:
        """Of every job, by its name."""
        return {unquote(path.stem): self._read(path)[0] for path in sorted(self.folder.glob("*.json"))}

    def wait_for_others(self) -> bool:
        """Waits for jobs that other processes are at, and forgets that they were; False: there were none."""
        busy = [name for name, outcome in self.outcomes().items() if outcome.status == "busy"]
        if busy:
            print(f"waiting for jobs that other processes were at: {len(busy)}", flush=True)
        for name in busy:
            with FileLock(self.directory / name / ".lock"):
                self._path(name).unlink()
        return bool(busy)

    def stop(self) -> None:
        """Asks the workers of this machine that still run a job to save and end, and waits until they have."""
        asked = False
        until = time.monotonic() + GRACE + 5
        while (workers := self._workers()) and time.monotonic() < until:
            for pid in workers if not asked else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            asked = True
            time.sleep(0.1)

    def _workers(self) -> list[int]:
        """Processes of this machine, other than this one, that say they are running a job."""
        notes = [self._read(path) for path in self.folder.glob("*.json")]
        here = [pid for outcome, host, pid in notes if outcome.status == "running" and host == socket.gethostname()]
        return [pid for pid in here if pid != os.getpid()]

    def forget(self) -> None:
        """Removes the notes of a sweep that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: another sweep's are there
            self.folder.parent.rmdir()

    def _path(self, job: str) -> Path:
        return self.folder / f"{quote(job, safe='')}.json"

    @staticmethod
    def _read(path: Path) -> tuple[Outcome, str, int]:
        values = json.loads(path.read_text(encoding="utf8"))
        host, pid = values.pop("host"), values.pop("pid")
        return Outcome(**values), host, pid


@contextlib.contextmanager
def sweep_in(directory: Path) -> Iterator[Sweep]:
    """A sweep over the study in `directory`, with a name that this process's workers inherit.

    Raises:
        PreemptedError: SIGTERM, SIGUSR1 or SIGUSR2 arrived; the workers of this machine have saved their states.
    """
    sweep = Sweep(directory.absolute(), f"{time.time_ns()}-{uuid.uuid4().hex[:8]}-{os.getpid()}")

    def stop(*_: object) -> None:
        sweep.stop()
        raise PreemptedError("preempted: the running jobs were told to save and stop; the same command continues")

    os.environ[SWEEP] = sweep.folder.name
    try:
        with handled(stop):
            yield sweep
    finally:
        os.environ.pop(SWEEP)
        sweep.forget()
