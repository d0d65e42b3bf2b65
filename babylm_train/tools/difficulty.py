"""How difficult the strategies find a corpus: `python -m babylm_train.difficulty [out=DIR] [overrides as for a run]`.

Writes difficulty.png (the distribution of each strategy's scores, and the rank correlation between strategies and with
length) and difficulty.txt (the easiest, median and hardest documents), by default to multirun_outputs/difficulty/.
Overrides of curriculum.strategy apply to the strategy that is chosen; the others have their fragments' values.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from babylm_train.errors import InputError, RunError, StorageError, fail

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path("multirun_outputs/difficulty")
SHOWN = 10  # documents at each place of the sample
WIDTH = 160  # characters of a document in it
WORDS = "words"  # length itself, beside the strategies


def merge_equal(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strategies whose scores are the same, under one name: `combined, dynamic`."""
    names: list[list[str]] = []
    for name, values in scores.items():
        same = next((group for group in names if np.array_equal(scores[group[0]], values)), None)
        if same is None:
            names.append([name])
        else:
            same.append(name)
    return {", ".join(group): scores[group[0]] for group in names}


def rank_correlations(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Spearman's rank correlation of each pair of columns, shape (K, K); NaN for a column of equal values."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(values) for values in columns.values()])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.corrcoef(ranks).reshape(len(ranks), len(ranks))


def sample(scores: Mapping[str, np.ndarray], documents: Sequence[str], words: np.ndarray) -> str:
    """The easiest, median and hardest documents of each strategy, one a line: score, words, text.

    Args:
        scores: one array of shape (N,) a strategy. documents: N texts. words: of each document, shape (N,).
    """
    lines = [
        f"{len(documents):,} documents, {int(words.sum()):,} words; score, words and beginning of each document",
        "easiest: ranked first (under reverse: true these are the hardest)",
    ]
    for name, values in scores.items():
        order = np.argsort(values, kind="stable")
        lines += ["", f"== {name}"]
        for place, chosen in places(order).items():
            lines += ["", f"-- {place}"]
            lines += [f"{values[i]:10.4f} {words[i]:7,d}  {shorten(documents[int(i)])}" for i in chosen]
    return "\n".join(lines) + "\n"


def places(order: np.ndarray) -> dict[str, np.ndarray]:
    """The first, middle and last SHOWN of an order, easiest first; short orders overlap."""
    middle = max((len(order) - SHOWN) // 2, 0)
    return {
        "easiest": order[:SHOWN],
        "median": order[middle : middle + SHOWN],
        "hardest": order[-SHOWN:],
    }


def shorten(text: str) -> str:
    """A document on one line, cut between words at WIDTH characters."""
    from babylm_train.errors import printable

    line = " ".join(text.split())
    if len(line) > WIDTH:
        line = line[:WIDTH].rsplit(" ", 1)[0] + " …"
    return printable(line)


def draw(scores: Mapping[str, np.ndarray], words: np.ndarray) -> Figure:
    """A histogram a strategy and the heatmap of rank correlations, as a figure 1500 pixels wide."""
    from matplotlib.figure import Figure

    rows = -(-len(scores) // 2)
    figure = Figure(figsize=(15, max(2.3 * rows, 6.0)), dpi=100, layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    left, right = panels
    caption = "lines: median, deciles 1 and 9; the outer 0.5 % are drawn at the edges"
    left.suptitle(f"difficulty of {len(words):,} documents\n{caption}", fontsize=11)
    axes = left.subplots(rows, 2, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        _histogram(axis, name, values)
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    right.suptitle("rank correlation (Spearman)", fontsize=11)
    _heatmap(right.subplots(), {**scores, WORDS: words})
    return figure


def _histogram(axis: Any, name: str, values: np.ndarray) -> None:
    low, high = np.quantile(values, [0.005, 0.995])
    axis.hist(np.clip(values, low, high), bins=50, color="tab:blue", alpha=0.75)
    for share, style in ((0.1, ":"), (0.5, "-"), (0.9, ":")):
        axis.axvline(np.quantile(values, share), color="black", linewidth=1, linestyle=style)
    axis.set_title(name, fontsize=11)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    least, middle, most = np.quantile(values, [0, 0.5, 1])
    axis.set_xlabel(f"min {least:,.4g}   median {middle:,.4g}   max {most:,.4g}", fontsize=9)
    axis.tick_params(labelsize=8)


def _heatmap(axis: Any, columns: Mapping[str, np.ndarray]) -> None:
    matrix, names = rank_correlations(columns), [name.replace(", ", ",\n") for name in columns]
    axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.tick_params(length=0)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        text = "-" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        colour = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def write(
    directory: Path, scores: Mapping[str, np.ndarray], documents: Sequence[str], words: np.ndarray
) -> tuple[Path, Path]:
    """Writes both files.

    Raises:
        StorageError: the directory is not writable or full.
    """
    picture, text = directory / "difficulty.png", directory / "difficulty.txt"
    merged = merge_equal(scores)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draw(merged, words).savefig(picture)
        text.write_text(sample(merged, documents, words), encoding="utf8")
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from error
    return picture, text


def out_directory(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Takes `out=DIR` from the arguments: the directory, and the overrides that are left.

    Raises:
        InputError: it is given without a directory.
    """
    given = [a.removeprefix("out=") for a in arguments if a.startswith("out=")]
    if "" in given:
        raise InputError("out= needs a directory")
    return Path(given[-1]) if given else OUT, [a for a in arguments if not a.startswith("out=")]


def strategies(overrides: Sequence[str], config_dir: str | None = None) -> tuple[Any, dict[str, Any]]:
    """What the overrides compose, built, and every strategy that ranks: the chosen one, and each fragment of conf/.

    Raises:
        InputError: as for a run; or it asks for a sweep.
    """
    from babylm_train import build, config

    configs = config.check_command_line(overrides, config_dir=config_dir)
    if len(configs) > 1:
        raise InputError("babylm_train.difficulty looks at one configuration, not at a sweep")
    group = "curriculum/strategy"
    chosen = configs[0].hydra.runtime.choices[group]
    built = build.parts(configs[0])
    found = {}
    others = [o for o in overrides if not o.lstrip("+~").startswith((f"{group}=", "curriculum.strategy."))]
    for name in sorted({p.stem for p in (config.CONF / group).glob("*.yaml")} | {chosen}):
        if name == chosen:
            strategy = built.curriculum.strategy
        else:
            (other,) = config.check_command_line([*others, f"{group}={name}"], config_dir=config_dir)
            strategy = build.parts(other).curriculum.strategy
        if strategy.ranks:
            found[name] = strategy
    return built, found


def main() -> None:
    """Scores the training documents, from the cache where a run has scored them, and writes the two files."""
    from hydra._internal.utils import get_args_parser

    from babylm_train.curriculum.scores import difficulty
    from babylm_train.data.corpus import describe

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        directory, arguments = out_directory(sys.argv[1:])
        args = get_args_parser().parse_args(arguments)
        built, found = strategies(args.overrides, args.config_dir)
        source = built.source
        corpus = source.load()
        print(describe(corpus), flush=True)
        scores = {
            name: difficulty(strategy, corpus.train, corpus.train.fingerprint, source.cache_dir)
            for name, strategy in found.items()
        }
        for path in write(directory, scores, corpus.train, corpus.train.words):
            print(path)
    except RunError as error:
        fail(error)


if __name__ == "__main__":
    main()
