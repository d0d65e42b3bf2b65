"""Evaluation against plain loops, and what must not change it."""

import json
import math

import pytest
import torch
from tiny import LENGTH, model_of, random_split, tiny_model

from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokenizer import WordPiece
from babylm_train.errors import InputError
from babylm_train.evaluation.command import load_model, report
from babylm_train.evaluation.likelihood import token_log_probabilities
from babylm_train.evaluation.loss import evaluate, sample, summarise
from babylm_train.evaluation.pairs import score_pairs
from babylm_train.model.export import write_model
from babylm_train.objective import CausalObjective
from babylm_train.state import MinimalPair


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


def nats_of(model, ids: list[int]) -> float:
    """-log p of ids[1:], each given what comes before it, by softmax in float64."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    return -sum(logits[i].log_softmax(-1)[t].item() for i, t in enumerate(ids[1:]))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_every_target_once_each_document_from_its_own_beginning(model, rows):
    """A loop over documents and windows, one at a time and unpadded, gives the same whatever the batch size."""
    split = random_split(12, 5)
    expected = 0.0
    for d in range(12):
        ids = [*split.ids[split.offsets[d] : split.offsets[d + 1]].tolist(), 0]
        expected += sum(nats_of(model, ids[i : i + LENGTH + 1]) for i in range(0, len(ids) - 1, LENGTH))
    result = evaluate(model.train(), CausalObjective(), EvaluationRows(split, LENGTH), rows)
    assert model.training  # as it was
    assert result.tokens == len(split.ids)
    assert result.loss == pytest.approx(expected / len(split.ids), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / split.bytes.sum(), rel=1e-6)


def test_the_derived_figures():
    result = summarise(nats=200 * math.log(2), tokens=100, words=50, size=400)
    assert result.loss == pytest.approx(2 * math.log(2))
    assert (result.perplexity, result.bits_per_byte, result.word_perplexity) == pytest.approx((4.0, 0.5, 16.0))
    assert summarise(1e6, 1, 1, 1).perplexity == math.inf


class Letters:
    """A tokenizer of lower-case letters, a = 3 and so on."""

    eos_token_id, pad_token_id, model_max_length = 0, 2, LENGTH

    def __call__(self, texts, **_):
        ids = [[ord(c) - ord("a") + 3 for c in text] for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    def decode(self, ids, **_):
        return "".join(chr(int(i) - 3 + ord("a")) for i in ids if 3 <= int(i) < 29)


def test_log_probabilities_are_in_order_and_those_of_each_text_alone(model):
    texts = ["abc", "z", "abcdefg", "ab", "zzzz"]
    expected = [-nats_of(model, [0, *Letters()(t)["input_ids"], 0][: LENGTH + 1]) for t in texts]
    found = [float(t.sum()) for t in token_log_probabilities(model, Letters(), texts, batch_tokens=12)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_tie_counts_half(model):
    low, high = sorted(["abc", "xyz"], key=lambda t: nats_of(model, [0, *Letters()(t)["input_ids"], 0]), reverse=True)
    pairs = [MinimalPair(high, low, "right"), MinimalPair(low, high, "wrong"), MinimalPair("ab", "ab", "tie")]
    assert score_pairs(model, Letters(), pairs) == {"all": 0.5, "right": 1.0, "tie": 0.5, "wrong": 0.0}


def test_samples_are_seeded_and_leave_the_generators_alone(model):
    before = torch.get_rng_state()
    one, two = (sample(model, Letters(), ["ab", "abcdefghij"], seed=3) for _ in range(2))
    assert one == two
    assert one[0].startswith("ab")
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of data=text: an untrained hybrid model of 16 positions, its tokenizer said to take more."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = WordPiece(700, 1).build(["अ आ इ"])
    tokenizer.model_max_length = 10**6
    torch.manual_seed(0)
    write_model(model_of("gpt2_nano", len(tokenizer), 16), tokenizer, folder / "model", ("causal", "mntp"))
    data = "data: {_target_: babylm_train.data.text.TextFiles, separator: blank_line}"
    (folder / "config.yaml").write_text(data, encoding="utf8")
    return folder


def asked(**options):
    names = ("revision", "pairs", "text", "separator", "backend")
    return {**dict.fromkeys(names), "text_field": "text", "closing": "true", **options}


def test_what_is_cut_is_said(run, tmp_path, capsys):
    pairs = [{"good": " ".join("अ" * n), "bad": "आ"} for n in (15, 16, 20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf8")
    assert report(str(run), asked(pairs=str(tmp_path / "p.jsonl")))["texts_cut"] == 2
    said = "warning: 2 of 6 texts are longer than the model's 16 positions and were cut\n"
    assert capsys.readouterr().err == said
    assert load_model(run / "model")[1].model_max_length == 16


def test_text_is_cut_into_documents_as_the_run_cut_it_and_unknown_tokens_are_said(run, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("अ आ\nइ ई\n\nउ 漢\n", encoding="utf8")
    found = report(str(run), asked(text=str(tmp_path / "t.txt")))["text"]["all"]
    assert (found["tokens"], found["unknown_share"]) == (6 + 2, 1 / 8)  # a mark a document
    assert "all: 12.500% of the tokens are unknown" in capsys.readouterr().out
    (tmp_path / "u.txt").write_text("अ आ\nइ ई\n\nउ ऊ\n", encoding="utf8")
    for where, options in ((run, {"separator": "line"}), (run / "model", {})):
        found = report(str(where), asked(text=str(tmp_path / "u.txt"), **options))["text"]["all"]
        assert found["tokens"] == 6 + 3
        assert "unknown_share" not in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to evaluate: give pairs=FILE or text=FILE"),
        ({"text": "t.jsonl", "backend": "mntp"}, "backend=mntp: text= has the backends causal and mlm"),
        ({"text": "t.jsonl", "separator": "comma"}, "separator must be line or blank_line, got comma"),
        ({"text": "t.jsonl", "text_field": "body"}, r"no field body \(text_field\); there are: text"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "अ"}\n', encoding="utf8")
    with pytest.raises(InputError, match=message):
        report(str(run), asked(**options))


def test_a_tokenizer_without_the_mark_is_refused(run, tmp_path):
    model, tokenizer, _ = load_model(run / "model")
    model.save_pretrained(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_model(tmp_path)
