"""Minimal pairs of any file, and log-probabilities in three backends, against plain loops."""

import csv
import gzip
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import model_of

from babylm_train.errors import InputError
from babylm_train.evaluation.command import evaluate_texts, future_leak, options
from babylm_train.evaluation.likelihood import batches_by_length, token_log_probabilities, too_long
from babylm_train.evaluation.pairs import by_phenomenon, intervals, judge, read_pairs
from babylm_train.state import MinimalPair

MASK, SIZE, LENGTH = 2, 40, 12


class Letters(SimpleNamespace):
    """a = 3 and so on."""

    eos_token_id, mask_token_id, model_max_length, all_special_ids = 0, MASK, LENGTH, [0, 1, 2]

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) - ord("a") + 3 for c in text] for text in texts]}

    def __len__(self):
        return SIZE


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: model_of(f"{name}_nano", SIZE, LENGTH).eval() for name in ("gpt2", "modern", "modernbert", "deberta")}


TEXTS = ["abc", "z", "abcdefg", "ab", "zzzz", "abc", "q"]


def ids_of(text):
    return [0, *Letters()([text])["input_ids"][0]]


def logits(model, ids, both_ways=False):
    mask = {"attention_mask": torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)} if both_ways else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False, **mask).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("name", ["gpt2", "modern"])
@pytest.mark.parametrize("closing", [True, False])
def test_causal(models, name, closing):
    found = token_log_probabilities(models[name], Letters(), TEXTS, batch_tokens=8, closing=closing)
    for text, scores in zip(TEXTS, found, strict=True):
        ids = [*ids_of(text), *([0] * closing)]
        expected = [logits(models[name], ids)[i - 1, ids[i]].item() for i in range(1, len(ids))]
        assert scores.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "backend"), [("modernbert", "mlm"), ("deberta", "mlm"), ("gpt2", "mntp"), ("modern", "mntp")]
)
def test_pseudo_log_likelihood(models, name, backend):
    """One token hidden at a time, one sentence at a time: read at its place, or at the one before it."""
    found = token_log_probabilities(models[name], Letters(), TEXTS, batch_tokens=9, backend=backend)
    shift = backend == "mntp"
    for text, scores in zip(TEXTS, found, strict=True):
        ids, expected = ids_of(text), []
        for i in range(1, len(ids)):
            hidden = [*ids[:i], MASK, *ids[i + 1 :]]
            expected.append(logits(models[name], hidden, both_ways=shift)[i - shift, ids[i]].item())
        assert scores.tolist() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=80), limit=st.integers(1, 300))
def test_batches_take_each_text_once_with_little_padding(lengths, limit):
    batches = list(batches_by_length(lengths, limit))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        size = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (size <= limit and sum(lengths[i] for i in batch) >= 0.9 * size)


def test_summed_and_per_token_and_ties(models):
    """`per_token` can prefer the longer sentence where `summed` prefers the shorter; equal sentences tie."""
    pairs = [MinimalPair("abcdefg", "z", "length"), MinimalPair("ab", "ab", "tie")]
    hits = judge(models["gpt2"], Letters(), pairs)
    tokens = [
        -sum(logits(models["gpt2"], [*ids_of(t), 0])[i, x].item() for i, x in enumerate([*ids_of(t)[1:], 0]))
        for t in ("abcdefg", "z")
    ]
    assert hits["summed"].tolist() == [float(tokens[0] < tokens[1]), 0.5]
    assert hits["per_token"].tolist() == [float(tokens[0] / 8 < tokens[1] / 2), 0.5]


def test_the_interval_is_that_of_drawing_pairs_again():
    hits = np.array([1, 1, 1, 0.5, 0, 1, 0, 1, 1, 1], float)
    pairs = [MinimalPair("a", "b", name) for name in "xxxxxyyyyy"]
    groups = by_phenomenon(pairs)
    assert list(groups) == ["all", "x", "y"]
    found = intervals(hits, groups)
    rng = np.random.default_rng(9)
    for name, index in groups.items():
        means = hits[index][rng.integers(0, len(index), (20_000, len(index)))].mean(1)
        assert found[name].accuracy == hits[index].mean()
        assert (found[name].low, found[name].high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.051)
    assert intervals(hits, groups) == found
    sure = intervals(np.ones(4), {"all": np.arange(4)})["all"]
    assert (sure.low, sure.accuracy, sure.high) == (1.0, 1.0, 1.0)


