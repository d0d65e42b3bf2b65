"""Tokenizers, trained on the training split alone and handed out as fast `transformers` tokenizers.

Each takes zero-width characters out first, as the corpus does: text with joiners would be spelled in bytes never
trained on. All but WordPiece give the NFC of the rest back exactly, through a fallback to bytes, so they have no
unknown tokens. Words are found by `WORD`, which keeps a letter's vowel signs with it: GPT-2's pattern cuts Devanagari
words at each of them.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from babylm_train.data.corpus import ZERO_WIDTH, Corpus, normal, printable
from babylm_train.data.network import need_hub, offline
from babylm_train.errors import InputError
from babylm_train.files import cached, digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerFast

    from babylm_train.data.tokens import TokenizedSplit

FORMAT = 2  # raise it when training changes: cached tokenizers are then trained again
SPECIAL = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos", "mask", "sep", "cls")}
SMALLEST = len(SPECIAL) + 256

# A word with the space before it. Digits and punctuation stand alone.
WORD = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
# An extended grapheme cluster as since Unicode 15.1 (rule GB9c): \X of older tables cuts a conjunct after its virama.
CONSONANT = r"[\x{0915}-\x{0939}\x{0958}-\x{095f}\x{0978}-\x{097f}]"
CLUSTER = rf"(?:{CONSONANT}\x{{093c}}?\x{{094d}}(?={CONSONANT}))*\X"

# What WordPiece can always spell: the Devanagari block and printable ASCII.
ALPHABET = [chr(i) for i in (*range(0x21, 0x7F), *range(0x0900, 0x0980))]


class Recipe(Protocol):
    """What the fragments in conf/tokenizer build."""

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast": ...


@dataclass(frozen=True)
class _Trained:
    vocab_size: int
    min_frequency: int

    def __post_init__(self) -> None:
        _at_least("vocab_size", self.vocab_size, SMALLEST, f" ({len(SPECIAL)} special tokens and 256 bytes)")
        _at_least("min_frequency", self.min_frequency, 1)


@dataclass(frozen=True)
class BPE(_Trained):
    """Byte-level byte-pair encoding.

    Args:
        vocab_size: at most so many tokens, the 7 special tokens and the 256 bytes included.
        min_frequency: a pair seen less often is not merged.

    Raises:
        InputError: a value is too small.
    """

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import models
        from tokenizers.trainers import BpeTrainer

        tokenizer = _byte_level(models.BPE(), WORD)
        trainer = BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=_byte_alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return _wrap(tokenizer, self.vocab_size)


@dataclass(frozen=True)
class Unigram:
    """The unigram language model (Kudo 2018, arXiv:1804.10959) over characters, and bytes for what has no piece.

    Args:
        vocab_size: at most so many tokens, the 7 special tokens and the 256 bytes included.

    Raises:
        InputError: `vocab_size` is too small.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        _at_least("vocab_size", self.vocab_size, SMALLEST + 1, f" ({len(SPECIAL)} special tokens, 256 bytes, a piece)")

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from tokenizers.trainers import UnigramTrainer

        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = _normalizer()
        # Pieces carry their space themselves: a stand-in such as U+2581 could not be told from the same sign in a text.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        room = self.vocab_size - SMALLEST
        texts = list(texts)
        # The trainer refuses a vocabulary that cannot hold every sign; bytes spell those that are cut off below.
        signs = set[str]().union(*map(normal, texts))
        if not signs:  # it would crash the process
            raise InputError("the tokenizer has no training text")
        trainer = UnigramTrainer(
            vocab_size=max(room, len(signs)) + 1, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        trained = json.loads(tokenizer.to_str())["model"]["vocab"]
        scored = _in_one_order([(piece, score) for piece, score in trained if piece != "<unk>"])[:room]
        least = min(score for _, score in scored) - 10.0
        vocab = [(token, 0.0) for token in SPECIAL.values()]
        vocab += [(f"<0x{byte:02X}>", least) for byte in range(256)]
        vocab += scored
        tokenizer.model = models.Unigram(vocab, list(SPECIAL.values()).index("<unk>"), byte_fallback=True)
        return _wrap(tokenizer, self.vocab_size)


@dataclass(frozen=True)
class WordPiece:
    """BERT's WordPiece on white space and punctuation, with vowel signs kept (BERT's own normaliser strips them).

    Printable ASCII and Devanagari can always be spelled; of other signs, the most frequent 1,000 of the training texts
    at most, where there is room. A word with any other sign, or of more than 1,000, is unknown.

    Args:
        vocab_size: at most so many tokens, special tokens and alphabet included.
        min_frequency: a pair seen less often is not merged; a sign seen less often is left out.

    Raises:
        InputError: a value is too small.
    """

    vocab_size: int
    min_frequency: int

    def __post_init__(self) -> None:
        needed = len(SPECIAL) + len(_forms(ALPHABET))
        _at_least("vocab_size", self.vocab_size, needed, f" ({len(SPECIAL)} special tokens and the alphabet)")
        _at_least("min_frequency", self.min_frequency, 1)

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from tokenizers.trainers import WordPieceTrainer

        texts = list(texts)
        alphabet = self._alphabet(texts)
        # Named as special tokens because the trainer numbers the alphabet in an order that differs from run to run.
        fixed = [*SPECIAL.values(), *_forms(alphabet)]
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=1000))
        tokenizer.normalizer = _normalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = WordPieceTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=fixed,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        # A model anew, because the alphabet must not stay special.
        vocab = tokenizer.get_vocab()
        fresh = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=1000))
        fresh.normalizer, fresh.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        fresh.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        return _wrap(fresh, self.vocab_size)

    def _alphabet(self, texts: Iterable[str]) -> list[str]:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(normal(text))
        known = set(ALPHABET)
        others = [c for c, n in counts.items() if n >= self.min_frequency and c not in known and not c.isspace()]
        others.sort(key=lambda c: (-counts[c], c))
        room = (self.vocab_size - len(SPECIAL) - len(_forms(ALPHABET))) // 2
        return ALPHABET + others[: min(1000, room)]


