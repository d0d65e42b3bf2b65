"""Token ids of a split, made once for a (split, tokenizer) pair and memory-mapped, with the words each token begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from babylm_train.data.corpus import Split
from babylm_train.data.tokenizer import tokenizer_fingerprint
from babylm_train.errors import InputError
from babylm_train.files import cached, digest

FORMAT = 2  # raise it when the files change
CHUNK_BYTES = 1 << 21  # of text encoded at once: enough for all cores, little memory
CHUNK = 1 << 24  # tokens counted at once


@dataclass(frozen=True)
class TokenizedSplit:
    """Every document as the end-of-sequence mark and its tokens, one after the other."""

    ids: np.ndarray  # uint16 or uint32 (T,), memory-mapped
    offsets: np.ndarray  # int64 (N + 1,); document d is ids[offsets[d]:offsets[d + 1]]
    word_starts: np.ndarray  # uint8 (T,), words that begin in the token, 0 for the mark; they add up to `words`
    bytes: np.ndarray  # (N,), UTF-8 bytes a document
    words: np.ndarray  # (N,), white-space separated words a document
    eos: int
    fingerprint: str
    unknown: int  # how many tokens are the unknown one


def tokenize(split: Split, tokenizer: PreTrainedTokenizerFast, *, cache_dir: str | Path) -> TokenizedSplit:
    """Encode `split`, or open what an earlier run stored. Text that spells a special token is encoded as text.

    Raises InputError: the tokenizer loses whole documents; StorageError.
    """
    fingerprint = digest([FORMAT, split.fingerprint, tokenizer_fingerprint(tokenizer)])
    folder = cached(Path(cache_dir), "tokens", fingerprint, lambda folder: _encode(split, tokenizer, folder))
    ids: np.ndarray = np.memmap(folder / "ids.bin", dtype=_id_type(tokenizer), mode="r")
    counted = tokenizer.unk_token_id not in (None, tokenizer.eos_token_id)
    parts = (ids[first : first + CHUNK] for first in range(0, len(ids) * counted, CHUNK))
    return TokenizedSplit(
        ids=ids,
        offsets=np.load(folder / "offsets.npy"),
        word_starts=np.memmap(folder / "word_starts.bin", dtype=np.uint8, mode="r"),
        bytes=split.bytes,
        words=split.words,
        eos=tokenizer.eos_token_id,
        fingerprint=fingerprint,
        unknown=sum(int((part == tokenizer.unk_token_id).sum()) for part in parts),
    )


def _id_type(tokenizer: PreTrainedTokenizerFast) -> str:
    return "uint16" if len(tokenizer) <= 1 << 16 else "uint32"


def describe_tokens(tokenizer: PreTrainedTokenizerFast, split: TokenizedSplit) -> str:
    """One line: vocabulary size, and over `split` the tokens without marks, tokens a word, and unknown ones."""
    tokens = len(split.ids) - len(split.words)
    counts = f"{tokens:,} tokens, {tokens / split.words.sum():.3f} a word, {split.unknown / tokens:.3%} unknown"
    return f"tokenizer: {len(tokenizer):,} tokens in the vocabulary; {counts}"


def _encode(split: Split, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # ours to set up, the caller's stays as it is
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    lengths = [0]
    edges = [0, *np.flatnonzero(np.diff(np.cumsum(split.bytes) // CHUNK_BYTES)) + 1, len(split)]
    with (folder / "ids.bin").open("wb") as id_file, (folder / "word_starts.bin").open("wb") as start_file:
        for first, last in tqdm(list(pairwise(edges)), desc="tokens", disable=None):
            texts = split[first:last]
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            ids = np.concatenate([[tokenizer.eos_token_id, *encoding.ids] for encoding in encodings])
            id_file.write(ids.astype(_id_type(tokenizer)).tobytes())
            start_file.write(_count_words(texts, [encoding.offsets for encoding in encodings]).tobytes())
            lengths += [1 + len(encoding.ids) for encoding in encodings]
    np.save(folder / "offsets.npy", np.cumsum(lengths, dtype=np.int64))


def _count_words(texts: Sequence[str], offsets: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Words that begin in each token, marks included, uint8 (t,); offsets: each token's first and last + 1 character.

    A word belongs to the first token that reaches beyond its first character. What no token covers, because the
    tokenizer leaves it out, belongs to the next token, or else to the text's last.
    """
    points = np.frombuffer(("\n" + "\n".join(texts)).encode("utf-32-le"), np.uint32)
    space = (points == 0x20) | (points == 0x0A)
    begun = np.concatenate([[0, 0], np.cumsum(space[:-1] & ~space[1:])])  # words that begin before a character
    first = np.cumsum([1, *(len(text) + 1 for text in texts)])  # character of each text
    marks = np.cumsum([0, *(1 + len(each) for each in offsets)])
    spans = zip(offsets, first[:-1], strict=True)
    ends = np.concatenate([at + np.array([0, *(end for _, end in each)]) for each, at in spans])
    reached = begun[np.maximum.accumulate(ends)]
    reached[marks[1:] - 1] = begun[first[1:] - 1]
    counts = np.diff(reached, prepend=0)
    if counts[marks[:-1]].any() or counts.max() > 255:
        raise InputError("the tokenizer does not fit: it gives a document no token, or one token more than 255 words")
    return counts.astype(np.uint8)
