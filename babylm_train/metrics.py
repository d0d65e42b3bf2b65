"""The record of a run: metrics.jsonl, timings.jsonl and curves.png in its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from babylm_train.errors import InputError
from babylm_train.files import read_lines, replaced, storage_errors


class Record:
    """Writes a run's record, a line at a time.

    metrics.jsonl holds only what a repeated run reproduces to the bit; wall-clock figures go to timings.jsonl. A file
    that is gone is not begun again: a run whose directory was deleted ends with a StorageError.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.metrics = self.directory / "metrics.jsonl"
        self.timings = self.directory / "timings.jsonl"

    def start(self, offset: int = 0) -> None:
        """Begins, or goes on after `offset` bytes of metrics.jsonl; what a killed run wrote later is cut off.

        Raises InputError: metrics.jsonl is damaged, or not what the checkpoint was taken with; StorageError.
        """
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with self.timings.open("ab+") as file:  # a line that a full disk cut would spoil the next one
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            with self.metrics.open("ab+") as file:
                file.seek(max(offset - 1, 0))
                if offset and file.read(1) != b"\n":
                    raise InputError(f"{self.metrics}: no line ends at byte {offset}, where its checkpoint was taken")
                file.truncate(offset)
        self.lines()

    def offset(self) -> int:
        """Bytes of metrics.jsonl, all of them on disk: what a checkpoint remembers. Raises StorageError."""
        with storage_errors(self.metrics), self.metrics.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl. Raises StorageError."""
        _append(self.metrics, values)

    def time(self, **values: Any) -> None:
        """Appends one line to timings.jsonl. Raises StorageError."""
        _append(self.timings, values)

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far. Raises StorageError: the file is gone. InputError: it is damaged."""
        with storage_errors(self.metrics):
            self.metrics.stat()
        return read_lines(self.metrics, dict[str, Any])


class NoRecord(Record):
    """Of a process that writes nothing."""

    def start(self, offset: int = 0) -> None:
        pass

    def offset(self) -> int:
        return 0

    def log(self, **values: Any) -> None:
        pass

    time = log


def _append(path: Path, values: dict[str, Any]) -> None:
    line = json.dumps(values, ensure_ascii=False) + "\n"
    with storage_errors(path), path.open("r+", encoding="utf8") as file:
        file.seek(0, os.SEEK_END)
        file.write(line)


PANELS = (
    ("loss (nats a token)", {"train/loss": "training", "val/loss": "validation"}),
    ("learning rate", {"learning_rate": "learning rate"}),
    ("curriculum threshold", {"threshold": "share of the corpus admitted"}),
    ("gradient norm before clipping", {"grad_norm": "gradient norm"}),
)


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """A PNG of loss, learning rate, threshold and gradient norm over updates, from lines of metrics.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    epochs = [line["step"] for line in lines if "curriculum/documents" in line]  # logged as an epoch begins
    for axis, (label, curves) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for step in epochs:
            axis.axvline(step, color="0.85", linewidth=1, zorder=0)
        for key, name in curves.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else "", linewidth=1)
        axis.set(xlabel="update (grey: an epoch begins)", ylabel=label)
        axis.grid(axis="y", alpha=0.3)
        if len(axis.lines) > len(epochs) + 1:
            axis.legend()
    with replaced(path) as aside:
        figure.savefig(aside, format="png")
