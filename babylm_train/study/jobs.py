"""Jobs of a study, each a process of its own: its exit code and its result.json say what became of it."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator

from babylm_train.errors import SIGNALS, InputError, Interrupted, PreemptedError, RunError, handle_signals, one_line
from babylm_train.files import read

STATUS = {1: "failed", 2: "bad_input", 3: "diverged", 4: "storage", 5: "out_of_memory"}
STATUS |= {75: "preempted", 130: "preempted"}
BUSY = 76  # exit code of a job's process that found another one in the job's directory
GRACE = 30.0  # seconds a job has to save its state before it is killed
LOG, LOCK = "run.log", ".lock"

# Imported once, by the process that all jobs are forked from: what takes seconds, and nothing that runs.
PRELOAD = ["torch._dynamo", "transformers.models.auto.modeling_auto", "transformers.models.gpt2.modeling_gpt2"]
PRELOAD += [
    "matplotlib.figure",
    "babylm_train.cli",
    "babylm_train.build",
    "babylm_train.runner",
    "babylm_train.trainer",
]
PRELOAD += ["babylm_train.data.corpus", "babylm_train.data.tokenizer", "babylm_train.curriculum.strategy"]


@dataclass(frozen=True)
class Outcome:
    """What a job's result.json says of how it ended. `cause` is empty where it finished."""

    status: str
    cause: Annotated[str, AfterValidator(one_line)] = ""
    exit_code: int = 0
    val_loss: float = math.inf
    seconds: float = 0.0
    traceback: str = ""
    config_hash: str = ""

    @classmethod
    def of(cls, error: RunError) -> Outcome:
        """The outcome of a job that raised `error`."""
        return cls(STATUS[error.exit_code], one_line(error), error.exit_code)


@dataclass
class Job:
    """One run of a study. work: what its process does; record: notes a failure; judge: may end it; timeout: seconds."""

    name: str
    number: int
    directory: Path
    config_hash: str
    work: Callable[[], object]
    record: Callable[[Path, Outcome], object]
    timeout: float = math.inf
    judge: Callable[[Path], Outcome | None] | None = None

    def outcome(self, since: int) -> Outcome | None:
        """How it ended: finished, or pruned, at any time, failed after `since` (as `time_on_disk`). None: to run."""
        path = self.directory / "result.json"
        if not path.exists():
            return None
        try:
            found: Outcome = read(path, Outcome)
        except InputError as error:  # a person has to look at it
            return Outcome.of(error)
        if found.status == "finished" or (self.judge and found.status == "pruned"):
            return found if found.config_hash == self.config_hash else None
        return found if path.stat().st_mtime_ns >= since and found.status != "preempted" else None

    def is_locked(self) -> bool:
        """Is another process at it?"""
        try:
            with FileLock(self.directory / LOCK).acquire(timeout=0):
                return False
        except Timeout:
            return True


def time_on_disk(directory: Path) -> int:
    """Nanoseconds since 1970 by the clock that dates the files in `directory`, which may be another machine's."""
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_mtime_ns


