"""A corpus: documents folded and weeded, the same for every source, in two splits, stored once and memory-mapped."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from babylm_train.errors import InputError, arguments
from babylm_train.files import MANIFEST, cached, digest, read
from babylm_train.state import MinimalPair

FORMAT = 3  # raise it when cleaning or the files change: older caches are then built again

ZERO_WIDTH = "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"  # tokenizers take it out too
MAX_WORD = 10_000  # letters: tokenizers train on longer ones for minutes, and one of 100,000 ends the unigram trainer
CONTROL = "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"  # those that are no white space


@arguments()
class CorpusOptions:
    """What every corpus is configured with, as conf/data says; max_length is for who packs rows."""

    validation_share: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=2)]
    cache_dir: str


class Split(Sequence[str]):
    """The documents of one split, memory-mapped; `words` and `bytes` of each, int (N,), and a hash of all."""

    def __init__(self, folder: Path, name: str) -> None:
        self._text = np.memmap(folder / f"{name}.utf8", dtype=np.uint8, mode="r")
        self._offsets = np.load(folder / f"{name}.offsets.npy")
        self.words: np.ndarray = np.load(folder / f"{name}.words.npy")
        self.bytes: np.ndarray = np.diff(self._offsets)
        hashes: dict[str, str] = read(folder / MANIFEST, dict[str, str])
        self.fingerprint = digest([hashes[f"{name}.utf8"], hashes[f"{name}.offsets.npy"]])

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        return self._text[self._offsets[chosen] : self._offsets[chosen + 1]].tobytes().decode()


@dataclass(frozen=True)
class Corpus:
    """Two splits, the minimal pairs that came with them, and what `load_corpus` counted, as plain JSON."""

    train: Split
    validation: Split
    fingerprint: str
    report: dict[str, Any]
    pairs: tuple[MinimalPair, ...] = ()


def fold(text: str) -> str:
    """`normal`, with one space between words and one newline between lines, and none at the ends."""
    return "\n".join(line for line in (" ".join(line.split()) for line in normal(text).splitlines()) if line)


def normal(text: str) -> str:
    """NFC without zero-width characters."""
    return unicodedata.normalize("NFC", re.sub(ZERO_WIDTH, "", text))


def load_corpus(
    options: CorpusOptions,
    read_texts: Callable[[Any], Iterable[str]],
    train: Any,
    validation: Any,
    *,
    identity: dict[str, Any],
    max_words: int | None = None,
    pairs: Sequence[MinimalPair] = (),
) -> Corpus:
    """The texts that `read_texts` gives for `train` and `validation`, cleaned, split and cached; later only opened.

    Without `validation` a share of the documents (at least one) is set aside. Of `max_words`, documents are taken in
    an order drawn with the seed, and the first that would exceed them ends it, so a smaller budget is a subset of a
    larger one. `identity` tells JSON-ably what is read. Raises InputError: a split has no document; StorageError.
    """
    share, seed = options.validation_share, options.seed
    key = digest([FORMAT, unicodedata.unidata_version, identity, validation is None, share, seed, max_words])

    def build(folder: Path) -> None:
        dropped: Counter[str] = Counter()
        split_of: dict[bytes, str] = {}  # validation comes first: training loses a document that stands in both
        held = [] if validation is None else _clean(read_texts(validation), "validation", dropped, split_of)
        kept = _clean(read_texts(train), "train", dropped, split_of)
        documents_read = len(kept) + len(held) + dropped.total()
        if validation is None:
            kept, held = _set_aside(kept, share, seed)
        if max_words is not None:
            whole, kept = len(kept), _take_words(kept, max_words, seed)
            dropped += Counter({"over data.max_words": whole - len(kept)})
        counts = {"train": _write(folder, "train", kept), "validation": _write(folder, "validation", held)}
        (folder / "corpus.json").write_text(json.dumps({"read": documents_read, "dropped": dropped, **counts}))

    folder = cached(Path(options.cache_dir), "corpus", key, build)
    splits = Split(folder, "train"), Split(folder, "validation")
    report: dict[str, Any] = read(folder / "corpus.json", dict[str, Any])
    return Corpus(*splits, digest([split.fingerprint for split in splits]), report, tuple(pairs))


def describe(corpus: Corpus) -> str:
    """What was read, in one line a split."""
    report = corpus.report
    lines = [f"corpus: {report['read']:,} documents read{_list_dropped(report['dropped'])}"]
    for name in ("train", "validation"):
        counts = {key: report[name][key] for key in ("documents", "words", "characters")}
        shown = [f"{count:,} {key[: len(key) - (count == 1)]}" for key, count in counts.items()]
        if (share := report[name]["devanagari"]) >= 0.0005:  # what shows as 0.1 %
            shown.append(f"{share:.1%} Devanagari")
        lines.append(f"{name}: {', '.join(shown)}")
    return "\n".join(lines)


def _list_dropped(dropped: dict[str, int]) -> str:
    counts = (f"{count:,} {reason}" for reason, count in dropped.items())
    return f" (dropped: {', '.join(counts)})" if dropped else ""


def _clean(texts: Iterable[str], split: str, dropped: Counter[str], split_of: dict[bytes, str]) -> list[bytes]:
    """What is kept; counts what is not in `dropped`, and notes the rest in `split_of`."""
    kept = []
    for text in map(fold, texts):
        encoded = text.encode()
        if reason := _find_reason(text, split, split_of.get(encoded)):
            dropped[reason] += 1
        else:
            split_of[encoded] = split
            kept.append(encoded)
    if not kept:
        raise InputError(f"data.{split} holds no document{_list_dropped(dropped)}")
    return kept


def _find_reason(text: str, split: str, earlier: str | None) -> str:
    """Why a document of `split` that stood in the split `earlier` is dropped, or nothing."""
    if not text:
        return "empty"
    if re.search(CONTROL, text):
        return "with control characters"
    if len(text) > MAX_WORD and max(map(len, text.split())) > MAX_WORD:
        return f"with a word of over {MAX_WORD:,} letters"
    if earlier is not None:
        return "duplicates" if earlier == split else "in validation"
    return ""


def _set_aside(texts: list[bytes], share: float, seed: int) -> tuple[list[bytes], list[bytes]]:
    """The documents to train on, and those drawn for validation."""
    if len(texts) < 2:
        raise InputError("data: one document cannot be split; give data.validation files, or check data.separator")
    count = min(max(round(share * len(texts)), 1), len(texts) - 1)
    held = set(np.random.default_rng([seed, 0]).permutation(len(texts))[:count].tolist())
    return [text for i, text in enumerate(texts) if i not in held], [texts[i] for i in sorted(held)]


def _count_words(texts: Sequence[bytes]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], np.int32)


def _take_words(texts: list[bytes], max_words: int, seed: int) -> list[bytes]:
    order = np.random.default_rng([seed, 1]).permutation(len(texts))
    total = np.cumsum(_count_words(texts)[order], dtype=np.int64)
    taken = np.sort(order[: np.searchsorted(total, max_words, side="right")])
    if not len(taken):
        raise InputError(f"data.max_words={max_words} admits no document: the first drawn has {total[0]} words")
    return [texts[i] for i in taken]


def _write(folder: Path, name: str, texts: list[bytes]) -> dict[str, Any]:
    """Writes one split; its counts."""
    offsets, words = np.cumsum([0, *map(len, texts)], dtype=np.int64), _count_words(texts)
    np.save(folder / f"{name}.offsets.npy", offsets)
    np.save(folder / f"{name}.words.npy", words)
    with (folder / f"{name}.utf8").open("wb") as file:
        file.writelines(texts)
    characters = sum(len(text.decode()) for text in texts)
    spaces = sum(text.count(b" ") + text.count(b"\n") for text in texts)
    devanagari = sum(text.count(b"\xe0\xa4") + text.count(b"\xe0\xa5") for text in texts)  # U+0900 to U+097F
    counts = {"documents": len(texts), "words": int(words.sum()), "characters": characters, "bytes": int(offsets[-1])}
    return {**counts, "devanagari": devanagari / (characters - spaces)}
