"""An objective that breaks its own job, in every way a job can break."""

import os
import signal
import sys
import time
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from babylm_train.objective import CausalObjective


class Faulty(CausalObjective):
    """What `job` does at its first batch: 1 raises, 2 calls os._exit, 3 is killed, 4 makes a NaN, 5 hangs, 6 exits, 8 lives on
    for a minute after its result is written; else nothing. While the file that SLOW names is there, a batch takes a second.
    """

    def __init__(self, job: int) -> None:
        self.job = job

    def __call__(self, model, batch):
        if self.job == 1:
            raise KeyError("no such thing")
        if self.job == 2:
            os._exit(7)
        if self.job == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.job == 5:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(1000)
        if self.job == 6:
            sys.exit(9)
        if self.job == 8:
            Finalize(None, time.sleep, args=(60,), exitpriority=0)
        if Path(os.environ.get("SLOW", os.devnull)).is_file():
            time.sleep(1)
        loss = super().__call__(model, batch)
        return loss * torch.nan if self.job == 4 else loss


def deaf() -> float:
    """A job that does not hear SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
    return 0.0
