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

from babylm_train.data.read import read_lines
from babylm_train.errors import InputError
from babylm_train.evaluation.likelihood import encode, token_log_probabilities
from babylm_train.files import check_record
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

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def read_pairs(pattern: str) -> list[MinimalPair]:
    """The pairs of a file or of all that a glob names: JSON lines, or .tsv with a header; either may end in .gz.

    Fields: `good` and `bad`, BLiMP's `sentence_good` and `sentence_bad`, or MultiBLiMP's `sen` and `wrong_sen`;
    `phenomenon`, or else `UID`, `field`, or the file's name. The quotes in a .tsv are its writer's, as pandas sets
    them, where every field that begins with one is quoted properly; else they are text.

    Raises:
        InputError: naming the file and the line.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern))]
    if not paths:
        raise InputError(f"pairs: no such file: {pattern}")
    if others := [path for path in paths if not path.is_file()]:  # reading a pipe or a device need not end
        raise InputError(f"pairs: {others[0]} is no regular file")
    found = [_pair(fields, f"{path}, line {n}", path.name) for path in paths for n, fields in _records(path)]
    if not found:
        raise InputError(f"{pattern} holds no pair")
    return found


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """What each line holds, with its number."""
    lines = read_lines(path)
    try:
        if not path.name.endswith((".tsv", ".tsv.gz")):
            for number, line in lines:
                if line.strip():
                    yield number, json.loads(line)
            return
        rows = [line.rstrip("\r\n") for _, line in lines]
        opened = [field for row in rows for field in row.split("\t") if field.startswith('"')]
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if all(map(QUOTED.fullmatch, opened)) else csv.QUOTE_NONE
        yield from enumerate(csv.DictReader(rows, delimiter="\t", quoting=quoting), 2)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: no JSON: {error}") from error
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from error


def _pair(fields: Any, where: str, name: str) -> MinimalPair:
    fields = check_record(fields, dict[Any, Any], where)
    chosen = []
    for names in (GOOD, BAD):
        text = next((fields[name] for name in names if isinstance(fields.get(name), str)), "")
        if not text.strip():
            there = ", ".join(str(name) for name in fields if name)[:200]
            raise InputError(f"{where}: no text under {' or '.join(names)}; there are: {there}")
        chosen.append(text)
    of_file = name.removesuffix(".gz").rpartition(".")[0] or name
    phenomenon = str(next((fields[key] for key in PHENOMENON if fields.get(key)), of_file))
    if phenomenon == ALL:
        raise InputError(f"{where}: a phenomenon named {ALL}: so the accuracy over all pairs is called")
    return MinimalPair(chosen[0], chosen[1], phenomenon)


def judge(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], **options: Any
) -> dict[str, np.ndarray]:
    """1, 0 or, for a tie, a half a pair, shape (pairs,): by the `summed` log-probability and by its mean `per_token`.

    Args:
        options: of token_log_probabilities.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    tokens = token_log_probabilities(model, tokenizer, texts, **options)
    found = {}
    for variant, scores in {"summed": [t.sum() for t in tokens], "per_token": [t.mean() for t in tokens]}.items():
        good, bad = np.array(scores).reshape(-1, 2).T
        found[variant] = (good > bad) + 0.5 * (good == bad)
    return found


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
    causal, texts = backend == "causal", [text for pair in pairs for text in (pair.good, pair.bad)]
    limit = tokenizer.model_max_length + causal
    return sum(len(row) > limit for row in encode(tokenizer, texts, causal and closing))


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
