from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from babylm_train.data import tokens
from babylm_train.data.corpus import CorpusOptions, Split, fold, load_corpus
from babylm_train.data.tokenizer import BPE, Byte, Character, Unigram, WordPiece
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.errors import InputError
from babylm_train.state import Document

TRAIN = ["लड़की ने किताब पढ़ी। क्षेत्र में ज्ञानी है।", "राम घर जाता है,\nसीता वन जाती है!"] * 4
RECIPES = [
    BPE(vocab_size=500, min_frequency=2),
    Unigram(vocab_size=400),
    WordPiece(vocab_size=700, min_frequency=2),
    Byte(),
    Character(vocab_size=400, min_frequency=1),
]
BUILT = {type(recipe).__name__: recipe.build(TRAIN) for recipe in RECIPES}
HARD = [
    "<eos>",
    "<unk> <pad>",
    "▁ ▁क",
    "Ġ Ċ",
    "##घर ## #",
    "क़ ख़ 漢字かな",
    "😀😀 😀",
    "् ि",
    "a\nb c",
    "।।।",
    "x" * 1200,
    "राम,घर",
]


def split(tmp_path: Path, texts) -> Split:
    held = [Document("held out")]
    options = CorpusOptions(validation_share=0.5, seed=0, max_length=8, cache_dir=str(tmp_path))
    return load_corpus(lambda: ([Document(t) for t in texts], held), options, identity={"texts": list(texts)}).train


def encode(tmp_path: Path, texts, tokenizer) -> TokenizedSplit:
    documents = split(tmp_path, texts)
    return tokenize(documents, tokenizer, cache_dir=tmp_path)


def sums(made: TokenizedSplit) -> list[int]:
    return np.add.reduceat(made.word_starts, made.offsets[:-1], dtype=np.int64).tolist()


def pretrained(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers such as others make: lower case and tokens across words; a normaliser that drops text."""
    if kind == "metaspace":
        vocab = [("<eos>", 0.0), ("<unk>", -20.0), ("▁", -1.0), *((c, -2.0) for c in "abcdefक"), ("▁ab▁c", -0.5)]
        backend = Tokenizer(models.Unigram(vocab, 1))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    else:
        backend = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>"))
        backend.normalizer = normalizers.Replace(Regex("[ab ]"), "")
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("..."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def test_layout_by_hand(tmp_path):
    made = encode(tmp_path, ["ab c", "\u0915"], BUILT["Byte"])
    byte = {c: BUILT["Byte"].convert_tokens_to_ids(c) for c in ("a", "b", "Ġ", "c", "à", "¤", "ķ")}
    eos = BUILT["Byte"].eos_token_id
    assert made.ids.tolist() == [eos, byte["a"], byte["b"], byte["Ġ"], byte["c"], eos, byte["à"], byte["¤"], byte["ķ"]]
    assert made.word_starts.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert made.offsets.tolist() == [0, 5, 9]
    assert (made.bytes.tolist(), made.words.tolist(), made.eos, made.unknown) == ([4, 3], [2, 1], eos, 0)
    assert made.ids.dtype == np.uint16
    assert isinstance(made.ids, np.memmap)


@pytest.mark.parametrize("name", BUILT)
def test_word_starts_add_up_on_hard_texts(name, tmp_path):
    made = encode(tmp_path, HARD, BUILT[name])
    assert sums(made) == [len(text.split()) for text in HARD]
    bodies = [made.ids[a + 1 : b] for a, b in zip(made.offsets, made.offsets[1:], strict=False)]
    assert (made.ids[made.offsets[:-1]] == made.eos).all()
    assert not any((body == made.eos).any() for body in bodies)  # "<eos>" in a text is text
    if name != "WordPiece":
        assert made.unknown == 0
        assert [BUILT[name].decode(body) for body in bodies] == HARD
    else:
        assert made.unknown > 0


@pytest.mark.parametrize("name", BUILT)
def test_word_starts_add_up(name, tmp_path_factory):
    letters = st.sampled_from(["क", "ा", "्", "ष", "़", "a", "1", ",", "▁", "Ġ", " ", " ", "\n", "é", "😀"])

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.lists(letters, min_size=1).map("".join), min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        texts = list(dict.fromkeys(filter(None, map(fold, texts))))
        if texts:
            made = encode(tmp_path_factory.mktemp("t"), texts, BUILT[name])
            assert sums(made) == [len(text.split()) for text in texts]

    check()


@pytest.mark.parametrize("kind", ["metaspace", "dropping"])
def test_word_starts_of_pretrained_tokenizers(kind, tmp_path):
    texts = ["ab c ab", "AB c\nक d", "c a b de", "ab ab cde f f", "f\nab cd"]
    made = encode(tmp_path, texts, pretrained(kind))
    assert sums(made) == [len(text.split()) for text in texts]
    if kind == "metaspace":
        assert made.word_starts[:4].tolist() == [0, 2, 0, 1]  # the mark, "▁ab▁c", "▁", "a"


def test_a_tokenizer_that_loses_a_document_is_refused(tmp_path):
    with pytest.raises(InputError, match="gives a document no token"):
        encode(tmp_path, ["cd", "ab ba"], pretrained("dropping"))


def test_many_chunks_and_a_second_opening(tmp_path, monkeypatch, capfd):
    texts = [f"पाठ {i} राम घर, {i}।" for i in range(60)]
    whole = encode(tmp_path / "a", texts, BUILT["BPE"])
    monkeypatch.setattr(tokens, "CHUNK_BYTES", 100)
    parts = encode(tmp_path / "b", texts, BUILT["BPE"])
    assert parts.fingerprint == whole.fingerprint
    for name in ("ids", "offsets", "word_starts"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    monkeypatch.setattr(tokens, "_encode", lambda *_: pytest.fail("encoded again"))
    assert encode(tmp_path / "b", texts, BUILT["BPE"]).ids.tolist() == whole.ids.tolist()
    assert capfd.readouterr().err == ""  # no bar where no terminal is


def test_the_callers_tokenizer_is_left_as_it_was(tmp_path):
    tokenizer = Byte().build([])
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert encode(tmp_path, ["a long text"], tokenizer).offsets.tolist() == [0, 12]
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