class JobRunner:
    """Runs jobs on this machine, each in a process of its own, the next one as soon as a place is free.

    places: environment variables of each. tell: is told each job's outcome. since: failures after it are another
    command's and count. grace: seconds that jobs have to save when this process is asked to stop.
    """

    def __init__(
        self, places: list[dict[str, str]], tell: Callable[[Job, Outcome], object], since: int, grace: float = GRACE
    ) -> None:
        self.places, self.tell, self.since, self.grace = places, tell, since, grace
        self.running: dict[int, _Running] = {}
        self.asked, self.asked_again = 0, False  # the signal that asked to stop; a second Ctrl-C
        self.context = multiprocessing.get_context("forkserver")

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs all of `jobs`; those that another command is at are waited for, and run here if they did not end well.

        Raises PreemptedError: stopped by a signal; Interrupted: by Ctrl-C, a second one kills the jobs.
        """
        with handle_signals(self._ask, (*SIGNALS, signal.SIGINT)):
            left = list(jobs)
            while self.running or (left and not self.asked):
                left = [job for job in left if not self._take(job)]
                connection.wait([running.process.sentinel for running in self.running.values()], timeout=0.5)
                left += self._collect()
        if self.asked:
            kind = Interrupted if self.asked == signal.SIGINT else PreemptedError
            raise kind(f"asked to stop: jobs had {self.grace:g} s to save; the same command continues")

    def _ask(self, number: int, _frame: object = None) -> None:
        """Handles a signal."""
        self.asked_again = self.asked == number == signal.SIGINT
        self.asked = number

    def _take(self, job: Job) -> bool:
        """Tells its outcome, or starts it. False: there is no free place, or another command is at it."""
        place = next((n for n in range(len(self.places)) if n not in self.running), None)
        if self.asked or place is None:
            return False
        if (outcome := job.outcome(self.since)) is not None:
            self.tell(job, outcome)
        elif job.is_locked():
            return False
        else:
            job.directory.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counting GPUs else spoils CUDA for forks
            self.context.set_forkserver_preload(PRELOAD)
            with handle_signals(signal.SIG_IGN, (*SIGNALS, signal.SIGINT)):  # often sent to every process of a session
                forkserver.ensure_running()
            environment = {**os.environ, **self.places[place]}  # the server's is of the moment it was started
            process = self.context.Process(target=_work, args=(job, os.getcwd(), environment, len(self.places)))
            process.start()
            self.running[place] = _Running(job, process, time.monotonic())
        return True

    def _collect(self) -> list[Job]:
        """Tells what became of the jobs that have ended, stops those that are to stop; returns those of others."""
        busy = []
        for place, running in list(self.running.items()):
            code = running.process.exitcode
            if code is None:
                running.hurry(bool(self.asked), 0.0 if self.asked_again else self.grace)
                continue
            del self.running[place]
            if code == BUSY:
                busy.append(running.job)
                continue
            outcome = running.outcome(self.since)
            if outcome.status != "finished":
                running.job.record(running.job.directory, outcome)
            if outcome.status != "preempted" or not self.asked:
                self.tell(running.job, outcome)
        return busy


@dataclass
class _Running:
    """A job's process. stopped: when it was asked to save and end (time.monotonic); ending: how that is told."""

    job: Job
    process: Any
    began: float
    stopped: float = 0.0
    ending: Outcome | None = None

    def hurry(self, asked: bool, grace: float) -> None:
        """Asks it to save where all is to stop, its time is up or it is judged; kills it `grace` seconds later."""
        now = time.monotonic()
        if self.ending is None:
            if now - self.began > self.job.timeout:
                self.ending = Outcome("timed_out", f"took longer than job_timeout={self.job.timeout:g} s", 1)
            elif asked:
                self.ending = Outcome("preempted", "asked to stop; the same command continues", 75)
            elif self.job.judge is not None:
                self.ending = self.job.judge(self.job.directory)
            if self.ending is not None:
                self.stopped = now
                self.process.terminate()
        elif now - self.stopped > grace:
            self.process.kill()

    def outcome(self, since: int) -> Outcome:
        """What its result.json says if it finished, else what its exit code and the end of its log say."""
        code, path = self.process.exitcode, self.job.directory / LOG
        told = self.job.outcome(since)
        if told is not None and told.status == "finished":  # whatever it did after that
            return told
        if self.ending is not None:
            return self.ending
        if code < 0:
            hint = " (so does the kernel where memory runs out)" if code == -signal.SIGKILL else ""
            return Outcome("killed", f"killed by {signal.Signals(-code).name}{hint}", 1)
        if code not in STATUS:
            return Outcome("exited", f"ended with exit code {code} and no result", code or 1)
        log = path.read_text(encoding="utf8", errors="replace") if path.exists() else ""
        last = one_line(log.strip().rpartition("\n")[2])
        mark = log.rfind("Traceback (most recent call last)") if code == 1 else -1
        return Outcome(STATUS[code], last.removeprefix("error: "), code, traceback=log[mark:] if mark >= 0 else "")


def _work(job: Job, folder: str, environment: dict[str, str], side_by_side: int) -> None:
    """A job's process: a session of its own, out of reach of the terminal; what it prints goes to run.log."""
    os.setsid()
    for number in (*SIGNALS, signal.SIGINT):  # ignored in the process that this one was forked from
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with (job.directory / LOG).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment)
    if side_by_side > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // side_by_side))
    job.work()


def _follow_parent() -> None:
    """Saves and ends the job when the process that watches over it has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
