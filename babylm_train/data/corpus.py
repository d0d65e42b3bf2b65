"""A corpus: clean documents in two splits, stored once and memory-mapped.

Cleaning, the same for every source: zero-width characters out, NFC, runs of white space folded to one space, line
breaks kept as one newline. A document that is then empty, is an exact duplicate, or holds control characters is dropped
and counted. A NUL character is an error, because it means that the file is no text. A validation document that also
stands in the training documents stays in validation and is dropped from training.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from babylm_train.errors import InputError, printable
from babylm_train.files import cached, digest
from babylm_train.state import Document, MinimalPair

FORMAT = 1  # raise it when cleaning or the files change: older caches are then built again
READ_BYTES = 1 << 24

ZERO_WIDTH = "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"  # tokenizers take it out too
_ZERO_WIDTH = re.compile(ZERO_WIDTH)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are no white space
_SURROGATE = re.compile("[\ud800-\udfff]")


class Split(Sequence[str]):
    """The documents of one split, read from a memory-mapped file one at a time.

    Attributes:
        words: white-space separated words a document, int32 (N,).
        bytes: UTF-8 bytes a document, int64 (N,).
        sources: index into `source_names` a document, int32 (N,).
        fingerprint: hash of the texts and their boundaries.
    """

    def __init__(self, folder: Path, name: str, source_names: list[str], fingerprint: str) -> None:
        self._text = np.memmap(folder / f"{name}.utf8", dtype=np.uint8, mode="r")
        self._offsets = np.load(folder / f"{name}.offsets.npy")
        self.words: np.ndarray = np.load(folder / f"{name}.words.npy")
        self.bytes: np.ndarray = np.diff(self._offsets)
        self.sources: np.ndarray = np.load(folder / f"{name}.sources.npy")
        self.source_names = source_names
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.words)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        return self._text[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()


@dataclass(frozen=True)
class Corpus:
    """Two splits and what was counted while they were read.

    Attributes:
        fingerprint: hash of the cleaned content of both splits.
        train_fingerprint: the same of the training split alone.
        report: plain JSON: `files`, `read`, `dropped` and, for `train` and `validation`, `documents`, `words`,
            `characters`, `bytes` and `devanagari` (share of the letters and vowel signs).
        pairs: minimal pairs that came with the corpus.
    """

    train: Split
    validation: Split
    fingerprint: str
    train_fingerprint: str
    report: dict[str, Any]
    pairs: tuple[MinimalPair, ...] = ()


def fold(text: str) -> str:
    """NFC without zero-width characters; one space between words, one newline between lines, none at the ends."""
    return "\n".join(line for line in (" ".join(line.split()) for line in normal(text).splitlines()) if line)


def normal(text: str) -> str:
    """NFC without zero-width characters."""
    return unicodedata.normalize("NFC", _ZERO_WIDTH.sub("", text))


def unusable(text: str) -> str | None:
    """Why `text` cannot be stored at all (a NUL, half a surrogate pair), or None."""
    if "\0" in text:
        return "a NUL character: this is no text"
    return "half a surrogate pair, which UTF-8 cannot hold" if _SURROGATE.search(text) else None


def there(key: str, path: Path) -> bool:
    """Does `path` exist?

    Raises:
        InputError: it cannot (a name longer than the file system takes); names `key`.
    """
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{key}: {printable(path)[:100]}: {error.strerror}") from error


def check_options(*, validation_share: float, seed: int, max_words: int | None, max_length: int = 2) -> None:
    """Check what all corpora are configured with.

    Raises:
        InputError: a value is out of range; the message names the key.
    """
    if not 0 < validation_share < 1:
        raise InputError(f"data.validation_share must lie between 0 and 1, got {validation_share}")
    if seed < 0:
        raise InputError(f"data.seed must not be negative, got {seed}")
    if max_words is not None and max_words < 1:
        raise InputError(f"data.max_words must be at least 1 or null, got {max_words}")
    if max_length < 2:
        raise InputError(f"data.max_length must be at least 2 tokens, got {max_length}")


class _Item(NamedTuple):
    text: bytes
    words: int
    source: int


def load_corpus(
    read: Callable[[], tuple[Iterable[Document], Iterable[Document] | None]],
    *,
    identity: dict[str, Any],
    cache_dir: str | Path,
    validation_share: float,
    seed: int,
    max_words: int | None,
    pairs: Sequence[MinimalPair] = (),
) -> Corpus:
    """The corpus that `read` gives, cleaned, split and stored under `cache_dir`; later calls only open it.

    Args:
        read: training documents, and validation documents or None: then `validation_share` of the documents, drawn with
            `seed`, are set aside (at least one). Called only where the cache holds nothing.
        identity: JSON-able identity of what `read` gives, such as the hashes of its files (in `files`, for the count).
        max_words: at most so many training words. Documents are taken in an order drawn with `seed`, and the first that
            would exceed the budget ends it, so a smaller budget is a subset of a larger one.

    Raises:
        InputError: an option is out of range, a document holds NUL, or a split has no document.
        StorageError: the cache cannot be written.
    """
    check_options(validation_share=validation_share, seed=seed, max_words=max_words)
    options = {"validation_share": validation_share, "seed": seed, "max_words": max_words}
    key = digest({"format": FORMAT, "unicode": unicodedata.unidata_version, "identity": identity, **options})

    def build(folder: Path) -> None:
        names: dict[str, int] = {}
        dropped = dict.fromkeys(("empty", "control_characters", "duplicates", "in_validation", "over_budget"), 0)
        train, validation, count = _collect(*read(), names, dropped)
        if validation is None:
            train, validation = _split(train, validation_share, seed)
        elif not validation:
            raise InputError(f"data.validation holds no document{_why(dropped)}")
        if max_words is not None:
            train = _budget(train, max_words, seed, dropped)
        report: dict[str, Any] = {"files": len(identity.get("files", ())), "read": count, "dropped": dropped}
        prints: dict[str, str] = {}
        for name, items in (("train", train), ("validation", validation)):
            report[name], prints[name] = _write(folder, name, items)
        meta = {"report": report, "source_names": list(names), "fingerprints": prints}
        (folder / "corpus.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf8")

    folder = cached(Path(cache_dir), "corpus", key, build)
    meta = json.loads((folder / "corpus.json").read_text(encoding="utf8"))
    prints = meta["fingerprints"]
    train, validation = (Split(folder, n, meta["source_names"], prints[n]) for n in ("train", "validation"))
    return Corpus(train, validation, digest(prints), prints["train"], meta["report"], tuple(pairs))


def describe(corpus: Corpus) -> str:
    """What was read, in one line a split, and a warning where little of it is Devanagari."""
    report = corpus.report
    files = f"{report['files']:,} file{'s' if report['files'] != 1 else ''}, " if report["files"] else ""
    lines = [f"corpus: {files}{report['read']:,} documents read{_why(report['dropped'])}"]
    for name in ("train", "validation"):
        part = report[name]
        lines.append(
            f"{name}: {part['documents']:,} documents, {part['words']:,} words, {part['characters']:,} characters, "
            f"{part['devanagari']:.1%} Devanagari"
        )
    if report["train"]["devanagari"] < 0.5:
        lines.append(f"warning: only {report['train']['devanagari']:.1%} of the training letters are Devanagari")
    return "\n".join(lines)


def _why(dropped: dict[str, int]) -> str:
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items() if count]
    return f" (dropped: {', '.join(counts)})" if counts else ""


def _collect(
    train: Iterable[Document], validation: Iterable[Document] | None, names: dict[str, int], dropped: dict[str, int]
) -> tuple[list[_Item], list[_Item] | None, int]:
    """Clean and de-duplicate; validation first, so that it is training that loses a document which stands in both."""
    held, held_items, count = set[bytes](), None, 0
    if validation is not None:
        held_items, count = _clean(validation, held, names, dropped)
    seen = set[bytes]()
    items, more = _clean(train, seen, names, dropped, held)
    if not items:
        raise InputError(f"data.train holds no document{_why(dropped)}")
    return items, held_items, count + more


def _clean(
    documents: Iterable[Document],
    seen: set[bytes],
    names: dict[str, int],
    dropped: dict[str, int],
    held: set[bytes] | frozenset[bytes] = frozenset(),
) -> tuple[list[_Item], int]:
    items, count = [], 0
    for count, document in enumerate(documents, 1):
        if reason := unusable(document.text):
            raise InputError(f"data: document {count} of {printable(document.source) or 'the corpus'}: {reason}")
        text = fold(document.text)
        if not text or _CONTROL.search(text):
            dropped["control_characters" if text else "empty"] += 1
            continue
        data = text.encode()
        known = hashlib.blake2b(data, digest_size=16).digest()
        if known in held or known in seen:
            dropped["in_validation" if known in held else "duplicates"] += 1
            continue
        seen.add(known)
        items.append(_Item(data, len(text.split()), names.setdefault(document.source, len(names))))
    return items, count


def _split(items: list[_Item], share: float, seed: int) -> tuple[list[_Item], list[_Item]]:
    if len(items) < 2:
        raise InputError(
            "data: one document cannot be split; give validation files (data.validation), "
            "or check how documents are separated (data.separator)"
        )
    count = min(max(round(share * len(items)), 1), len(items) - 1)
    held = np.zeros(len(items), bool)
    held[np.random.default_rng([seed, 0]).permutation(len(items))[:count]] = True
    return [x for x, h in zip(items, held, strict=True) if not h], [x for x, h in zip(items, held, strict=True) if h]


def _budget(items: list[_Item], max_words: int, seed: int, dropped: dict[str, int]) -> list[_Item]:
    order = np.random.default_rng([seed, 1]).permutation(len(items))
    total = np.cumsum(np.array([item.words for item in items], np.int64)[order])
    taken = np.sort(order[: np.searchsorted(total, max_words, side="right")])
    if not len(taken):
        raise InputError(f"data.max_words={max_words} admits no document: the first drawn has {total[0]} words")
    dropped["over_budget"] = len(items) - len(taken)
    return [items[i] for i in taken]


def _write(folder: Path, name: str, items: list[_Item]) -> tuple[dict[str, Any], str]:
    """Write one split; its counts and its fingerprint."""
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(item.text) for item in items], out=offsets[1:])
    words = np.array([item.words for item in items], np.int32)
    with (folder / f"{name}.utf8").open("wb") as file:
        file.writelines(item.text for item in items)
    np.save(folder / f"{name}.offsets.npy", offsets)
    np.save(folder / f"{name}.words.npy", words)
    np.save(folder / f"{name}.sources.npy", np.array([item.source for item in items], np.int32))
    hashed = hashlib.sha256(offsets.astype("<i8").tobytes())
    characters = letters = devanagari = 0
    for item in items:
        hashed.update(item.text)
        text = item.text.decode()
        characters += len(text)
        kinds = _kinds()[np.frombuffer(text.encode("utf-16-le"), np.uint16)]
        letters += int(np.count_nonzero(kinds))
        devanagari += int(np.count_nonzero(kinds == 2))
    counts = {"documents": len(items), "words": int(words.sum()), "characters": characters, "bytes": int(offsets[-1])}
    return {**counts, "devanagari": devanagari / letters if letters else 0.0}, hashed.hexdigest()[:32]


@cache
def _kinds() -> np.ndarray:
    """For each UTF-16 unit: 2 a letter or mark of Devanagari, 1 of another script, 0 anything else."""
    letter = np.array([unicodedata.category(chr(i))[0] in "LM" for i in range(1 << 16)], np.uint8)
    for first, last in ((0x0900, 0x097F), (0xA8E0, 0xA8FF)):
        letter[first : last + 1] *= 2
    return letter
