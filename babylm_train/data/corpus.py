"""A corpus: documents folded and weeded, the same for every source, in two splits, stored once and memory-mapped.

Text streams through: in memory are under 100 bytes a document, whatever its length.
"""

import hashlib
import json
import re
import unicodedata
from array import array
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
    cache_dir: Annotated[str, Field(min_length=1)]


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
        held = None if validation is None else _store(read_texts(validation), folder / "held", dropped)
        found = _store(read_texts(train), folder / "found", dropped)
        documents_read = len(found.sizes) + (len(held.sizes) if held else 0) + dropped.total()
        chosen, others = _drop_repeats(found, held, dropped)
        if held is None:
            chosen, others = _set_aside(chosen, share, seed)
        if max_words is not None:
            whole, chosen = len(chosen), _take_words(chosen, found.words, max_words, seed)
            dropped += Counter({"over data.max_words": whole - len(chosen)})
        counts = {"train": _write(folder, "train", found, chosen)}
        counts["validation"] = _write(folder, "validation", held or found, others)
        for stored in (found, held):
            if stored is not None:
                stored.path.unlink()
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


@dataclass(frozen=True)
class _Stored:
    """Documents as they were read and folded: their text in a file; of each its bytes, words and a digest of it."""

    path: Path
    sizes: np.ndarray  # int64 (N,)
    words: np.ndarray  # int32 (N,)
    digests: np.ndarray  # uint64 (N, 2)


def _store(texts: Iterable[str], path: Path, dropped: Counter[str]) -> _Stored:
    """Writes what is kept to `path`, one text after the other; counts what is not in `dropped`."""
    sizes, words, digests = array("q"), array("i"), bytearray()
    with path.open("wb") as file:
        for text in map(fold, texts):
            if reason := _find_reason(text):
                dropped[reason] += 1
                continue
            encoded = text.encode()
            file.write(encoded)
            sizes.append(len(encoded))
            words.append(len(encoded.split()))
            digests += hashlib.blake2b(encoded, digest_size=16).digest()
    numbers = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    return _Stored(path, np.array(sizes, np.int64), np.array(words, np.int32), numbers)


def _find_reason(text: str) -> str:
    """Why a document is dropped, or nothing."""
    if not text:
        return "empty"
    if re.search(CONTROL, text):
        return "with control characters"
    if len(text) > MAX_WORD and max(map(len, text.split())) > MAX_WORD:
        return f"with a word of over {MAX_WORD:,} letters"
    return ""


def _drop_repeats(found: _Stored, held: _Stored | None, dropped: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which documents to train on, and which of `held` to evaluate on: the first of equal ones, `held` before `found`.

    Raises InputError: one of the two has none.
    """
    digests = found.digests if held is None else np.concatenate([held.digests, found.digests])
    own = len(digests) - len(found.digests)  # of `held`
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal ones the first stays first
    new = np.append(True, (np.diff(digests[order].view(np.int64), axis=0) != 0).any(axis=1))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    repeats = first != np.arange(len(order))
    elsewhere = repeats & (first < own)
    elsewhere[:own] = False
    dropped += Counter({"duplicates": int((repeats & ~elsewhere).sum()), "in validation": int(elsewhere.sum())})
    kept = np.flatnonzero(~repeats[own:]), np.flatnonzero(~repeats[:own])
    for name, chosen in (("train", kept[0]), *([("validation", kept[1])] if held else [])):
        if not len(chosen):
            raise InputError(f"data.{name} holds no document{_list_dropped(dropped)}")
    return kept


def _set_aside(chosen: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents to train on, and those drawn for validation."""
    if len(chosen) < 2:
        raise InputError("data: one document cannot be split; give data.validation files, or check data.separator")
    count = min(max(round(share * len(chosen)), 1), len(chosen) - 1)
    held = np.zeros(len(chosen), bool)
    held[np.random.default_rng([seed, 0]).permutation(len(chosen))[:count]] = True
    return chosen[~held], chosen[held]


def _take_words(chosen: np.ndarray, words: np.ndarray, max_words: int, seed: int) -> np.ndarray:
    order = np.random.default_rng([seed, 1]).permutation(len(chosen))
    total = np.cumsum(words[chosen][order], dtype=np.int64)
    taken = np.sort(order[: np.searchsorted(total, max_words, side="right")])
    if not len(taken):
        raise InputError(f"data.max_words={max_words} admits no document: the first drawn has {total[0]} words")
    return chosen[taken]


def _write(folder: Path, name: str, stored: _Stored, chosen: np.ndarray) -> dict[str, Any]:
    """Writes one split; its counts."""
    text, ends = np.memmap(stored.path, np.uint8, mode="r"), np.cumsum(stored.sizes)
    characters = spaces = devanagari = 0
    with (folder / f"{name}.utf8").open("wb") as file:
        for document in chosen.tolist():
            encoded = text[ends[document] - stored.sizes[document] : ends[document]].tobytes()
            file.write(encoded)
            characters += len(encoded.decode())
            spaces += encoded.count(b" ") + encoded.count(b"\n")
            devanagari += encoded.count(b"\xe0\xa4") + encoded.count(b"\xe0\xa5")  # U+0900 to U+097F
    offsets, words = np.append(0, np.cumsum(stored.sizes[chosen])), stored.words[chosen]
    np.save(folder / f"{name}.offsets.npy", offsets)
    np.save(folder / f"{name}.words.npy", words)
    counts = {"documents": len(chosen), "words": int(words.sum()), "characters": characters, "bytes": int(offsets[-1])}
    return {**counts, "devanagari": devanagari / (characters - spaces)}