@dataclass(frozen=True)
class Byte:
    """The 256 bytes of UTF-8."""

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import models

        vocab = {token: i for i, token in enumerate([*SPECIAL.values(), *_byte_alphabet()])}
        return _wrap(_byte_level(models.BPE(vocab, []), WORD), SMALLEST)


@dataclass(frozen=True)
class Character(_Trained):
    """Grapheme clusters, conjuncts in one piece; a cluster outside the vocabulary is spelled in bytes.

    Args:
        vocab_size: at most so many tokens, the 7 special tokens and the 256 bytes included.
        min_frequency: a cluster seen less often is left out.

    Raises:
        InputError: a value is too small.
    """

    def build(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import models
        from tokenizers.trainers import WordLevelTrainer

        counter = _byte_level(models.WordLevel({}, unk_token="<unk>"), CLUSTER)
        trainer = WordLevelTrainer(
            vocab_size=self.vocab_size, min_frequency=self.min_frequency, special_tokens=["<unk>"], show_progress=False
        )
        counter.train_from_iterator(texts, trainer)
        found = counter.get_vocab()
        tokens = [*SPECIAL.values(), *_byte_alphabet()]
        tokens = list(dict.fromkeys([*tokens, *sorted(found, key=found.__getitem__)]))[: self.vocab_size]
        vocab = {token: i for i, token in enumerate(tokens)}
        # A byte-pair model without merges: a cluster is looked up whole, or falls into its bytes.
        return _wrap(_byte_level(models.BPE(vocab, [], ignore_merges=True), CLUSTER), self.vocab_size)


@dataclass(frozen=True)
class Pretrained:
    """A fast tokenizer as it is.

    Args:
        name: a folder that `save_pretrained` wrote, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub; None is its default branch.

    Raises:
        InputError: `name` is neither a folder nor a possible name.
    """

    name: str
    revision: str | None

    def __post_init__(self) -> None:
        if not Path(self.name).is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.name):
            raise InputError(f"tokenizer.name: no such folder: {printable(self.name)}")

    @property
    def outside_text(self) -> str:
        """What was made from text outside the corpus."""
        return f"tokenizer.name={self.name}"

    def build(self, texts: Iterable[str] = ()) -> "PreTrainedTokenizerFast":
        """The tokenizer; `texts` are not read.

        Raises:
            InputError: it cannot be loaded, is not fast, or has no end-of-sequence token.
        """
        what, local = f"tokenizer.name={printable(self.name)}", Path(self.name).is_dir()
        if not local:
            need_hub(what)
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.name,
                revision=self.revision or "main",
                local_files_only=local or offline(),
                trust_remote_code=False,
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"{what} cannot be loaded: {printable(reason[0])}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{what} is not a fast tokenizer")
        if tokenizer.eos_token_id is None:
            raise InputError(f"{what} has no end-of-sequence token, which marks where a document ends")
        return tokenizer


