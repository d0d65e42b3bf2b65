import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer, GPT2Config

from babylm_train.data.corpus import Corpus, CorpusOptions, load_corpus, normal
from babylm_train.data.tokenizer import (
    BPE,
    SPECIAL,
    Byte,
    Character,
    Pretrained,
    Unigram,
    WordPiece,
    load_tokenizer,
    tokenizer_fingerprint,
)
from babylm_train.data.tokens import describe_tokens, tokenize
from babylm_train.errors import InputError
from babylm_train.model.export import submitted
from babylm_train.state import Document

TEXTS = [
    "लड़की ने किताब पढ़ी। क्षेत्र में स्त्री ज्ञानी है।",
    "राम घर जाता है, सीता वन जाती है!\nक्या वह १२ या 12 बजे आएगा?",
    "हिन्दी की किताबें घर में हैं। लड़के घर जाते हैं।",
    "The cat sat on the mat; हिन्दी and English.",
] * 3
RECIPES = [
    BPE(vocab_size=600, min_frequency=2),
    Unigram(vocab_size=500),
    WordPiece(vocab_size=700, min_frequency=2),
    Byte(),
    Character(vocab_size=400, min_frequency=1),
]
EXACT = [recipe for recipe in RECIPES if not isinstance(recipe, WordPiece)]
BUILT = {type(recipe): recipe.build(TEXTS) for recipe in RECIPES}

# Devanagari in any order, joiners included, and what could pass for markup of the tokenizers themselves.
PIECES = st.sampled_from(["<eos>", "<0x41>", "##", "▁", "Ġ", " ", "\n", "क्षि", "<unk>", "é", "漢", "😀"])
ANY = st.one_of(st.characters(min_codepoint=0x0900, max_codepoint=0x097F), st.characters(codec="ascii"), PIECES)
HINDI = st.lists(ANY | st.sampled_from("\u200c\u200d"), max_size=30).map(
    lambda p: unicodedata.normalize("NFC", "".join(p))  # joiners are normalised away
)


def corpus(tmp_path: Path) -> Corpus:
    options = CorpusOptions(validation_share=0.5, seed=0, max_length=8, cache_dir=str(tmp_path))
    return load_corpus(lambda: ([Document(t) for t in TEXTS], [Document("राम घर।")]), options, identity={})


def pieces(recipe_type, text: str) -> list[str]:
    tokenizer = BUILT[recipe_type]
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("recipe", EXACT, ids=lambda r: type(r).__name__)
def test_round_trip_is_exact(recipe):
    tokenizer = BUILT[type(recipe)]

    @settings(max_examples=150, deadline=None)
    @given(HINDI)
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == normal(text)

    check()


@settings(max_examples=150, deadline=None)
@given(st.text(st.one_of(st.characters(min_codepoint=0x0900, max_codepoint=0x097F), st.sampled_from("aZ09.,;!-'# \n"))))
def test_wordpiece_round_trip_up_to_spacing(text):
    tokenizer = BUILT[WordPiece]
    text = unicodedata.normalize("NFC", text)
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "".join(text.split())


@pytest.mark.parametrize(
    "recipe",
    [
        BPE(vocab_size=263, min_frequency=1),
        Unigram(vocab_size=264),
        WordPiece(vocab_size=416, min_frequency=1),
        Character(vocab_size=263, min_frequency=1),
    ],
    ids=repr,
)
def test_the_smallest_vocabularies_spell_everything(recipe):
    tokenizer = recipe.build(["राम घर"])
    assert len(tokenizer) <= recipe.vocab_size
    assert tokenizer.decode(tokenizer.encode("क्षेत्र में 12 ab")) == "क्षेत्र में 12 ab"


@pytest.mark.parametrize("recipe", [BPE, Unigram, WordPiece, Byte, Character])
def test_words_are_not_cut_at_vowel_signs(recipe):
    backend = BUILT[recipe].backend_tokenizer
    text = "लड़की किताबें क्षि"
    spans = [text[a:b].strip() for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text) if text[a:b].strip()]
    assert spans == (["ल", "ड़", "की", "कि", "ता", "बें", "क्षि"] if recipe is Character else text.split())


