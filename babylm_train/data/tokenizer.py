"""Tokenizers, trained on the training split alone and handed out as fast `transformers` tokenizers.

All but WordPiece give `normal(text)` back exactly, through a fallback to bytes, so they have no unknown tokens.
"""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from babylm_train.data.corpus import ZERO_WIDTH, Corpus, normal
from babylm_train.errors import InputError, arguments, load_errors
from babylm_train.files import cached, digest

FORMAT = 2  # raise it when training changes: cached tokenizers are then trained again
SPECIAL = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos", "mask", "sep", "cls")}
SPECIALS, BYTES = list(SPECIAL.values()), sorted(pre_tokenizers.ByteLevel.alphabet())
SMALLEST = len(SPECIALS) + len(BYTES)
LARGEST = 2**24  # the trainers reserve memory for as many at once, and abort the process where they cannot

# A word with its vowel signs, where GPT-2's pattern cuts, and the space before it. Digits and punctuation stand alone.
WORD = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
# An extended grapheme cluster as since Unicode 15.1 (rule GB9c): \X of older tables cuts a conjunct after its virama.
CONSONANT = r"[\x{0915}-\x{0939}\x{0958}-\x{095f}\x{0978}-\x{097f}]"
CLUSTER = rf"(?:{CONSONANT}\x{{093c}}?\x{{094d}}(?={CONSONANT}))*\X"

NORMALIZER = normalizers.Sequence([normalizers.Replace(Regex(ZERO_WIDTH), ""), normalizers.NFC()])  # as `normal`


def _both_forms(signs: Iterable[str]) -> list[str]:
    """The signs at a word's start, and within one; punctuation is always cut off, so it has no second form."""
    inside = (c for c in signs if unicodedata.category(c)[0] != "P" and not ("!" <= c <= "~" and not c.isalnum()))
    return [*signs, *(f"##{c}" for c in inside)]


# What WordPiece can always spell: the Devanagari block and printable ASCII.
ALPHABET = [chr(i) for i in (*range(0x21, 0x7F), *range(0x0900, 0x0980))]
SMALLEST_WORDPIECE = len(SPECIALS) + len(_both_forms(ALPHABET))


@arguments()
class _Trained:
    """What is trained to a size, special tokens and bytes included, on what occurs `min_frequency` times."""

    vocab_size: Annotated[int, Field(ge=SMALLEST, le=LARGEST)]
    min_frequency: Annotated[int, Field(ge=1)]


@arguments()
class BPE(_Trained):
    """Byte-level byte-pair encoding."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        tokenizer = _byte_level(models.BPE(), WORD)
        options: dict[str, Any] = {"special_tokens": SPECIALS, "initial_alphabet": BYTES, "show_progress": False}
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**vars(self), **options))
        return _wrap(tokenizer)


@arguments()
class Unigram:
    """The unigram language model (Kudo 2018, arXiv:1804.10959) over characters, and bytes for what has no piece."""

    vocab_size: Annotated[int, Field(gt=SMALLEST, le=LARGEST)]

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = NORMALIZER
        # Pieces carry their space themselves: a stand-in such as U+2581 could not be told from the same sign in a text.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        room, texts = self.vocab_size - SMALLEST, list(texts)
        # The trainer refuses a vocabulary that cannot hold every sign; bytes spell those that are cut off below.
        size = max(room, len(set[str]().union(*map(normal, texts)))) + 1
        options: dict[str, Any] = {"special_tokens": ["<unk>"], "unk_token": "<unk>", "show_progress": False}
        tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=size, **options))
        trained = json.loads(tokenizer.to_str())["model"]["vocab"]
        scored = _put_in_order([(piece, score) for piece, score in trained if piece != "<unk>"])[:room]
        rare = scored[-1][1] - 10.0
        vocab = [(token, 0.0) for token in SPECIALS] + [(f"<0x{byte:02X}>", rare) for byte in range(256)] + scored
        tokenizer.model = models.Unigram(vocab, SPECIALS.index("<unk>"), byte_fallback=True)
        return _wrap(tokenizer)


def _put_in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The unigram trainer's pieces, best first, freed of what differs from run to run.

    It sums in an order that differs, and gives the signs that it pruned the lowest score plus 0.0001 for each before.
    """
    lowest = min(score for _, score in pieces)
    pruned = lowest + 0.0001 * sum(len(piece) == 1 for piece, _ in pieces) + 1e-5
    scores = [(lowest if len(p) == 1 and score <= pruned else score, p) for p, score in pieces]
    return [(piece, -score) for score, piece in sorted((-round(score, 5), piece) for score, piece in scores)]


