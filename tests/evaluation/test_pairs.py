"""Minimal pairs of any file, and log-probabilities in three backends, against plain loops."""

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from exported import KINDS, nano
from scipy.stats import binomtest

from babylm_train.errors import InputError
from babylm_train.evaluation.likelihood import token_log_probabilities
from babylm_train.evaluation.pairs import by_phenomenon, intervals, judge, read_pairs, score_pairs
from babylm_train.state import MinimalPair

MASK, SIZE, LENGTH = 2, 40, 12
TEXTS = ["abc", "z", "abcdefg", "ab", "zzzz", "abc", "q"]


class Letters(SimpleNamespace):
    """a = 3 and so on."""

    eos_token_id, mask_token_id, model_max_length, all_special_ids = 0, MASK, LENGTH, [0, 1, 2]

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) - ord("a") + 3 for c in text] for text in texts]}


@pytest.fixture(scope="module")
def models():
    return {name: nano(name, SIZE, LENGTH).eval() for name in KINDS}


def ids_of(text):
    return [0, *Letters()([text])["input_ids"][0]]


def logits(model, ids, both_ways=False):
    mask = {"attention_mask": torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)} if both_ways else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False, **mask).logits[0].double().log_softmax(-1)


def expected(model, text, closing=True, backend="causal"):
    """log p of each token, one at a time; causal: also of the closing mark; else hidden, read there or one before."""
    ids, found = [*ids_of(text), *([0] if closing and backend == "causal" else [])], []
    for i in range(1, len(ids)):
        given = ids if backend == "causal" else [*ids[:i], MASK, *ids[i + 1 :]]
        found.append(logits(model, given, both_ways=backend == "mntp")[i - (backend != "mlm"), ids[i]].item())
    return found


@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name, own in KINDS.items() for backend in own])
@pytest.mark.parametrize("closing", [True, False])
def test_log_probabilities_in_batches(models, name, backend, closing):
    model = models[name].train()
    found = token_log_probabilities(model, Letters(), TEXTS, batch_tokens=9, backend=backend, closing=closing)
    assert model.training
    model.eval()
    for text, scores in zip(TEXTS, found, strict=True):
        assert scores.tolist() == pytest.approx(expected(model, text, closing, backend), rel=1e-5)


def test_a_tie_counts_half(models):
    low, high = sorted(["abc", "xyz"], key=lambda text: sum(expected(models["gpt2"], text)))
    pairs = [MinimalPair(high, low, "right"), MinimalPair(low, high, "wrong"), MinimalPair("ab", "ab", "tie")]
    assert score_pairs(models["gpt2"], Letters(), pairs) == {"all": 0.5, "right": 1.0, "tie": 0.5, "wrong": 0.0}
    hits = judge(models["gpt2"], Letters(), [MinimalPair("abcdefg", "z", "length")])
    long, short = (sum(expected(models["gpt2"], text)) for text in ("abcdefg", "z"))
    assert (hits["summed"][0], hits["per_token"][0]) == (long > short, long / 8 > short / 2)  # the mark is a token


def test_the_interval_is_wilson_s():
    hits = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 1], float)
    groups = by_phenomenon([MinimalPair("a", "b", name) for name in "xxxxxyyyyy"])
    assert list(groups) == ["all", "x", "y"]
    for name, found in intervals(hits, groups).items():
        own = hits[groups[name]]
        bounds = binomtest(int(own.sum()), len(own)).proportion_ci(method="wilson")
        assert [found["low"], found["high"]] == pytest.approx(list(bounds), abs=1e-6)
        assert (found["accuracy"], found["n"]) == (own.mean(), len(own))
    assert found["low"] < 0.6 < found["high"] == 1  # five of five are no certainty


def test_files_of_pairs(tmp_path):
    lines = [{"good": "क", "bad": "ख", "phenomenon": "p"}, {"good": "x", "bad": "y"}]
    lines.insert(1, {"sentence_good": "g", "sentence_bad": "b", "UID": "u", "field": "f"})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf8")
    expected = [MinimalPair("क", "ख", "p"), MinimalPair("g", "b", "u"), MinimalPair("x", "y", "mine")]
    assert read_pairs(str(tmp_path / "mine.jsonl")) == expected
    (tmp_path / "z.tsv").write_text('phenomenon\tgood\tbad\nq\tsay "a\tb\n', encoding="utf8")
    assert read_pairs(str(tmp_path / "z.tsv")) == [MinimalPair('say "a', "b", "q")]
    assert len(read_pairs(str(tmp_path / "*"))) == 4


def test_files_as_others_write_them(tmp_path):
    """MultiBLiMP's columns, byte order marks, gzip, and the quotes of pandas and of a file that has none of its own."""
    rows = [{"sen": 'उसने कहा "हाँ"।', "wrong_sen": "उसने कही हाँ।"}, {"sen": '"हाँ"', "wrong_sen": "ना"}]
    expected = [MinimalPair(row["sen"], row["wrong_sen"], "m") for row in rows]
    lines = "\ufeff" + "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "m.tsv", sep="\t", encoding="utf-8-sig")
    frame.to_csv(tmp_path / "m.tsv.gz", sep="\t", quoting=csv.QUOTE_ALL)
    for path in sorted(tmp_path.iterdir()):
        assert read_pairs(str(path)) == expected, path
    (tmp_path / "raw.tsv").write_text('sen\twrong_sen\n"हाँ" कहा\t"हाँ\n', encoding="utf8")
    assert read_pairs(str(tmp_path / "raw.tsv")) == [MinimalPair('"हाँ" कहा', '"हाँ', "raw")]


def test_no_score_where_there_is_none():
    """Weights that are no numbers, and a text without a token, are errors, never an accuracy."""
    model = nano("gpt2", SIZE, LENGTH)
    with pytest.raises(InputError, match="no token"):
        token_log_probabilities(model, Letters(), [""], closing=False)
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        score_pairs(model, Letters(), [MinimalPair("a", "b", "p")])


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("p.jsonl", b'{"good": "a", "bad": "b"}\n{', "line 2"),
        ("p.jsonl", b'{"good": ""}', "line 1: .*good or sentence_good or sen; there are: good"),
        ("p.jsonl", b'{"good": "a", "bad": "b", "UID": "all"}', "phenomenon named all"),
        ("p.jsonl", b"\xff", "line 1, byte 1"),
        ("p.jsonl.gz", gzip.compress(b'{"good": "a", "bad": "b"}\n' * 99, mtime=0)[:40], ""),
        ("p.tsv", b"good\tbad\na\n", "line 2"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{named}"):
        read_pairs(str(tmp_path / name))
