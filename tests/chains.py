"""Runs that are killed, again and again, and compared with one that nobody touched."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from failpoints import KILL, Failpoints
from forked import Child, plain

KINDS = ("moment", "failpoint", "resumed")


class Run:
    """One directory, in which the same work is started again; the lines of a file in it tell how far it has come."""

    seconds = 1.6  # that it takes
    progress = "metrics.jsonl"

    def __init__(self, directory: Path) -> None:
        self.directory, self.lines_file = directory, directory / self.progress

    def work(self) -> dict[str, Any]:
        """Goes on from what is there to the end; what must not depend on kills."""
        raise NotImplementedError

    def start(self, failpoint: int | None = None) -> Child:
        def job() -> None:
            with Failpoints(self.directory / "checkpoints", failpoint, KILL) as points:
                parts = self.work()
            hashes = {name: hashlib.sha256(repr(plain(part)).encode()).hexdigest() for name, part in parts.items()}
            (self.directory / "outcome").write_text(json.dumps([hashes, len(points.steps)]))

        return Child(job, self.directory.with_name(f"{self.directory.name} said"))

    def start_and_wait(self, lines: int, pause: float) -> Child:
        """A start that has come `lines` further `pause` seconds ago, or is over."""
        child, goal = self.start(), self.lines() + lines
        child.wait_until(lambda: self.lines() >= goal)
        time.sleep(pause)
        return child

    def finish(self) -> Child:
        """A start that is left alone, and ends well."""
        child = self.start()
        if child.wait():
            raise SystemExit(f"{self.directory}: {child.err}")
        return child

    def lines(self) -> int:
        return self.lines_file.read_bytes().count(b"\n") if self.lines_file.exists() else 0

    def outcome(self) -> tuple[dict[str, str], int]:
        """Its hashes, none where it has not ended, and the steps of writing its checkpoints."""
        path = self.directory / "outcome"
        found: tuple[dict[str, str], int] = json.loads(path.read_text()) if path.exists() else ({}, 0)
        return found

    def differs(self, control: Run) -> list[str]:
        mine, theirs = self.outcome()[0], control.outcome()[0]
        return [name for name in theirs if mine.get(name) != theirs[name]]


def kill(run: Run, kind: str, rng: random.Random, steps: int) -> bool:
    """One SIGKILL; False where the run was over before it came."""
    if kind == "failpoint":
        return run.start(rng.randrange(steps)).wait() == -signal.SIGKILL
    if kind == "moment":  # any: as it starts, an update, a checkpoint, the export
        return run.start_and_wait(0, rng.uniform(0, run.seconds)).kill() == -signal.SIGKILL
    return run.start_and_wait(rng.randint(1, 8), rng.uniform(0, 0.01)).kill() == -signal.SIGKILL


def chain(run: Run, control: Run, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Three kills of one run, one of each kind, and the run that goes to the end; (kills by kind, what differs)."""
    kills: Counter[str] = Counter()
    for kind in KINDS:
        while not kill(run, kind, rng, control.outcome()[1]):
            if differs := run.differs(control):  # it had ended: it must be right, and the kill hits another one
                return kills, differs
            shutil.rmtree(run.directory)
        kills[kind] += 1
    run.finish()
    if not (differs := run.differs(control)):
        shutil.rmtree(run.directory)
    return kills, differs
