"""Feature counts against sentences counted by hand, and properties of the splitting."""

import re
import unicodedata
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from babylm_train.curriculum import hindi


def test_curated_sentences_each_by_itself_and_all_together():
    lines = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    texts = [re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), row[0]) for row in rows]
    by_hand = [[int(count) for count in row[1:4]] for row in rows]
    assert len(set(texts)) == len(texts) >= 120
    assert [hindi.count_features([text])[1:, 0].tolist() for text in texts] == by_hand
    assert hindi.count_features(texts)[1:].T.tolist() == by_hand


def test_words():
    found = hindi.split_words("माता-पिता 3.5 किलो है।वह उन्\u200dहें \u200d")
    assert "|".join(found) == "माता|पिता|3.5|किलो|है|वह|उन्हें"


@given(st.lists(st.text(alphabet="कखरनेहैाीो़ँं्\u200d\u200c -।.?,\n\u095c3a", max_size=40), max_size=8))
def test_any_text_is_counted_and_unicode_form_does_not_matter(texts):
    found = hindi.count_features(texts)
    assert found.shape == (4, len(texts))
    assert (found >= 0).all()
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    np.testing.assert_array_equal(found, hindi.count_features(decomposed))
