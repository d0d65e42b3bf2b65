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


@pytest.mark.parametrize(("text", "case", "verb", "compound"), curated())
def test_curated_sentence(text, case, verb, compound):
    assert counts(text) == (case, verb, compound)


def test_the_curated_sentences_are_many_and_different():
    texts = [row[0] for row in curated()]
    assert len(set(texts)) == len(texts) >= 120


def test_documents_do_not_touch_each_other():
    texts = [row[0] for row in curated()]
    together = hindi.count_features(texts)
    assert [tuple(map(int, row)) for row in zip(*together[1:], strict=True)] == [counts(text) for text in texts]


def test_blocks_give_what_one_pass_gives(monkeypatch):
    texts = [row[0] for row in curated()] * 3
    whole = hindi.count_features(texts)
    monkeypatch.setattr(hindi, "BLOCK_ITEMS", 7)
    for a, b in zip(whole, hindi.count_features(texts), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(hindi.count_words(texts), whole.words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("राम ने।", 2),
        ("माता-पिता आए", 3),
        ("", 0),
        ("।", 0),
        ("--- ,", 0),
        ("3.5 किलो", 2),
        ("उन्\u200dहें", 1),
        ("\u200d", 0),
        ("a b\nc", 3),
        ("है।वह", 2),
        ("हिंदी", 1),
    ],
)
def test_words(text, words):
    assert hindi.count_words([text]).tolist() == [words]
    assert hindi.count_features([text]).words.tolist() == [words]


def test_no_documents():
    assert [len(column) for column in hindi.count_features([])] == [0] * 4
    assert len(hindi.count_words([])) == 0


def test_a_line_end_ends_a_sentence():
    assert counts("जो पढ़ता है\nवह जीतता है") == (0, 4, 0)


def test_an_unbroken_text_of_one_sentence_counts_a_correlative_pair_once():
    assert counts("जो आया वह गया और जो गया वह आया")[2] == 1


@given(st.lists(st.text(alphabet="कखरनेहैाीो़ँं्\u200d\u200c -।.?,\n\u095c3a", max_size=40), max_size=8))
def test_any_text_is_counted_and_unicode_form_does_not_matter(texts):
    found = hindi.count_features(texts)
    assert all(column.shape == (len(texts),) and (column >= 0).all() for column in found)
    decomposed = hindi.count_features([unicodedata.normalize("NFD", text) for text in texts])
    for a, b in zip(found, decomposed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tables_are_clean():
    stems = hindi._listed(hindi.STEMS)
    assert len(set(stems)) > 800
    assert hindi.rules_digest() == hindi.rules_digest()
    for group in (hindi.STOP_WORDS, hindi.HONA_HOSTS, hindi.NOT_HOSTS, hindi.STEMS):
        assert re.fullmatch(r"[\u0900-\u0963\s]+", group)