def test_files_of_pairs(tmp_path):
    lines = [
        {"good": "क", "bad": "ख", "phenomenon": "p"},
        {"sentence_good": "g", "sentence_bad": "b", "UID": "u", "field": "f"},
        {"good": "x", "bad": "y"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf8")
    assert read_pairs(str(tmp_path / "mine.jsonl")) == [
        MinimalPair("क", "ख", "p"),
        MinimalPair("g", "b", "u"),
        MinimalPair("x", "y", "mine"),
    ]
    (tmp_path / "z.tsv").write_text('phenomenon\tgood\tbad\nq\tsay "a\tb\n', encoding="utf8")
    assert read_pairs(str(tmp_path / "z.tsv")) == [MinimalPair('say "a', "b", "q")]
    assert len(read_pairs(str(tmp_path / "*"))) == 4


def test_files_as_others_write_them(tmp_path):
    """MultiBLiMP's columns, byte order marks, gzip, and the quotes of pandas and of a file that has none of its own."""
    rows = [{"sen": 'उसने कहा "हाँ"।', "wrong_sen": "उसने कही हाँ।"}, {"sen": '"हाँ"', "wrong_sen": "ना"}]
    expected = [MinimalPair(row["sen"], row["wrong_sen"], "m") for row in rows]
    lines = "\ufeff" + "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "m.jsonl").write_text(lines, encoding="utf8")
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "m.tsv", sep="\t", encoding="utf-8-sig")
    frame.to_csv(tmp_path / "m.tsv.gz", sep="\t", quoting=csv.QUOTE_ALL)
    for path in sorted(tmp_path.iterdir()):
        assert read_pairs(str(path)) == expected, path
    (tmp_path / "raw.tsv").write_text('sen\twrong_sen\n"हाँ" कहा\t"हाँ\n', encoding="utf8")
    assert read_pairs(str(tmp_path / "raw.tsv")) == [MinimalPair('"हाँ" कहा', '"हाँ', "raw")]


def test_what_is_cut_is_counted_and_marks_in_a_text_are_text(models):
    texts = ["a" * n for n in (11, 12, 13)]
    assert [too_long(Letters(), texts, *how) for how in ((), ("causal", False), ("mlm",))] == [2, 1, 2]
    from babylm_train.data.tokenizer import Byte

    tokenizer = Byte().build([])
    tokenizer.model_max_length = 12
    model = model_of("gpt2_nano", len(tokenizer), 12).eval()
    (scores,) = token_log_probabilities(model, tokenizer, ["<eos>"])
    assert len(scores) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"good": "a", "bad": "b"}\n{"good": ""}',
            r"line 2: no text under good or sentence_good or sen; there are: good",
        ),
        (b"{", "line 1: no JSON"),
        (b"[1]", "line 1: not an object"),
        (b"\xff", r"line 1, byte 1 .*not UTF-8"),
        (b'{"good": "a", "bad": "b", "UID": "all"}', "a phenomenon named all"),
        (b"\n", "holds no pair"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_pairs(str(tmp_path / "p.jsonl"))
    with pytest.raises(InputError, match="no such file"):
        read_pairs(str(tmp_path / "none.jsonl"))


def test_a_model_that_sees_the_future_is_found(models):
    assert future_leak(models["gpt2"], SIZE, LENGTH) < 1e-5
    assert future_leak(models["modernbert"], SIZE, LENGTH) > 1e-3


def test_texts_by_source_add_up_to_the_whole(tmp_path):
    from babylm_train.data.tokenizer import Byte

    tokenizer = Byte().build([])
    tokenizer.model_max_length = 16
    torch.manual_seed(0)
    model = model_of("gpt2_nano", len(tokenizer), 16).eval()
    found = evaluate_texts(model, tokenizer, {"a": ["एक दो", "तीन"], "b": ["चार"]}, "causal")
    assert [found[s].words for s in ("all", "a", "b")] == [4, 3, 1]
    nats = {s: r.loss * r.tokens for s, r in found.items()}
    assert nats["all"] == pytest.approx(nats["a"] + nats["b"], rel=1e-12)
    assert found["b"].bits_per_byte == pytest.approx(nats["b"] / math.log(2) / len("चार".encode()), rel=1e-12)
    (only,) = evaluate_texts(model, tokenizer, {"b": ["चार"]}, "causal").values()
    assert only.loss == pytest.approx(found["b"].loss, rel=1e-12)


def test_options():
    assert options(["run", "a=1"], {"a": None, "b": 2}) == ("run", {"a": "1", "b": 2})
    for arguments, message in ((["a=1"], "one run's directory"), (["run", "c=1"], "c: no such option")):
        with pytest.raises(InputError, match=message):
            options(arguments, {"a": None})


def test_the_result_says_which_update_was_exported(make_trainer, tmp_path, monkeypatch):
    """The best of three epochs is the first: its words, not those of the whole run."""
    from babylm_train import run

    accuracies = iter([0.9, 0.5, 0.6])
    trainer = make_trainer(epochs=3, eval_pairs="x", metric="pairs/all")
    trainer.pairs = lambda: {"all": next(accuracies)}
    trainer.train()
    monkeypatch.setattr(run, "export", lambda *_: None)
    monkeypatch.setattr(run, "sample", lambda *_, **__: [])
    whole = SimpleNamespace(trainer=trainer, tokenizer=None, config={"seed": 0}, corpus=SimpleNamespace(pairs=()))
    found = run.finish(whole, tmp_path)
    words = {line["step"]: line["words"] for line in trainer.record.lines()}
    assert found["exported_update"] == trainer.state.best_update < trainer.state.updates
    assert found["exported_words"] == words[trainer.state.best_update] < trainer.state.words


def test_the_best_and_early_stopping_can_follow_the_pairs(make_trainer):
    """Accuracies .5 .7 .7 .6: the best is the second, and two without improvement stop the run."""
    from babylm_train.options import EarlyStopping

    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    trainer = make_trainer(
        epochs=9, eval_pairs="x", metric="pairs/all", early_stopping=EarlyStopping(patience=2, min_delta=0.01)
    )
    trainer.pairs = lambda: {"all": next(accuracies), "gender": 0.1}
    state = trainer.train()
    assert (state.stopped, state.epoch) == (True, 4)
    assert state.best_loss == pytest.approx(0.3)
    logged = [line["pairs/all"] for line in trainer.record.lines() if "pairs/all" in line]
    assert logged == [0.5, 0.7, 0.7, 0.6]
    assert state.best_update == [line["step"] for line in trainer.record.lines() if "pairs/all" in line][1]
