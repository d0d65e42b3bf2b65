"""How difficult the strategies find a corpus: `python -m babylm_train.difficulty [out=DIR] [overrides as for a run]`.

Writes difficulty.txt, by default to multirun_outputs/difficulty/: the distribution of each strategy's scores, the rank
correlation between strategies and with length, and the easiest, median and hardest documents. Overrides of
curriculum.strategy apply to the strategy that is chosen; the others have their defaults.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from babylm_train.command import CommandLine, start
from babylm_train.errors import InputError, one_line, printable
from babylm_train.files import storage_errors
from babylm_train.tools.plan import compose_one

SHOWN = 10  # documents at each place of the sample
WIDTH = 160  # characters of a document in it


@dataclass(frozen=True)
class Options:
    """out: the folder that the file goes to."""

    out: Annotated[str, Field(min_length=1)] = "multirun_outputs/difficulty"


def describe_scores(scores: Mapping[str, np.ndarray], documents: Sequence[str], words: np.ndarray) -> str:
    """Quantiles and Spearman's rank correlations of the scores; then documents, one a line: score, words, beginning."""
    columns = pd.DataFrame({**scores, "words": words})
    lines = [f"{len(documents):,} documents, {int(words.sum()):,} words", "", "== quantiles"]
    lines += [columns.quantile([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]).to_string(float_format="%.4g")]
    lines += ["", "== rank correlation (Spearman)", columns.corr("spearman").to_string(float_format="%.2f")]
    middle = max((len(documents) - SHOWN) // 2, 0)
    places = {"easiest": slice(SHOWN), "median": slice(middle, middle + SHOWN), "hardest": slice(-SHOWN, None)}
    for name, values in scores.items():
        order = np.argsort(values, kind="stable")
        for place, chosen in places.items():
            lines += ["", f"== {name}, {place} (under reverse: true the other way round)"]
            for i in order[chosen]:
                text = textwrap.shorten(documents[int(i)], WIDTH, placeholder=" …")
                lines.append(f"{values[i]:10.4f} {words[i]:7,d}  {printable(text)}")
    return "\n".join(lines) + "\n"


def write_difficulty(line: CommandLine) -> None:
    """Scores the training documents, from the cache where a run has scored them, and writes the file."""
    from babylm_train import build
    from babylm_train.curriculum.strategy import Curriculum, score_documents
    from babylm_train.data.corpus import describe

    parts = build.build_parts(compose_one(line))
    corpus, scores = parts.data.load(), {}
    print(describe(corpus), flush=True)
    chosen = parts.curriculum.strategy
    ours = [kind for kind in Curriculum.__subclasses__() if kind.__module__ == Curriculum.__module__]
    others = [kind() for kind in ours if kind.name != chosen.name and not kind.adaptive]  # `dynamic` ranks as its base
    for strategy in [chosen, *others]:
        if strategy.ranks:
            try:
                scores[strategy.name] = score_documents(strategy, corpus.train, parts.data.cache_dir)
            except InputError as error:
                print(f"{strategy.name} is left out: {one_line(error)}", flush=True)
    path = Path(line.options.out) / "difficulty.txt"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(describe_scores(scores, corpus.train, corpus.train.words), encoding="utf8")
    print(path)


def main() -> None:
    """The command."""
    start(write_difficulty, __doc__ or "", Options, overrides=True)