@arguments()
class WordPiece(_Trained):
    """BERT's WordPiece on white space and punctuation, with vowel signs kept (BERT's own normaliser strips them).

    Words of printable ASCII, Devanagari and the 1,000 most frequent other signs, where there is room, are known.
    """

    vocab_size: Annotated[int, Field(ge=SMALLEST_WORDPIECE, le=LARGEST)]

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        texts = list(texts)
        alphabet = self._choose_alphabet(texts)
        tokenizer = self._wrap_model({})
        # Named as special tokens because the trainer numbers the alphabet in an order that differs from run to run.
        options: dict[str, Any] = {"special_tokens": [*SPECIALS, *_both_forms(alphabet)], "show_progress": False}
        options |= {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}
        tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(**vars(self), **options))
        # A model anew, because the alphabet must not stay special.
        return _wrap(self._wrap_model(tokenizer.get_vocab()))

    def _wrap_model(self, vocab: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=1000))
        tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        return tokenizer

    def _choose_alphabet(self, texts: Iterable[str]) -> list[str]:
        counts = Counter(c for text in texts for c in normal(text))
        others = [c for c in counts.keys() - set(ALPHABET) if counts[c] >= self.min_frequency and not c.isspace()]
        others.sort(key=lambda c: (-counts[c], c))
        return ALPHABET + others[: min(1000, (self.vocab_size - SMALLEST_WORDPIECE) // 2)]


@arguments()
class Byte:
    """The 256 bytes of UTF-8."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        vocab = {token: i for i, token in enumerate([*SPECIALS, *BYTES])}
        return _wrap(_byte_level(models.BPE(vocab, []), WORD))


@arguments()
class Character(_Trained):
    """Grapheme clusters, conjuncts in one piece; a cluster outside the vocabulary is spelled in bytes."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        counter = _byte_level(models.WordLevel({}, unk_token="<unk>"), CLUSTER)
        trainer = trainers.WordLevelTrainer(**vars(self), special_tokens=["<unk>"], show_progress=False)
        counter.train_from_iterator(texts, trainer)
        found = counter.get_vocab()
        tokens = list(dict.fromkeys([*SPECIALS, *BYTES, *sorted(found, key=found.__getitem__)]))[: self.vocab_size]
        # A byte-pair model without merges: a cluster is looked up whole, or falls into its bytes.
        model = models.BPE({token: i for i, token in enumerate(tokens)}, [], ignore_merges=True)
        return _wrap(_byte_level(model, CLUSTER))


@arguments()
class Pretrained:
    """A fast tokenizer as it is, from a folder that `save_pretrained` wrote or by its name on the hub."""

    name: str
    revision: str | None

    def __post_init__(self) -> None:
        from babylm_train.data.network import check_hub_name

        check_hub_name("tokenizer.name", self.name)

    @property
    def outside_text(self) -> str:
        """What was made from text outside the corpus."""
        return f"tokenizer.name={self.name}"

    def build(self, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
        """The tokenizer; `texts` are not read. Raises InputError: it cannot be loaded, or cannot be used."""
        from babylm_train.data.network import need_hub, offline

        what, local = f"tokenizer.name={self.name}", os.path.isdir(self.name)
        if not local:
            need_hub(what)
        options = {"revision": self.revision or "main", "local_files_only": local or offline()}
        tokenizer = open_tokenizer(what, self.name, **options)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{what} is not a fast tokenizer")
        if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= len(tokenizer):
            raise InputError(f"{what} has ids up to {largest:,}, but {len(tokenizer):,} tokens")
        if tokenizer.eos_token_id is None:
            raise InputError(f"{what} has no end-of-sequence token, which marks where a document ends")
        return tokenizer


def open_tokenizer(what: str, name: str | Path, **options: Any) -> Any:
    """The tokenizer of a folder or of the hub; no code of it is run. Raises InputError that begins with `what`."""
    with load_errors(what):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def load_tokenizer(recipe: Any, corpus: Corpus, cache_dir: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a fragment of conf/tokenizer builds, trained once for a (training split, recipe) pair."""
    if isinstance(recipe, Pretrained):
        return recipe.build()
    key = digest([FORMAT, version("tokenizers"), corpus.train.fingerprint, repr(recipe)])
    folder = cached(Path(cache_dir), "tokenizer", key, lambda f: recipe.build(corpus.train).save_pretrained(f))
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def measure_alteration(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Share of the signs of `texts`, white space aside, that the tokenizer drops or changes before it cuts.

    What is lost, be it vowel signs or capitals, costs no bits: bits per byte flatter such a tokenizer.
    """
    rule, counts, lost = tokenizer.backend_tokenizer.normalizer, 0, 0
    for text in map(normal, texts if rule else ()):
        signs = Counter("".join(text.split()))
        counts, lost = counts + signs.total(), lost + (signs - Counter(normal(rule.normalize_str(text)))).total()
    return lost / max(counts, 1)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of what decides the ids, the same for an exported tokenizer: vocabulary, rules and the marks in use."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [rules[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
    return digest([kept, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id])


def _byte_level(model: models.Model, pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.decoder = NORMALIZER, decoders.ByteLevel()
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
