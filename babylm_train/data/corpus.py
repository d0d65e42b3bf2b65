"""A corpus: clean documents in two splits, stored once and memory-mapped.

Cleaning, the same for every source: zero-width characters out, NFC, runs of white space folded to one space, line
breaks kept as one newline. A document that is then empty, is an exact duplicate, or holds control characters or a word
without end is dropped and counted. A validation document is dropped from the training documents.
"""

import hashlib
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
from babylm_train.files import cached, digest, read
from babylm_train.state import Document, MinimalPair

FORMAT = 2  # raise it when cleaning or the files change: older caches are then built again

ZERO_WIDTH = "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"  # tokenizers take it out too
_ZERO_WIDTH = re.compile(ZERO_WIDTH)
MAX_WORD = 10_000  # letters: tokenizers train on longer ones for minutes, and one of 100,000 ends the unigram trainer
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are no white space


@arguments()
class CorpusOptions:
    """What every corpus is configured with.

    Args:
        validation_share: share of the documents set aside for validation, where no validation documents are given.
        seed: draws them, and the order in which a word budget takes documents.
        max_length: tokens a row that the model is trained on. No corpus needs it: who packs rows reads it here.
        cache_dir: where the clean corpus is kept, and beside it its tokenizer, tokens and scores.
    """

    validation_share: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]
    max_length: Annotated[int, Field(ge=2)]
    cache_dir: str


class Split(Sequence[str]):
    """The documents of one split, read from a memory-mapped file one at a time.

    Attributes:
        words: white-space separated words a document, int32 (N,).
        bytes: UTF-8 bytes a document, int64 (N,).
        fingerprint: hash of the texts and their boundaries.
    """

    def __init__(self, folder: Path, name: str, fingerprint: str) -> None:
        self._text = np.memmap(folder / f"{name}.utf8", dtype=np.uint8, mode="r")
        self._offsets = np.load(folder / f"{name}.offsets.npy")
        self.words: np.ndarray = np.load(folder / f"{name}.words.npy")
        self.bytes: np.ndarray = np.diff(self._offsets)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: Any) -> Any:
        """A document, or the list of those in a slice."""
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        return self._text[self._offsets[chosen] : self._offsets[chosen + 1]].tobytes().decode()


@dataclass(frozen=True)
class Corpus:
    """Two splits and what was counted while they were read.

    Attributes:
        fingerprint: hash of the cleaned content of both splits.
        report: plain JSON: `files`, `read`, `dropped` by reason; for `train` and `validation` `documents`, `words`,
            `characters`, `bytes` and `devanagari` (its share of the characters that are no white space).
        pairs: minimal pairs that came with the corpus.
    """

    train: Split
    validation: Split
    fingerprint: str
    report: dict[str, Any]
    pairs: tuple[MinimalPair, ...] = ()


def fold(text: str) -> str:
    """NFC without zero-width characters; one space between words, one newline between lines, none at the ends."""
    return "\n".join(line for line in (" ".join(line.split()) for line in normal(text).splitlines()) if line)


def normal(text: str) -> str:
    """NFC without zero-width characters."""
    return unicodedata.normalize("NFC", _ZERO_WIDTH.sub("", text))


def is_blank(line: str) -> bool:
    """Whether nothing of a line would be seen."""
    return not _ZERO_WIDTH.sub("", line).strip()


