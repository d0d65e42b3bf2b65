"""Feature counts against sentences counted by hand, and properties of the splitting."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylm_train.curriculum import hindi


def curated():
    lines = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    unescape = re.compile(r"\\u([0-9a-f]{4})")
    return [(unescape.sub(lambda m: chr(int(m[1], 16)), text), [int(c), int(v), int(k)]) for text, c, v, k, _ in rows]


def counts(text):
    return hindi.count_features([text])[1:, 0].tolist()


def test_curated_sentences_each_by_itself_and_all_together():
    texts, by_hand = zip(*curated(), strict=True)
    assert len(set(texts)) == len(texts) >= 120
    assert not [(text, counts(text)) for text, expected in zip(texts, by_hand, strict=True) if counts(text) != expected]
    assert hindi.count_features(texts)[1:].T.tolist() == list(by_hand)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("राम ने।", ["राम", "ने"]),
        ("माता-पिता आए", ["माता", "पिता", "आए"]),
        ("3.5 किलो", ["3.5", "किलो"]),
        ("उन्\u200dहें \u200d", ["उन्हें"]),
        ("a b\nc", ["a", "b", "c"]),
        ("है।वह", ["है", "वह"]),
    ],
)
def test_words(text, words):
    assert hindi.split_words(text) == words
    assert hindi.count_features([text])[0] == len(words)


def test_sentences_are_apart():
    assert counts("जो पढ़ता है\nवह जीतता है") == [0, 4, 0]
    assert counts("जो आया वह गया और जो गया वह आया")[2] == 1


@given(st.lists(st.text(alphabet="कखरनेहैाीो़ँं्\u200d\u200c -।.?,\n\u095c3a", max_size=40), max_size=8))
def test_any_text_is_counted_and_unicode_form_does_not_matter(texts):
    found = hindi.count_features(texts)
    assert found.shape == (4, len(texts))
    assert (found >= 0).all()
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    np.testing.assert_array_equal(found, hindi.count_features(decomposed))


def test_the_tables_are_clean():
    for line in hindi.TABLES.read_text(encoding="utf8").splitlines():
        assert not line or line.startswith("# ") or re.fullmatch(r"\w+\t[^\t]+\t[\u0900-\u0963, ]+", line), line
