"""Evaluation against plain loops, and what must not change it."""

import hashlib
import json
import math
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from exported import LENGTH as POSITIONS
from exported import export, nano
from tiny import LENGTH, random_split, tiny_model

from babylm_train.babylm.milestones import Revision
from babylm_train.command import CommandLine
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokenizer import Byte, tokenizer_fingerprint
from babylm_train.errors import InputError
from babylm_train.evaluation.command import (
    Options,
    evaluate_command,
    evaluate_run,
    evaluate_texts,
    future_leak,
    load_model,
    main,
    show_model,
)
from babylm_train.evaluation.loss import evaluate, summarise
from babylm_train.files import write_json
from babylm_train.objective import CausalObjective


def nats_of(model, ids: list[int]) -> float:
    """-log p of ids[1:], each given what comes before it, by softmax in float64."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    return -sum(logits[i].log_softmax(-1)[t].item() for i, t in enumerate(ids[1:]))


@pytest.mark.parametrize("rows", [1, 100])
def test_every_target_once_each_document_from_its_own_beginning(rows):
    """A loop over documents and windows, one at a time and unpadded, gives the same whatever the batch size."""
    torch.manual_seed(0)
    model, split, expected = tiny_model(), random_split(12, 5), 0.0
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


def test_texts_by_file_add_up_to_the_whole():
    tokenizer = Byte().build([])
    tokenizer.model_max_length = POSITIONS
    model = nano("gpt2", len(tokenizer)).eval()
    found = evaluate_texts(model, tokenizer, {"a": ["एक दो", "तीन"], "b": ["चार"]}, "causal")
    assert [found[s].words for s in ("all", "a", "b")] == [4, 3, 1]
    nats = {s: r.loss * r.tokens for s, r in found.items()}
    assert nats["all"] == pytest.approx(nats["a"] + nats["b"], rel=1e-12)
    assert found["b"].bits_per_byte == pytest.approx(nats["b"] / math.log(2) / len("चार".encode()), rel=1e-12)


def test_a_model_that_sees_the_future_is_found():
    assert future_leak(nano("gpt2", 40).eval(), 40, 12) < 1e-5
    assert future_leak(nano("modernbert", 40).eval(), 40, 12) > 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run of data=text whose model is an untrained hybrid of 16 positions."""
    folder = tmp_path_factory.mktemp("run")
    export(folder / "model")
    (folder / "config.yaml").write_text("data: {separator: blank_line}", encoding="utf8")
    return folder


