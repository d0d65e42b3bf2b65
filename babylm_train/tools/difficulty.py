"""How difficult the strategies find a corpus: `python -m babylm_train.difficulty [out=DIR] [overrides as for a run]`.

Writes difficulty.png (the distribution of each strategy's scores, and the rank correlation between strategies and with
length) and difficulty.txt (the easiest, median and hardest documents), by default to multirun_outputs/difficulty/.
Overrides of curriculum.strategy apply to the strategy that is chosen; the others have their defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from babylm_train.command import CommandLine, start
from babylm_train.errors import InputError, printable
from babylm_train.files import storage_errors
from babylm_train.tools import compose_one

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 10  # documents at each place of the sample
WIDTH = 160  # characters of a document in it


@dataclass(frozen=True)
class Options:
    """out: the folder that the two files go to."""

    out: Annotated[str, Field(min_length=1)] = "multirun_outputs/difficulty"


def merge_equal(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strategies whose scores are the same, under one name: `combined, dynamic`."""
    names: dict[bytes, list[str]] = {}
    for name, values in scores.items():
        names.setdefault(values.tobytes(), []).append(name)
    return {", ".join(same): scores[same[0]] for same in names.values()}


def sample(scores: Mapping[str, np.ndarray], documents: Sequence[str], words: np.ndarray) -> str:
    """The easiest, median and hardest documents of each strategy, one a line: score, words, text.

    Args:
        scores: one array of shape (N,) a strategy. documents: N texts. words: of each document, shape (N,).
    """
    lines = [
        f"{len(documents):,} documents, {int(words.sum()):,} words; score, words and beginning of each document",
        "easiest: ranked first (under reverse: true these are the hardest)",
    ]
    middle = max((len(documents) - SHOWN) // 2, 0)
    places = {"easiest": slice(SHOWN), "median": slice(middle, middle + SHOWN), "hardest": slice(-SHOWN, None)}
    for name, values in scores.items():
        order = np.argsort(values, kind="stable")
        lines += ["", f"== {name}"]
        for place, chosen in places.items():
            lines += ["", f"-- {place}"]
            lines += [f"{values[i]:10.4f} {words[i]:7,d}  {_shorten(documents[int(i)])}" for i in order[chosen]]
    return "\n".join(lines) + "\n"


def _shorten(text: str) -> str:
    """A document on one line, cut between words at WIDTH characters."""
    line = " ".join(text.split())
    return printable(line if len(line) <= WIDTH else line[:WIDTH].rsplit(" ", 1)[0] + " …")


def draw(scores: Mapping[str, np.ndarray], words: np.ndarray) -> Figure:
    """A histogram a strategy and the heatmap of Spearman's rank correlations, as a figure 1500 pixels wide."""
    from matplotlib.figure import Figure

    rows = -(-len(scores) // 2)
    figure = Figure(figsize=(15, max(2.3 * rows, 6.0)), dpi=100, layout="constrained")
    panels: Any = figure.subfigures(1, 2)
    panels[0].suptitle(f"difficulty of {len(words):,} documents; lines: median, deciles 1 and 9")
    for axis, (name, values) in zip(panels[0].subplots(rows, 2, squeeze=False).ravel(), scores.items(), strict=False):
        low, *lines, high = np.quantile(values, [0.005, 0.1, 0.5, 0.9, 0.995])
        axis.hist(np.clip(values, low, high), bins=50)  # the outer 0.5 % at the edges
        axis.vlines(lines, 0, 1, color="black", linewidth=1, transform=axis.get_xaxis_transform())
        axis.set(title=name, yticks=[])
    panels[1].suptitle("rank correlation (Spearman)")
    columns = pd.DataFrame({**scores, "words": words})
    matrix, axis = columns.corr("spearman").to_numpy(), panels[1].subplots()
    axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(matrix)), columns, rotation=40, ha="right")
    axis.set_yticks(range(len(matrix)), columns)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
    return figure


def write(directory: Path, scores: Mapping[str, np.ndarray], documents: Sequence[str], words: np.ndarray) -> list[Path]:
    """Writes both files. Raises StorageError: the directory is not writable or full."""
    paths, merged = [directory / "difficulty.png", directory / "difficulty.txt"], merge_equal(scores)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        draw(merged, words).savefig(paths[0])
        paths[1].write_text(sample(merged, documents, words), encoding="utf8")
    return paths


def write_difficulty(line: CommandLine) -> None:
    """Scores the training documents, from the cache where a run has scored them, and writes the two files."""
    from babylm_train import build
    from babylm_train.curriculum.strategy import Curriculum, score_documents
    from babylm_train.data.corpus import describe

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parts = build.build_parts(compose_one(line))
    corpus, scores = parts.data.load(), {}
    print(describe(corpus), flush=True)
    chosen = parts.curriculum.strategy
    ours = [kind for kind in Curriculum.__subclasses__() if kind.__module__ == Curriculum.__module__]
    for strategy in [chosen, *(kind() for kind in ours if kind.name != chosen.name)]:
        if strategy.ranks:
            try:
                scores[strategy.name] = score_documents(strategy, corpus.train, parts.data.cache_dir)
            except InputError as error:
                print(f"{strategy.name} is left out: {error}", flush=True)
    print(*write(Path(line.options.out), scores, corpus.train, corpus.train.words), sep="\n")


def main() -> None:
    """The command."""
    start(write_difficulty, __doc__ or "", Options, overrides=True)