def test_pieces_by_hand():
    assert pieces(Character, "क्षे त्र स्त्री!") == ["क्षे", " ", "त्र", " ", "स्त्री", "!"]
    assert pieces(WordPiece, "घर, है।") == ["घर", ",", "है", "।"]
    assert len(BUILT[Byte].encode("क ")) == 4
    assert len(BUILT[Character].encode("ञ्झ")) == 9  # a cluster never seen: its bytes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_saved_beside_a_model_it_loads_as_it_was(recipe, tmp_path):
    tokenizer = BUILT[type(recipe)]
    assert len(tokenizer) <= getattr(recipe, "vocab_size", 263)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL.values())) == list(range(7))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), Pretrained(name=str(tmp_path), revision=None).build()):
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
        assert again.model_max_length == 64
        assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
        assert {name: getattr(again, name) for name in SPECIAL} == SPECIAL


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_text_that_was_not_cleaned_is_spelled_as_the_training_text(recipe, tmp_path):
    """Joiners, a byte order mark and marks of direction, NFD: the ids of the clean spelling, after an export too."""
    submitted(BUILT[type(recipe)]).save_pretrained(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    for raw in ("क्\u200dया वह", "\ufeffक्षे\u200cत्र\u200b में", "\u200eज\u00ad़\u0301 e\u200d\u0301", "\u0928\u093c"):
        assert normal(raw) != raw
        assert exported(raw)["input_ids"] == exported(normal(raw))["input_ids"]


CODE = """
from babylm_train.data.tokenizer import *
def word(i, j):
    return chr(0x915 + i * j % 30) + chr(0x93e + (i + j) % 9) * (j % 2) + chr(97 + i * j % 7)
texts = [" ".join(word(i, j) for j in range(20)) for i in range(200)]
for recipe in (BPE(vocab_size=400, min_frequency=1), Unigram(vocab_size=400), WordPiece(vocab_size=600, min_frequency=1), Character(vocab_size=300, min_frequency=1)):
    print(tokenizer_fingerprint(recipe.build(texts)))
"""


def test_training_is_the_same_in_every_process():
    command = [sys.executable, "-c", CODE]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert len(set(one.split())) == 4
    assert one == two


def test_trained_once_on_the_training_split(tmp_path, monkeypatch):
    made, recipe = corpus(tmp_path), BPE(vocab_size=600, min_frequency=2)
    first = load_tokenizer(recipe, made, tmp_path)
    monkeypatch.setattr(BPE, "build", lambda *_: pytest.fail("trained again"))
    assert tokenizer_fingerprint(load_tokenizer(recipe, made, tmp_path)) == tokenizer_fingerprint(first)
    direct = BUILT[BPE]  # from texts that repeat: the corpus holds each once, so pairs seen twice are fewer
    assert len(first) < len(direct)


def test_the_vocabulary_in_one_line(tmp_path):
    made = corpus(tmp_path)
    split = tokenize(made.validation, BUILT[Byte], cache_dir=tmp_path)
    # 5 letters and signs and a danda, 3 bytes each, and a space: 19 bytes, 2 words
    assert "19 tokens, 9.500 a word, 0.000% unknown" in describe_tokens(BUILT[Byte], split, recipe=Byte())
    assert "asked 9,000" in describe_tokens(BUILT[BPE], split, recipe=BPE(vocab_size=9000, min_frequency=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BPE(vocab_size=262, min_frequency=2), "vocab_size"),
        (lambda: Unigram(vocab_size=263), "vocab_size"),
        (lambda: WordPiece(vocab_size=263, min_frequency=2), "vocab_size"),
        (lambda: Character(vocab_size=262, min_frequency=2), "vocab_size"),
        (lambda: BPE(vocab_size=300, min_frequency=0), "min_frequency"),
        (lambda: BPE(vocab_size="300", min_frequency=1), "vocab_size"),
        (lambda: Pretrained(name="./none", revision=None), r"tokenizer\.name: no such folder: \./none"),
        (lambda: Pretrained(name="क" * 300, revision=None), r"tokenizer\.name=.* does not answer|cannot be loaded"),
    ],
)
def test_bad_recipes_name_their_key(make, message):
    with pytest.raises((InputError, ValidationError), match=message):
        make().build([])


def test_bad_pretrained(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot be loaded: "):
        Pretrained(name=str(tmp_path), revision=None).build()
    tokenizer = Byte().build([])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    with pytest.raises(InputError, match="no end-of-sequence token"):
        Pretrained(name=str(tmp_path / "t"), revision=None).build()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(InputError, match=r"tokenizer\.name=owner/name: .* does not answer"):
        Pretrained(name="owner/name", revision=None).build()


def test_importing_is_cheap():
    code = (
        "import sys, babylm_train.data.tokenizer, babylm_train.data.read;"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