def test_text_is_cut_into_documents_as_the_run_cut_it_and_unknown_tokens_are_said(run, tmp_path):
    (tmp_path / "t.txt").write_text("अ आ\nइ ई\n\nउ 漢\n", encoding="utf8")
    whole = evaluate_run(run, Options(text=str(tmp_path / "t.txt")))
    found = whole["text"]["all"]
    assert (found["tokens"], found["unknown_share"]) == (6 + 2, 1 / 8)  # a mark a document
    assert "12.500%" in show_model(whole)
    found = evaluate_run(run / "model", Options(text=str(tmp_path / "t.txt")))["text"]["all"]
    assert found["tokens"] == 6 + 3  # a document a line where no run says otherwise
    (tmp_path / "t.csv").write_text("body,text\nअ आ,इ\n", encoding="utf8")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text("data: {text_field: body}", encoding="utf8")
    assert evaluate_run(tmp_path / "run", Options(text=str(tmp_path / "t.csv")))["text"]["all"]["words"] == 2
    assert evaluate_run(run, Options(text=str(tmp_path / "t.csv"), text_field="text"))["text"]["all"]["words"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "pairs=FILE or text=FILE"),
        ({"text": "t.jsonl", "backend": "mntp"}, "backend=mntp"),
        ({"text": "t.jsonl", "text_field": "body"}, r"body \(text_field\)"),
        ({"text": "t.jsonl", "revision": "chck_1M"}, "chck_1M"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(run, tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "अ"}\n', encoding="utf8")
    with pytest.raises(InputError, match=named):
        evaluate_run(run, Options(**options))


def test_names_of_a_stranger_move_no_cursor(run, tmp_path, monkeypatch, capsys):
    """Phenomenon and file with escape sequences: shown as escapes, kept as they are in the JSON."""
    monkeypatch.chdir(tmp_path)
    evil = "\x1b]0;x\x07\x1b[2J"
    (tmp_path / "p.jsonl").write_text(json.dumps({"good": "अ आ", "bad": "आ अ", "phenomenon": evil}))
    for name in (f"{evil}.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "अ आ"}\n', encoding="utf8")
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run), "pairs=p.jsonl", "text=*[bJ].jsonl", "out=out.json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    found = json.loads((tmp_path / "out.json").read_text())
    assert evil in found["pairs"]["summed"]
    assert set(found["text"]) == {"all", f"{evil}.jsonl", "b.jsonl"}


def test_what_is_cut_is_said_and_another_tokenizer_than_the_runs_is_not_scored(run, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    pairs = [{"good": " ".join("अ" * n), "bad": "आ"} for n in (15, 16, 20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf8")
    own = tokenizer_fingerprint(load_model(run / "model")[1])
    weights = (tmp_path / "model/model.safetensors").read_bytes()
    known = {"hashes": {"tokenizer": own}, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished", **known}))
    options = Options(pairs=str(tmp_path / "p.jsonl"))
    assert evaluate_run(tmp_path, options)["texts_cut"] == 2
    assert "2 of 6 texts" in capsys.readouterr().err
    rules = (tmp_path / "model/tokenizer.json").read_text(encoding="utf8")
    assert rules.count('"अ": ') == rules.count('"आ": ') == 1
    swapped = rules.replace('"अ": ', '"?": ').replace('"आ": ', '"अ": ').replace('"?": ', '"आ": ')
    (tmp_path / "model/tokenizer.json").write_text(swapped, encoding="utf8")
    with pytest.raises(InputError, match=r"tokenizer\.json is not the tokenizer that .*result\.json names"):
        evaluate_run(tmp_path, options)
    (tmp_path / "model/tokenizer.json").write_text(rules, encoding="utf8")
    (tmp_path / "model/model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that .*result\.json names"):
        evaluate_run(tmp_path, options)


def test_several_models_give_a_row_each_and_milestones_a_picture(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = [{"good": "अ आ", "bad": "आ अ", "phenomenon": name} for name in ("$x\x1b[2J", "y")]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf8")
    Path("t.txt").write_text("अ आ\n", encoding="utf8")
    asked = Options(pairs="p.jsonl", text="t.txt", out="out.json")
    encoder = export(tmp_path / "deberta", "deberta")
    evaluate_command(CommandLine([str(run), str(encoder)], asked, []))
    found = json.loads(Path("out.json").read_text())
    assert found[str(encoder)] == evaluate_run(encoder, asked)
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["model", str(run), str(encoder)]
    assert all(line.isprintable() for line in table)
    Path("r/milestones").mkdir(parents=True)
    for words, name in ((900, "chck_900"), (50, "chck_50")):
        export(tmp_path / "r/milestones" / name)
        mark = Revision(name, words, words + 7, words, words, 1.0, 1)
        write_json(tmp_path / "r/milestones" / name / "milestone.json", asdict(mark))
    evaluate_command(CommandLine(["r"], replace(asked, milestones=True), []))
    found = json.loads(Path("out.json").read_text())
    assert [(name, each["words_seen"]) for name, each in found.items()] == [("chck_50", 57), ("chck_900", 907)]
    assert found["chck_50"]["text"] == evaluate_run(Path("r"), replace(asked, revision="chck_50"))["text"]
    assert Path("r/milestones.png").read_bytes().startswith(b"\x89PNG")
    for places, options in ((["r", "r"], {}), ([str(run)], {}), (["r"], {"revision": "chck_50"})):
        with pytest.raises(InputError):
            evaluate_command(CommandLine(places, replace(asked, milestones=True, **options), []))
