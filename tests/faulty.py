"""Jobs that break, in every way a job can break, and an objective that does it to a run."""

import json
import os
import signal
import sys
import time
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from babylm_train.errors import DivergedError, PreemptedError, fail
from babylm_train.objective import CausalObjective
from babylm_train.study.jobs import BUSY, Job, JobRunner, Outcome
from babylm_train.study.search import judge_trial

FOREVER = 1000


class Faulty(CausalObjective):
    """Job 1 raises, 2 leaves, 3 dies, 4 makes a NaN. While the file that SLOW names is there, a batch takes a second."""

    def __init__(self, job: int) -> None:
        self.job = job

    def __call__(self, model, batch):
        {1: raises, 2: leaves, 3: dies}.get(self.job, lambda: None)()
        if Path(os.environ.get("SLOW", os.devnull)).is_file():
            time.sleep(1)
        loss = super().__call__(model, batch)
        return loss * torch.nan if self.job == 4 else loss


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.01)


def finishes(directory: Path, loss: float = 1.5) -> None:
    values = {"status": "finished", "config_hash": "h", "val_loss": loss, "gpus": os.getenv("CUDA_VISIBLE_DEVICES")}
    (directory / "result.json").write_text(json.dumps(values))


def raises() -> None:
    raise KeyError("no such\x1b[2J thing")


def leaves() -> None:
    os._exit(7)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> None:
    sys.exit(9)


def diverges() -> None:
    fail(DivergedError("loss nan at update 3"))


def hangs() -> None:
    time.sleep(FOREVER)


def is_refused(directory: Path) -> None:
    """The first time, another process has the directory."""
    if not (directory / "tried").exists():
        (directory / "tried").touch()
        sys.exit(BUSY)
    finishes(directory)


def saves(directory: Path) -> None:
    def stop(*_: object) -> None:
        (directory / "saved").touch()
        fail(PreemptedError("state saved"))

    signal.signal(signal.SIGTERM, stop)
    (directory / "began").touch()
    hangs()


def is_deaf(directory: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (directory / "began").touch()
    hangs()


def lives_on(directory: Path) -> None:
    finishes(directory)
    Finalize(None, is_deaf, args=(directory,), exitpriority=0)


def judges(directory: Path) -> Outcome | None:
    """As a search does, of a job that has begun."""
    return judge_trial({}, directory) if (directory / "began").exists() else None


def waits(directory: Path, other: Path) -> None:
    wait_for(other)
    finishes(directory)


def watch(directory: Path) -> None:
    """A command that watches over a job."""
    job = Job("saves", 0, directory, "h", partial(saves, directory), print)
    JobRunner([{}], print, 0).run([job])
