"""Every tokenizer spells every text and is the same in every process; every word begins in exactly one token."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from babylm_train.data import tokenizer as own
from babylm_train.data import tokens
from babylm_train.data.corpus import CorpusOptions, load_corpus, normal
from babylm_train.data.tokenizer import BPE, Byte, Character, Pretrained, Unigram, WordPiece
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.errors import InputError
from babylm_train.model.export import submitted

TEXTS = [
    "लड़की ने किताब पढ़ी। क्षेत्र में स्त्री ज्ञानी है।",
    "राम घर जाता है, सीता वन जाती है!\nक्या वह १२ या 12 बजे आएगा?",
    "हिन्दी की किताबें घर में हैं। लड़के घर जाते हैं।",
    "The cat sat on the mat; हिन्दी and English.",
] * 3
RECIPES = [BPE(600, 2), Unigram(500), WordPiece(700, 2), Byte(), Character(400, 1)]
BUILT = {type(recipe).__name__: recipe.build(TEXTS) for recipe in RECIPES}
EXACT = [name for name in BUILT if name != "WordPiece"]

# Devanagari in any order, joiners included, and what could pass for markup of the tokenizers themselves.
PIECES = st.sampled_from(["<eos>", "<0x41>", "##", "▁", "Ġ", " ", "\n", "क्षि", "<unk>", "é", "漢", "😀"])
ANY = st.one_of(st.characters(min_codepoint=0x0900, max_codepoint=0x097F), st.characters(codec="ascii"), PIECES)
HINDI = st.lists(ANY | st.sampled_from("\u200c\u200d"), max_size=30).map(
    lambda p: unicodedata.normalize("NFC", "".join(p))  # joiners are normalised away
)
HARD = ["<eos>", "<unk> <pad>", "▁ ▁क", "Ġ Ċ", "##घर ## #", "क़ ख़ 漢字", "😀😀 😀", "् ि", "a\nb c", "x" * 1200]


def encode(tmp_path: Path, texts: list[str], tokenizer) -> TokenizedSplit:
    """The tokens of `texts`, whose words add up in every document."""
    options = CorpusOptions(validation_share=0.5, seed=0, max_length=8, cache_dir=str(tmp_path))
    corpus = load_corpus(options, iter, texts, ["राम वन।"], identity={"texts": texts})
    made = tokenize(corpus.train, tokenizer, cache_dir=tmp_path)
    sums = np.add.reduceat(made.word_starts, made.offsets[:-1], dtype=np.int64)
    assert sums.tolist() == [len(text.split()) for text in texts]
    return made


@settings(max_examples=150, deadline=None)
@given(HINDI)
def test_round_trips(text):
    """Exact but for WordPiece, which forgets where spaces stood."""
    ids = {name: tokenizer(text, split_special_tokens=True)["input_ids"] for name, tokenizer in BUILT.items()}
    assert {BUILT[name].decode(ids[name]) for name in EXACT} == {normal(text)}
    if BUILT["WordPiece"].unk_token_id not in ids["WordPiece"]:
        assert "".join(BUILT["WordPiece"].decode(ids["WordPiece"]).split()) == "".join(normal(text).split())


def test_pieces_by_hand():
    def pieces(name: str, text: str) -> list[str]:
        return [BUILT[name].decode([i]) for i in BUILT[name].encode(text)]

    assert pieces("Character", "क्षे त्र स्त्री!") == ["क्षे", " ", "त्र", " ", "स्त्री", "!"]
    assert pieces("WordPiece", "घर, है।") == ["घर", ",", "है", "।"]
    assert len(BUILT["Byte"].encode("क ")) == 4
    assert len(BUILT["Character"].encode("ञ्झ")) == 9  # a cluster never seen: its bytes
    for name in ("BPE", "Unigram", "WordPiece", "Byte"):  # words are not cut at vowel signs
        spans = BUILT[name].backend_tokenizer.pre_tokenizer.pre_tokenize_str(text := "लड़की किताबें क्षि")
        assert [text[a:b].strip() for _, (a, b) in spans if text[a:b].strip()] == text.split()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_saved_beside_a_model_it_loads_as_it_was(recipe, tmp_path):
    """And spells text that was not cleaned as the training text: joiners, a byte order mark, marks of direction, NFD."""
    tokenizer = BUILT[type(recipe).__name__]
    assert len(tokenizer) <= getattr(recipe, "vocab_size", 263)
    tokenizer.model_max_length = 64
    for number, saved in enumerate((tokenizer, submitted(tokenizer))):
        saved.save_pretrained(folder := tmp_path / str(number))
        GPT2Config().save_pretrained(folder)
        for again in (AutoTokenizer.from_pretrained(folder), Pretrained(str(folder), None).build()):
            assert again.model_max_length == 64
            for raw in ("\ufeffक्षे\u200cत्र\u200b में", "\u200eज\u00ad़\u0301 e\u200d\u0301", "\u0928\u093c"):
                assert normal(raw) != raw
                assert again(raw)["input_ids"] == again(normal(raw))["input_ids"]
            assert own.tokenizer_fingerprint(again) == own.tokenizer_fingerprint(tokenizer)
            assert again.encode(TEXTS[1])[number:] == tokenizer.encode(TEXTS[1])


CODE = """
from babylm_train.data.tokenizer import *
def word(i, j):
    return chr(0x915 + i * j % 30) + chr(0x93e + (i + j) % 9) * (j % 2) + chr(97 + i * j % 7)