def load_tokenizer(recipe: Recipe, corpus: Corpus, cache_dir: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that `recipe` gives on the training split, trained once for a (training split, recipe) pair.

    Raises:
        InputError: it cannot be loaded, or is larger than asked.
        StorageError: the cache cannot be written.
    """
    if isinstance(recipe, Pretrained):
        return recipe.build(())
    from transformers import PreTrainedTokenizerFast

    key = {"format": FORMAT, "tokenizers": version("tokenizers"), "train": corpus.train_fingerprint}

    def build(folder: Path) -> None:
        recipe.build(corpus.train).save_pretrained(folder)

    folder = cached(Path(cache_dir), "tokenizer", digest({**key, "recipe": repr(recipe)}), build)
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of what decides the ids: vocabulary, rules and special tokens; not of truncation or padding."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    return digest([{k: v for k, v in rules.items() if k not in ("truncation", "padding")}, special])


def tokenizer_report(
    tokenizer: "PreTrainedTokenizerFast", *splits: "TokenizedSplit", recipe: Recipe | None = None
) -> str:
    """One line: vocabulary size, and over `splits` the tokens without marks, tokens a word, and unknown ones."""
    asked = getattr(recipe, "vocab_size", None)
    size = f"{len(tokenizer):,} tokens in the vocabulary"
    if asked and asked != len(tokenizer):
        size += f" (asked {asked:,}: the text gave no more)"
    if not splits:
        return f"tokenizer: {size}"
    tokens = sum(len(split.ids) - len(split.words) for split in splits)
    words = sum(int(split.words.sum()) for split in splits)
    unknown = sum(split.unknown for split in splits)
    counts = f"{tokens:,} tokens, {tokens / max(words, 1):.3f} a word, {unknown / max(tokens, 1):.3%} unknown"
    return f"tokenizer: {size}; {counts}"


def _at_least(name: str, value: int, least: int, why: str = "") -> None:
    if value < least:
        raise InputError(f"tokenizer.{name} must be at least {least}{why}, got {value}")


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _normalizer() -> "Normalizer":
    """What `normal` does to the training text."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence([normalizers.Replace(Regex(ZERO_WIDTH), ""), normalizers.NFC()])


def _byte_level(model: "Model", pattern: str) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _forms(alphabet: Iterable[str]) -> list[str]:
    """The signs, at a word's start and within one; punctuation is always cut off, so it has no second form."""
    alphabet = list(alphabet)
    return alphabet + [f"##{c}" for c in alphabet if c not in _PUNCTUATION and unicodedata.category(c)[0] != "P"]


_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _in_one_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trainer's pieces, best first, freed of what differs from run to run.

    It sums in an order that differs, and gives the signs that it pruned the lowest score plus 0.0001 for each before.
    """
    lowest = min(score for _, score in pieces)
    pruned = lowest + 0.0001 * sum(len(piece) == 1 for piece, _ in pieces) + 1e-5
    scores = [(lowest if len(p) == 1 and score <= pruned else score, p) for p, score in pieces]
    return [(piece, -score) for score, piece in sorted((-round(score, 5), piece) for score, piece in scores)]


def _wrap(tokenizer: "Tokenizer", asked: int) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
    if len(wrapped) > asked:
        raise InputError(f"tokenizer.vocab_size={asked} is too small for these texts: they need {len(wrapped)}")
    return wrapped
