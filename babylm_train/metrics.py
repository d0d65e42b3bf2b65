"""The record of a run: metrics.jsonl, timings.jsonl, result.json and curves.png in its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from babylm_train.errors import InputError, StorageError
from babylm_train.files import write_json


class Record:
    """Writes a run's record, a line at a time.

    metrics.jsonl holds only what a repeated run reproduces to the bit; wall-clock figures go to timings.jsonl.

    Args:
        directory: of the run; created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.metrics = self.directory / "metrics.jsonl"
        self.timings = self.directory / "timings.jsonl"

    def start(self, offset: int = 0) -> None:
        """Begins, or goes on after `offset` bytes of metrics.jsonl; what a killed run wrote later is cut off.

        Raises:
            InputError: metrics.jsonl is shorter than the checkpoint says. StorageError: it cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("ab") as file:
                if file.tell() < offset:
                    raise InputError(
                        f"{self.metrics} has {file.tell()} bytes, but its checkpoint was taken at byte {offset}"
                    )
                file.truncate(offset)
        except OSError as error:
            raise StorageError(f"cannot write {self.metrics}: {error.strerror}") from error

    def offset(self) -> int:
        """Bytes of metrics.jsonl, all of them on disk: what a checkpoint remembers."""
        if not self.metrics.exists():
            return 0
        with self.metrics.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl."""
        self._append(self.metrics, values)

    def time(self, **values: Any) -> None:
        """Appends one line to timings.jsonl."""
        self._append(self.timings, values)

    def result(self, values: dict[str, Any]) -> None:
        """Writes result.json, by rename."""
        write_json(self.directory / "result.json", values)

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf8").splitlines()]

    def curves(self) -> Path:
        """Draws curves.png: losses, perplexity, learning rate and gradient norm over updates."""
        try:
            return draw_curves(self.lines(), self.directory / "curves.png")
        except OSError as error:
            raise StorageError(f"cannot write {self.directory / 'curves.png'}: {error.strerror}") from error

    @staticmethod
    def _append(path: Path, values: dict[str, Any]) -> None:
        try:
            with path.open("a", encoding="utf8") as file:
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error


def draw_curves(lines: list[dict[str, Any]], path: Path) -> Path:
    """The four curves of a run's metrics as a PNG of 1200 x 800 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2)

    def draw(axis: Any, key: str, label: str, **style: Any) -> None:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, **style)

    draw(panels[0, 0], "train/loss", "training", linewidth=1)
    draw(panels[0, 0], "val/loss", "validation", marker="o", markersize=3)
    panels[0, 0].set_ylabel("loss (nats a token)")
    draw(panels[0, 1], "val/perplexity", "validation", marker="o", markersize=3)
    panels[0, 1].set(ylabel="perplexity", yscale="log")
    draw(panels[1, 0], "learning_rate", "learning rate")
    panels[1, 0].set_ylabel("learning rate")
    draw(panels[1, 1], "grad_norm", "before clipping", linewidth=1)
    panels[1, 1].set_ylabel("gradient norm")
    for axis in panels.flat:
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.savefig(path)
    return path
