"""Children forked from a process that has imported everything: a fresh process in milliseconds, to kill at will."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its thread pool does not survive a fork

LATE = [
    *(f"babylm_train.{name}" for name in ("build", "runner", "trainer", "data.tokenizer", "optim", "curriculum.hindi")),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "qwen3")),
    *("matplotlib.backends.backend_agg", "pandas", "pyarrow.parquet"),
]
MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for thousands of small files
TINY = ("model.config.n_layer=1", "model.config.n_embd=16", "model.config.n_head=2", "tokenizer.vocab_size=300")
SMALL = (*TINY, "data.max_length=16", "trainer.max_steps=2", "logger=none", "hydra.run.dir=out", "data.cache_dir=cache")


def plain(value: Any) -> Any:
    """Nested containers as lists, each tensor as its type, shape and bytes: what can be compared and hashed."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return [(key, plain(v)) for key, v in sorted(value.items(), key=lambda item: str(item[0]))]
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def load_damaged(path: Path, times: int, rng: random.Random) -> Iterator[str]:
    """How `path`, a checkpoint, is read with a flipped bit, or cut short: refused, intact, or (never) silent."""
    from babylm_train.checkpoint import load
    from babylm_train.errors import InputError

    raw, whole = path.read_bytes(), plain(load(path))
    for _ in range(times):
        damaged = bytearray(raw)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(raw)) :]
        else:
            damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            yield "intact" if plain(load(path)) == whole else "silent"
        except InputError:
            yield "refused"


def import_all() -> None:
    """What a run imports late, once, before anything is forked."""
    for name in LATE:
        importlib.import_module(name)


def command(arguments: list[str], cwd: Path, said: Path, **environment: str) -> Child:
    """`python -m babylm_train` with `arguments` in `cwd`, its output in the folder `said`."""

    def job() -> None:
        os.chdir(cwd)
        os.environ.update(environment)
        sys.argv = ["babylm-train", *arguments]
        importlib.import_module("babylm_train.cli").main()

    return Child(job, said)


class Child:
    """Runs `job()` in a process group of its own, its output in files `folder/out` and `folder/err`."""

    def __init__(self, job: Callable[[], object], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("out", "err"):
            (folder / name).write_bytes(b"")
        self.folder, self.began = folder, time.monotonic()
        self.process = multiprocessing.get_context("fork").Process(target=self._become, args=(job,))
        self.process.start()

    def _become(self, job: Callable[[], object]) -> None:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(self.folder / name, os.O_WRONLY), number)
        # pytest may have put objects of its own there
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf8", closefd=False) for n in (1, 2))  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        tqdm.set_lock(threading.RLock())  # else one killed inside the lock that a fork shares stops all others
        job()

    def poll(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        if self.process.exitcode is not None and not hasattr(self, "code"):
            self.code, self.seconds = self.process.exitcode, time.monotonic() - self.began
        return self.process.exitcode

    def wait(self, timeout: float = 200.0) -> int:
        """The exit code; a child that hangs is killed, and that is a TimeoutError."""
        self.process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s; it had said: {self.err}")
        return self.code

    def wait_until(self, reached: Callable[[], bool]) -> None:
        while self.poll() is None and not reached():
            time.sleep(0.0005)

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> int:
        """SIGKILL to the whole group."""
        if self.poll() is None:
            is_leader = os.getpgid(self.process.pid) == self.process.pid
            (os.killpg if is_leader else os.kill)(self.process.pid, signal.SIGKILL)
        return self.wait()

    out = property(lambda self: (self.folder / "out").read_text(encoding="utf8", errors="replace"))
    err = property(lambda self: (self.folder / "err").read_text(encoding="utf8", errors="replace"))
