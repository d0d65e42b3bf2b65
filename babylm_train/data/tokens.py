"""Token ids of a split, made once for a (split, tokenizer) pair and memory-mapped, with the words each token begins."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from babylm_train.data.corpus import Split
from babylm_train.data.tokenizer import tokenizer_fingerprint
from babylm_train.errors import InputError
from babylm_train.files import cached, digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FORMAT = 1  # raise it when the files change
CHUNK_BYTES = 1 << 21  # of text encoded at once: enough for all cores, little memory


@dataclass(frozen=True)
class TokenizedSplit:
    """Every document as the end-of-sequence mark and its tokens, one after the other.

    Attributes:
        ids: uint16 or uint32 (T,), memory-mapped.
        offsets: int64 (N + 1,); document d is `ids[offsets[d]:offsets[d + 1]]`.
        word_starts: uint8 (T,), white-space separated words that begin in the token, 0 for the mark; the sum over a
            document is its number of words, whatever the tokenizer.
        bytes: int64 (N,), UTF-8 bytes a document.
        words: int32 (N,), words a document.
        eos: id of the mark.
        fingerprint: hash of the split and the tokenizer.
        unknown: how many tokens are the unknown one.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray
    bytes: np.ndarray
    words: np.ndarray
    eos: int
    fingerprint: str
    unknown: int


def tokenize(split: Split, tokenizer: "PreTrainedTokenizerFast", *, cache_dir: str | Path) -> TokenizedSplit:
    """Encode `split`, or open what an earlier run stored. Text that spells a special token is encoded as text.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or loses whole documents.
        StorageError: the cache cannot be written.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, which marks where a document ends")
    parts = [FORMAT, split.fingerprint, tokenizer_fingerprint(tokenizer)]
    fingerprint = digest(parts)
    folder = cached(Path(cache_dir), "tokens", fingerprint, lambda folder: _encode(split, tokenizer, folder))
    meta = json.loads((folder / "tokens.json").read_text())
    return TokenizedSplit(
        ids=np.memmap(folder / "ids.bin", dtype=meta["dtype"], mode="r"),
        offsets=np.load(folder / "offsets.npy"),
        word_starts=np.memmap(folder / "word_starts.bin", dtype=np.uint8, mode="r"),
        bytes=split.bytes,
        words=split.words,
        eos=meta["eos"],
        fingerprint=fingerprint,
        unknown=meta["unknown"],
    )


def _encode(split: Split, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # ours to set up, the caller's stays as it is
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    table = _table(backend)
    eos, unk = int(tokenizer.eos_token_id), tokenizer.unk_token_id
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    lengths: list[np.ndarray] = []
    unknown = 0
    with (
        (folder / "ids.bin").open("wb") as id_file,
        (folder / "word_starts.bin").open("wb") as start_file,
        tqdm(total=len(split), desc="tokens", unit=" documents", disable=None) as bar,
    ):
        for first, last in _chunks(split.bytes):
            chunk = _Chunk(split[first:last], split.words[first:last], backend, eos, table)
            if unk is not None and unk != eos:
                unknown += int(np.count_nonzero(chunk.ids == unk))
            id_file.write(chunk.ids.astype(dtype).tobytes())
            start_file.write(chunk.starts.tobytes())
            lengths.append(np.diff(chunk.offsets))
            bar.update(last - first)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    np.save(folder / "offsets.npy", offsets)
    meta = {"dtype": dtype.name, "eos": eos, "unknown": unknown}
    (folder / "tokens.json").write_text(json.dumps(meta))


def _chunks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `CHUNK_BYTES` each."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + CHUNK_BYTES)), first + 1)
        yield first, last
        first = last


@dataclass(frozen=True)
class _Table:
    """What a token's text says about words, per token id. White space in clean texts is a space or a newline."""

    begins: np.ndarray  # the first character is no white space: a word begins here if some came before
    within: np.ndarray  # words that begin after white space in the token itself
    ends: np.ndarray  # the last character is white space


def _table(backend: "Tokenizer") -> _Table | None:
    """The table; None where tokens leave white space out (WordPiece), so that their text does not tell."""
    rules = json.loads(backend.to_str())
    decoder = json.dumps(rules["decoder"])
    if '"ByteLevel"' in decoder:
        spaces = str.maketrans("ĠĊ", " \n")
    elif '"Metaspace"' in decoder or '"ByteFallback"' in decoder:
        spaces = str.maketrans("▁", " ") if "▁" in decoder else {}
    else:
        return None
    vocab = backend.get_vocab(with_added_tokens=True)
    table = _Table(*(np.zeros(max(vocab.values()) + 1, kind) for kind in (bool, np.uint8, bool)))
    for token, i in vocab.items():
        text = {"<0x20>": " ", "<0x0A>": "\n"}.get(token) or token.translate(spaces)
        if text:
            table.begins[i] = not text[0].isspace()
            table.within[i] = min(len(text.split()) - int(table.begins[i]), 255)
            table.ends[i] = text[-1].isspace()
    return table


class _Chunk:
    """Some documents, encoded: `ids` int64 (t,), `starts` uint8 (t,), `offsets` int64 (n + 1,)."""

    def __init__(
        self, texts: list[str], words: np.ndarray, backend: "Tokenizer", eos: int, table: _Table | None
    ) -> None:
        # Character offsets take a third of the time: they are asked for only where the table does not do.
        encode = backend.encode_batch if table is None else backend.encode_batch_fast
        encodings = encode(texts, add_special_tokens=False)
        parts = [np.array([eos, *encoding.ids], np.int64) for encoding in encodings]
        self.ids = np.concatenate(parts)
        self.offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        if table is None:
            self.starts = np.zeros(len(self.ids), np.uint8)
            left = np.arange(len(texts))
        else:
            self.starts = self._look_up(table)
            left = np.flatnonzero(np.add.reduceat(self.starts, self.offsets[:-1], dtype=np.int64) != words)
        for d in left.tolist():
            encoding = encodings[d] if table is None else backend.encode(texts[d], add_special_tokens=False)
            body = slice(self.offsets[d] + 1, self.offsets[d + 1])
            self.starts[body] = _starts(texts[d], encoding.offsets, int(words[d]))

    def _look_up(self, table: _Table) -> np.ndarray:
        marks = self.offsets[:-1]
        spaced = np.concatenate([[False], table.ends[self.ids[:-1]]])  # white space, or the mark, came before
        spaced[marks[marks + 1 < len(spaced)] + 1] = True
        starts = table.within[self.ids] + (table.begins[self.ids] & spaced)
        starts[marks] = 0
        return starts


def _starts(text: str, offsets: Sequence[tuple[int, int]], words: int) -> np.ndarray:
    """Words that begin in each token, from its characters: a word belongs to the first that reaches beyond its start.

    What no token covers, because the tokenizer leaves it out, belongs to the next token, or else to the last.

    Raises:
        InputError: there is no token, or more than 255 words begin in one.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    space = (points == 0x20) | (points == 0x0A)
    begun = np.concatenate([[0], np.cumsum(~space & np.concatenate([[True], space[:-1]]))])
    ends = np.maximum.accumulate(np.fromiter((end for _, end in offsets), np.int64, len(offsets)))
    reached = begun[ends]
    reached[-1:] = words
    counts = np.diff(reached, prepend=0)
    if not len(counts) or counts.max() > 255:
        raise InputError(f"the tokenizer turns a document of {words} words into {len(counts)} tokens: it does not fit")
    return counts.astype(np.uint8)