texts = [" ".join(word(i, j) for j in range(20)) for i in range(200)]
for recipe in (BPE(400, 1), Unigram(400), WordPiece(600, 1), Character(300, 1)):
    print(tokenizer_fingerprint(recipe.build(texts)))
"""


def test_training_is_the_same_in_every_process():
    command = [sys.executable, "-c", CODE]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert len(set(one.split())) == 4
    assert one == two


def test_stored_tokens_by_hand(tmp_path):
    tokenizer = Byte().build([])
    tokenizer.backend_tokenizer.enable_truncation(3)  # the caller's, and left as it is
    made = encode(tmp_path, ["ab c", "\u0915"], tokenizer)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
    a, b, space, c, *ka = tokenizer.convert_tokens_to_ids(["a", "b", "Ġ", "c", "à", "¤", "ķ"])
    assert made.ids.tolist() == [made.eos, a, b, space, c, made.eos, *ka]
    assert made.word_starts.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert (made.offsets.tolist(), made.bytes.tolist(), made.words.tolist()) == ([0, 5, 9], [4, 3], [2, 1])
    assert (made.eos, made.unknown, made.ids.dtype) == (tokenizer.eos_token_id, 0, np.uint16)
    assert isinstance(made.ids, np.memmap)


@pytest.mark.parametrize("name", BUILT)
def test_word_starts_add_up_on_hard_texts(name, tmp_path):
    made = encode(tmp_path, HARD, BUILT[name])
    bodies = [made.ids[a + 1 : b] for a, b in zip(made.offsets, made.offsets[1:], strict=False)]
    assert (made.ids[made.offsets[:-1]] == made.eos).all()
    assert not any((body == made.eos).any() for body in bodies)  # "<eos>" in a text is text
    assert (made.unknown == 0) == (name != "WordPiece")


def test_word_starts_of_a_tokenizer_that_others_made(tmp_path, monkeypatch):
    """Lower case, and tokens across words."""
    vocab = [("<eos>", 0.0), ("<unk>", -20.0), ("▁", -1.0), *((c, -2.0) for c in "abcdefक"), ("▁ab▁c", -0.5)]
    backend = Tokenizer(models.Unigram(vocab, 1))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    monkeypatch.setattr(tokens, "CHUNK_BYTES", 10)  # in several chunks
    made = encode(tmp_path, ["ab c ab", "AB c\nक d", "c a b de", "ab ab cde f f", "f\nab cd"], theirs)
    assert made.word_starts[:4].tolist() == [0, 2, 0, 1]  # the mark, "▁ab▁c", "▁", "a"


def test_what_a_normaliser_loses_by_hand():
    theirs = Byte().build([])
    assert own.measure_alteration(theirs, ["झोंपड़ी  Ab\u200d"]) == 0
    rules = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    theirs.backend_tokenizer.normalizer = normalizers.Sequence(rules)
    assert own.measure_alteration(theirs, ["झोंपड़ी Ab", "é"]) == 6 / 10  # four marks, the capital, the accent


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_folder_is_one_line(tmp_path, name):
    for text in ("null", "[]", "{", "[" * 100_000, '{"model": {"type": "x"}, "eos_token": 7}'):
        Byte().build([]).save_pretrained(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=tmp_path.name):
            Pretrained(str(tmp_path), None).build()
