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
    return [(unescape.sub(lambda m: chr(int(m[1], 16)), text), int(c), int(v), int(k)) for text, c, v, k, _ in rows]


def counts(text):
    found = hindi.count_features([text])
    return tuple(int(column[0]) for column in (found.case, found.verb, found.compound))


def test_curated_sentences():
    rows = curated()
    assert len({row[0] for row in rows}) == len(rows) >= 120
    wrong = [(row, counts(row[0])) for row in rows if counts(row[0]) != row[1:]]
    assert not wrong


def test_documents_do_not_touch_each_other():
    texts = [row[0] for row in curated()]
    together = hindi.count_features(texts)
    assert [tuple(map(int, row)) for row in zip(*together[1:], strict=True)] == [counts(text) for text in texts]
    np.testing.assert_array_equal(hindi.count_words(texts), together.words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("राम ने।", ["राम", "ने"]),
        ("माता-पिता आए", ["माता", "पिता", "आए"]),
        ("", []),
        ("।", []),
        ("--- ,", []),
        ("3.5 किलो", ["3.5", "किलो"]),
        ("उन्\u200dहें", ["उन्हें"]),
        ("\u200d", []),
        ("a b\nc", ["a", "b", "c"]),
        ("है।वह", ["है", "वह"]),
    ],
)
def test_words(text, words):
    assert hindi.split_words(text) == words
    assert hindi.count_features([text]).words.tolist() == [len(words)]


def test_no_documents():
    assert [len(column) for column in hindi.count_features([])] == [0] * 4
    assert len(hindi.count_words([])) == 0


def test_sentences_are_apart():
    assert counts("जो पढ़ता है\nवह जीतता है") == (0, 4, 0)
    assert counts("जो आया वह गया और जो गया वह आया")[2] == 1


@given(st.lists(st.text(alphabet="कखरनेहैाीो़ँं्\u200d\u200c -।.?,\n\u095c3a", max_size=40), max_size=8))
def test_any_text_is_counted_and_unicode_form_does_not_matter(texts):
    found = hindi.count_features(texts)
    assert all(column.shape == (len(texts),) and (column >= 0).all() for column in found)
    decomposed = hindi.count_features([unicodedata.normalize("NFD", text) for text in texts])
    for a, b in zip(found, decomposed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_tables_are_clean():
    lines = hindi.TABLES.read_text(encoding="utf8").splitlines()
    for line in lines:
        assert not line or line.startswith("# ") or re.fullmatch(r"\w+\t[^\t]+\t[\u0900-\u0963, ]+", line), line