def load_corpus(
    read_documents: Callable[[], tuple[Iterable[Document], Iterable[Document] | None]],
    options: CorpusOptions,
    *,
    identity: dict[str, Any],
    max_words: int | None = None,
    pairs: Sequence[MinimalPair] = (),
) -> Corpus:
    """The corpus that `read_documents` gives, cleaned, split and stored in the cache; later calls only open it.

    Args:
        read_documents: training documents, and validation documents or None: then a share of the documents is set
            aside (at least one). Called only where the cache holds nothing.
        identity: JSON-able identity of what is read, such as the hashes of its files (in `files`, for the count).
        max_words: at most so many training words. Documents are taken in an order drawn with the seed, and the first
            that would exceed the budget ends it, so a smaller budget is a subset of a larger one.

    Raises:
        InputError: a split has no document. StorageError: the cache cannot be written.
    """
    share, seed = options.validation_share, options.seed
    chosen = {"validation_share": share, "seed": seed, "max_words": max_words}
    key = digest({"format": FORMAT, "unicode": unicodedata.unidata_version, "identity": identity, **chosen})

    def build(folder: Path) -> None:
        cleaner = _Cleaner()
        texts, held = read_documents()
        validation = None if held is None else cleaner.clean(held, "validation")
        train = cleaner.clean(texts, "train")
        if validation is None:
            train, validation = _set_aside(train, share, seed)
        if max_words is not None:
            whole, train = len(train), _take_words(train, max_words, seed)
            cleaner.dropped += Counter({"over data.max_words": whole - len(train)})
        files = len(identity.get("files", ()))
        report: dict[str, Any] = {"files": files, "read": cleaner.read, "dropped": cleaner.dropped}
        prints: dict[str, str] = {}
        for name, split in (("train", train), ("validation", validation)):
            report[name], prints[name] = _write(folder, name, split)
        (folder / "corpus.json").write_text(json.dumps([report, prints]), encoding="utf8")

    folder = cached(Path(options.cache_dir), "corpus", key, build)
    stored: tuple[dict[str, Any], dict[str, str]] = read(folder / "corpus.json", tuple[dict[str, Any], dict[str, str]])
    report, prints = stored
    train, validation = (Split(folder, name, prints[name]) for name in ("train", "validation"))
    return Corpus(train, validation, digest(prints), report, tuple(pairs))


def describe(corpus: Corpus) -> str:
    """What was read, in one line a split."""
    report = corpus.report
    files = f"{report['files']:,} file{'s' * (report['files'] != 1)}, " if report["files"] else ""
    lines = [f"corpus: {files}{report['read']:,} documents read{_list_dropped(report['dropped'])}"]
    for name in ("train", "validation"):
        part = report[name]
        script = f", {part['devanagari']:.1%} Devanagari" if part["devanagari"] else ""
        counts = f"{part['documents']:,} documents, {part['words']:,} words, {part['characters']:,} characters"
        lines.append(f"{name}: {counts}{script}")
    return "\n".join(lines)


def _list_dropped(dropped: dict[str, int]) -> str:
    counts = (f"{count:,} {reason}" for reason, count in dropped.items())
    return f" (dropped: {', '.join(counts)})" if dropped else ""


class _Cleaner:
    """Cleans documents, drops what cannot be used or was there before, and counts by reason."""

    def __init__(self) -> None:
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.split_of: dict[bytes, str] = {}  # by the document's hash

    def clean(self, documents: Iterable[Document], split: str) -> list[bytes]:
        """What is kept; validation comes first, so that training loses a document which stands in both."""
        kept = []
        for document in documents:
            self.read += 1
            text = fold(document.text)
            if reason := self._find_reason(text, split):
                self.dropped[reason] += 1
            else:
                kept.append(text.encode())
        if not kept:
            raise InputError(f"data.{split} holds no document{_list_dropped(self.dropped)}")
        return kept

    def _find_reason(self, text: str, split: str) -> str:
        """Why a document is dropped, or nothing."""
        if not text:
            return "empty"
        if _CONTROL.search(text):
            return "with control characters"
        if len(text) > MAX_WORD and max(map(len, text.split())) > MAX_WORD:
            return f"with a word of over {MAX_WORD:,} letters"
        hashed = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if hashed in self.split_of:
            return "duplicates" if self.split_of[hashed] == split else "in validation"
        self.split_of[hashed] = split
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


def _write(folder: Path, name: str, texts: list[bytes]) -> tuple[dict[str, Any], str]:
    """Writes one split; its counts and its fingerprint."""
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    words = _count_words(texts)
    np.save(folder / f"{name}.offsets.npy", offsets)
    np.save(folder / f"{name}.words.npy", words)
    hashed = hashlib.sha256(offsets.astype("<i8").tobytes())
    characters = spaces = devanagari = 0
    with (folder / f"{name}.utf8").open("wb") as file:
        for text in texts:
            file.write(text)
            hashed.update(text)
            characters += len(text.decode())
            spaces += text.count(b" ") + text.count(b"\n")
            devanagari += text.count(b"\xe0\xa4") + text.count(b"\xe0\xa5")  # how U+0900 to U+097F begin in UTF-8
    counts = {"documents": len(texts), "words": int(words.sum()), "characters": characters, "bytes": int(offsets[-1])}
    return {**counts, "devanagari": devanagari / (characters - spaces)}, hashed.hexdigest()[:32]
