"""Minimal pairs: files of them, and how often a model prefers the good sentence."""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from babylm_train.data.read import find_files, kind_of, read_json_lines, read_lines
from babylm_train.errors import InputError
from babylm_train.evaluation.likelihood import encode, token_log_probabilities
from babylm_train.files import check_record
from babylm_train.state import MinimalPair

GOOD, BAD = ("good", "sentence_good", "sen"), ("bad", "sentence_bad", "wrong_sen")
PHENOMENON = ("phenomenon", "UID", "field")
Z = 1.959964  # standard deviations that hold 95 % of a normal distribution
ALL = "all"  # pairs, whatever their phenomenon
QUOTED = re.compile('"(?:[^"]|"")*"')


def read_pairs(pattern: str, key: str = "pairs") -> list[MinimalPair]:
    """The pairs of a file or of all that a glob names: JSON lines, or .tsv with a header; either may be packed.

    Fields: `good` and `bad`, BLiMP's `sentence_good` and `sentence_bad`, or MultiBLiMP's `sen` and `wrong_sen`;
    `phenomenon`, or else `UID`, `field`, or the file's name. Raises InputError, naming the file and the line.
    """
    paths = find_files(key, pattern, (".jsonl", ".json", ".tsv"))
    found = [_pair(fields, where, path.name) for path in paths for where, fields in _records(path)]
    if not found:
        raise InputError(f"{pattern} holds no pair")
    return found


def _records(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """What each line holds, after where it stands."""
    if kind_of(path) != ".tsv":
        return read_json_lines(path)
    rows = [line.rstrip("\r\n") for _, line in read_lines(path)]
    # Quotes are the writer's, as pandas sets them, where each field that begins with one ends with one; else text.
    opened = [field for row in rows for field in row.split("\t") if field.startswith('"')]
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if all(map(QUOTED.fullmatch, opened)) else csv.QUOTE_NONE
    try:
        table = list(csv.DictReader(rows, delimiter="\t", quoting=quoting))
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from error
    return [(f"{path}, line {number}", fields) for number, fields in enumerate(table, 2)]


def _pair(fields: Any, where: str, name: str) -> MinimalPair:
    fields = check_record(fields, dict[Any, Any], where)
    chosen = []
    for names in (GOOD, BAD):
        text = next((fields[name] for name in names if isinstance(fields.get(name), str)), "")
        if not text.strip():
            there = ", ".join(str(name) for name in fields if name)[:200]
            raise InputError(f"{where}: no text under {' or '.join(names)}; there are: {there}")
        chosen.append(text)
    phenomenon = str(next((fields[key] for key in PHENOMENON if fields.get(key)), name.partition(".")[0]))
    if phenomenon == ALL:
        raise InputError(f"{where}: a phenomenon named {ALL}: so the accuracy over all pairs is called")
    return MinimalPair(chosen[0], chosen[1], phenomenon)


def judge(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair], **options: Any
) -> dict[str, np.ndarray]:
    """1, 0 or, for a tie, a half a pair, (pairs,): by the `summed` log-probability and by its mean `per_token`."""
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


def intervals(hits: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The share of `hits` in each group of pairs, and its 95 % interval over them (Wilson 1927)."""
    found = {}
    for name, index in groups.items():
        n, share = len(index), float(hits[index].mean())
        center, width = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
        low, high = ((center + side) / (1 + Z**2 / n) for side in (-width, width))
        found[name] = {"n": n, "accuracy": share, "low": max(low, 0.0), "high": min(high, 1.0)}
    return found
