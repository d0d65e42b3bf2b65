"""Minimal pairs: files of them, and how often a model prefers the good sentence."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from babylm_train.data.text import read_lines
from babylm_train.errors import InputError
from babylm_train.evaluation.likelihood import token_log_probabilities, too_long
from babylm_train.state import MinimalPair

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

GOOD, BAD = ("good", "sentence_good", "sen"), ("bad", "sentence_bad", "wrong_sen")
PHENOMENON = ("phenomenon", "UID", "field")
RESAMPLES = 10_000
ALL = "all"  # pairs, whatever their phenomenon
QUOTED = re.compile('"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Accuracy:
    """Share of `n` pairs that are right, a tie a half, and its 95 % bootstrap interval over pairs."""

    n: int
    accuracy: float
    low: float
    high: float


def read_pairs(pattern: str) -> list[MinimalPair]:
    """The pairs of a file or of all that a glob names: JSON lines, or .tsv with a header; either may end in .gz.

    Fields: `good` and `bad`, BLiMP's `sentence_good` and `sentence_bad`, or MultiBLiMP's `sen` and `wrong_sen`;
    `phenomenon`, or else `UID`, `field`, or the file's name. The quotes in a .tsv are its writer's, as pandas sets
    them, where every field that begins with one is quoted properly; else they are text.

    Raises:
        InputError: naming the file and the line.
    """
    paths = [Path(pattern)] if Path(pattern).is_file() else [Path(p) for p in sorted(glob.glob(pattern))]
    if not paths:
        raise InputError(f"pairs: no such file: {pattern}")
    found = [_pair(fields, path, number) for path in paths for number, fields in _records(path)]
    if not found:
        raise InputError(f"{pattern} holds no pair")
    return found


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """What each line holds, with its number."""
    lines = read_lines(path)
    if not path.name.endswith((".tsv", ".tsv.gz")):
        yield from ((number, _object(line, path, number)) for number, line in lines if line.strip())
        return
    rows = [line.rstrip("\r\n") for _, line in lines]
    opened = [field for row in rows for field in row.split("\t") if field.startswith('"')]
    quoted = all(map(QUOTED.fullmatch, opened))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        yield from enumerate(csv.DictReader(rows, delimiter="\t", quoting=quoting), 2)
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from error


def _object(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: no JSON: {error.msg}") from error


def _pair(fields: Any, path: Path, number: int) -> MinimalPair:
    if not isinstance(fields, dict):
        raise InputError(f"{path}, line {number}: not an object")
    chosen = []
    for names in (GOOD, BAD):
        text = next((fields[name] for name in names if isinstance(fields.get(name), str)), "")
        if not text.strip():
            there = ", ".join(str(name) for name in fields if name)
            raise InputError(f"{path}, line {number}: no text under {' or '.join(names)}; there are: {there}")
        chosen.append(text)
    name = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    phenomenon = str(next((fields[name] for name in PHENOMENON if fields.get(name)), name))
    if phenomenon == ALL:
        raise InputError(f"{path}, line {number}: a phenomenon named {ALL}: so the accuracy over all pairs is called")
    return MinimalPair(chosen[0], chosen[1], phenomenon)


def prefer_good(good: float, bad: float) -> float:
    """1 where the good sentence is the more probable one, 0 where the bad one is, a half for a tie."""
    return 0.5 if good == bad else float(good > bad)


def judge(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], **options: Any
) -> dict[str, np.ndarray]:
    """1, 0 or a half a pair, shape (pairs,), by the `summed` log-probability and by its mean `per_token`.

    Args:
        options: of token_log_probabilities.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    tokens = token_log_probabilities(model, tokenizer, texts, **options)
    variants = {"summed": [float(t.sum()) for t in tokens], "per_token": [float(t.mean()) for t in tokens]}
    return {
        name: np.array([prefer_good(good, bad) for good, bad in zip(scores[::2], scores[1::2], strict=True)])
        for name, scores in variants.items()
    }


def score_pairs(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], **options: Any
) -> dict[str, float]:
    """Accuracy by phenomenon and over `all` pairs: the share with the more probable good sentence; a tie is half."""
    hits = judge(model, tokenizer, pairs, **options)["summed"]
    return {name: float(hits[index].mean()) for name, index in by_phenomenon(pairs).items()}


def texts_cut(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], backend: str = "causal", closing: bool = True
) -> int:
    """How many sentences of `pairs` are longer than the model's positions and are cut before they are scored."""
    return too_long(tokenizer, [text for pair in pairs for text in (pair.good, pair.bad)], backend, closing)


def by_phenomenon(pairs: Sequence[MinimalPair]) -> dict[str, np.ndarray]:
    """Indices of the pairs of each phenomenon, by name, and of `all`."""
    names = np.array([pair.phenomenon for pair in pairs])
    return {ALL: np.arange(len(pairs)), **{str(name): np.flatnonzero(names == name) for name in np.unique(names)}}


def intervals(hits: np.ndarray, groups: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Accuracy]:
    """The accuracy of each group of pairs with its percentile bootstrap interval (Efron 1979), seeded.

    Args:
        hits: 1, 0 or a half a pair. groups: indices of pairs by name.
    """
    found = {}
    for number, (name, index) in enumerate(groups.items()):
        values, counts = np.unique(hits[index], return_counts=True)
        rng = np.random.default_rng([seed, number])
        # Drawing pairs with replacement draws how often each value comes: a multinomial.
        means = rng.multinomial(len(index), counts / len(index), RESAMPLES) @ values / len(index)
        low, high = np.quantile(means, (0.025, 0.975))
        found[name] = Accuracy(len(index), float(hits[index].mean()), float(low), float(high))
    return found
