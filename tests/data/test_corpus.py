from pathlib import Path

import numpy as np
import pytest

from babylm_train.data.corpus import Corpus, CorpusOptions, describe, fold, load_corpus
from babylm_train.errors import InputError


def corpus(tmp_path: Path, texts, held=None, max_words=None, **changes) -> Corpus:
    options = {"validation_share": 0.25, "seed": 1, "max_length": 8, "cache_dir": str(tmp_path), **changes}
    return load_corpus(CorpusOptions(**options), iter, texts, held, identity={"texts": texts}, max_words=max_words)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  राम\t घर ", "राम घर"),
        ("क\u200dक\ufeff\u200b", "कक"),
        ("e\u0301 \u0915\u093c", "é \u0915\u093c"),  # the nukta stays apart: it is excluded from composition
        ("e\u200d\u0301", "é"),  # only NFC after the joiner is gone
        ("क।\r\n\n \n ख॥\u2028ग", "क।\nख॥\nग"),
        ("\u00a0\x0b \u3000", ""),
    ],
)
def test_fold(raw, clean):
    assert fold(raw) == clean
    assert fold(clean) == clean


def test_counts_by_hand(tmp_path):
    made = corpus(tmp_path, ["राम घर", "ab", " राम  घर ", "\u200b", "x\x1b[2J", "बस\nदो"], ["ab", "ab", "हाँ"])
    assert list(made.train) == ["राम घर", "बस\nदो"]
    assert list(made.validation) == ["ab", "हाँ"]
    assert made.train.words.tolist() == [2, 2]
    assert made.train.bytes.tolist() == [16, 13]
    assert made.report["read"] == 9
    assert made.report["dropped"] == {"empty": 1, "with control characters": 1, "duplicates": 2, "in validation": 1}
    assert made.report["train"] == {"documents": 2, "words": 4, "characters": 11, "bytes": 29, "devanagari": 1.0}
    assert made.report["validation"]["devanagari"] == pytest.approx(3 / 5)
    lines = describe(made).splitlines()
    assert ["Devanagari" in line for line in lines] == [False, True, True]
    assert "Devanagari" not in describe(corpus(tmp_path, ["மழை வந்தது", "rain"]))


def test_split_is_seeded_and_by_document(tmp_path):
    texts = [f"दस्तावेज़ {i}\nदूसरी पंक्ति {i}" for i in range(40)]
    one, again, other = corpus(tmp_path, texts), corpus(tmp_path / "x", texts), corpus(tmp_path, texts, seed=2)
    assert len(one.validation) == 10
    assert sorted([*one.train, *one.validation]) == sorted(map(fold, texts))
    assert list(one.train) == sorted(one.train, key=list(map(fold, texts)).index)
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint
    assert corpus(tmp_path, ["ab", "c"], ["z"]).fingerprint != corpus(tmp_path, ["a", "bc"], ["z"]).fingerprint
    assert one.train[1:3] == list(one.train)[1:3]


def test_a_word_without_end_is_dropped_and_named(tmp_path):
    """BPE takes its square in seconds to train on, and of 100,000 letters it ends the unigram trainer by a signal."""
    made = corpus(tmp_path, ["a b", "c " + "क" * 10_000, "d " + "क" * 10_001, "x" * 1_000_000, "e\n" * 20_000])
    assert sorted(map(len, [*made.train, *made.validation])) == [3, 10_002, 39_999]
    assert "2 with a word of over 10,000 letters" in describe(made)


def test_word_budget_is_kept_and_nested(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}x{j}" for j in range(rng.integers(1, 9))) for i in range(50)]
    taken: set[str] = set()
    for budget in (20, 60, 100):
        made = corpus(tmp_path, texts, ["held"], max_words=budget)
        assert budget - 8 <= made.train.words.sum() <= budget
        assert made.report["dropped"]["over data.max_words"] == 50 - len(made.train)
        assert taken <= set(made.train)
        taken = set(made.train)


@pytest.mark.parametrize(
    ("texts", "held", "options", "message"),
    [
        (["", "\u200b"], None, {}, "no document (dropped: 2 empty)"),
        (["one"], None, {}, "give data.validation files"),
        (["a b c", "d e f"], ["x"], {"max_words": 2}, "data.max_words=2 admits no document"),
    ],
)
def test_bad_corpora(tmp_path, texts, held, options, message):
    with pytest.raises(InputError) as caught:
        corpus(tmp_path, texts, held, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # nothing half-built stays
