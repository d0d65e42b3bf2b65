"""Evaluation against plain loops, and what must not change it."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from exported import export, nano
from tiny import LENGTH, random_split, tiny_model

from babylm_train.babylm.milestones import Revision
from babylm_train.command import CommandLine
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokenizer import Byte, tokenizer_fingerprint
from babylm_train.errors import InputError
from babylm_train.evaluation import command
from babylm_train.evaluation.command import Options, evaluate_command, evaluate_run, future_leak
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
    found = (result.loss, result.perplexity, result.bits_per_byte, result.word_perplexity)
    assert found == pytest.approx((2 * math.log(2), 4.0, 0.5, 16.0))
    assert summarise(1e6, 1, 1, 1).perplexity == math.inf


def test_texts_by_file_add_up_to_the_whole():
    tokenizer = Byte().build([])
    model = nano("gpt2", len(tokenizer)).eval()
    tokenizer.model_max_length = model.config.n_positions
    found = command.evaluate_texts(model, tokenizer, {"a": ["एक दो", "तीन"], "b": ["चार"]}, "causal")
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
    assert "12.500%" in command.show_model(whole)
    found = evaluate_run(run / "model", Options(text=str(tmp_path / "t.txt")))["text"]["all"]
    assert found["tokens"] == 6 + 3  # a document a line where no run says otherwise
    (tmp_path / "t.csv").write_text("body,text\nअ आ,इ\n", encoding="utf8")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text("data: {text_field: body}", encoding="utf8")
    assert evaluate_run(tmp_path / "run", Options(text=str(tmp_path / "t.csv")))["text"]["all"]["words"] == 2
    assert evaluate_run(run, Options(text=str(tmp_path / "t.csv"), text_field="text"))["text"]["all"]["words"] == 1


def test_what_cannot_be_evaluated_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text('{"text": "अ"}\n', encoding="utf8")
    Path("empty.txt").touch()
    for named, more in {
        "pairs=FILE or text=FILE": {"text": None},
        "backend=mntp": {"backend": "mntp"},
        r"body \(text_field\)": {"text_field": "body"},
        "chck_1M": {"revision": "chck_1M"},
        "empty.txt": {"text": "empty.txt"},
    }.items():
        with pytest.raises(InputError, match=named):
            evaluate_run(run, Options(**{"text": "t.jsonl", **more}))


def test_what_is_cut_is_said_and_another_tokenizer_than_the_runs_is_not_scored(run, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    pairs = [{"good": " ".join("अ" * n), "bad": "आ"} for n in (15, 16, 20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf8")
    own = tokenizer_fingerprint(command.load_model(run / "model")[1])
    weights = (tmp_path / "model/model.safetensors").read_bytes()
    known = {"hashes": {"tokenizer": own}, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished", **known}))
    options = Options(pairs=str(tmp_path / "p.jsonl"))
    assert evaluate_run(tmp_path, options)["texts_cut"] == 2
    assert "2 of 6 texts" in capsys.readouterr().err
    rules = (tmp_path / "model/tokenizer.json").read_text(encoding="utf8")
    swapped = rules.translate(str.maketrans("अआ", "आअ"))
    (tmp_path / "model/tokenizer.json").write_text(swapped, encoding="utf8")
    with pytest.raises(InputError, match=r"tokenizer\.json is not the tokenizer that .*result\.json names"):
        evaluate_run(tmp_path, options)
    (tmp_path / "model/tokenizer.json").write_text(rules, encoding="utf8")
    (tmp_path / "model/model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that .*result\.json names"):
        evaluate_run(tmp_path, options)


def test_a_row_a_model_and_a_picture_of_milestones_whatever_names_a_stranger_chose(run, tmp_path, monkeypatch, capsys):
    """Phenomenon and file with escape sequences: shown as escapes, kept as they are in the JSON."""
    monkeypatch.chdir(tmp_path)
    evil = "$x\x1b]0;x\x07\x1b[2J"
    pairs = [{"good": "अ आ", "bad": "आ अ", "phenomenon": name} for name in (evil, "y")]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf8")
    for name in (f"{evil}.jsonl", "b.jsonl"):
        Path(name).write_text('{"text": "अ आ"}\n', encoding="utf8")
    asked = Options(pairs="p.jsonl", text="*[bJ].jsonl", out="out.json")
    encoder = export(tmp_path / "deberta", "deberta")

    def evaluated(*places, **more):
        evaluate_command(CommandLine([*map(str, places)], replace(asked, **more), []))
        return json.loads(Path("out.json").read_text())

    found = evaluated(run)
    assert evil in found["pairs"]["summed"]
    assert set(found["text"]) == {"all", f"{evil}.jsonl", "b.jsonl"}
    assert evaluated(run, encoder)[str(encoder)] == evaluate_run(encoder, asked)
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()[-3:]] == ["model", str(run), str(encoder)]
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    Path("r/milestones").mkdir(parents=True)
    for words, name in ((900, "chck_900"), (50, "chck_50")):
        mark = Revision(name, words, words + 7, words, words, 1.0, 1)
        write_json(export(tmp_path / "r/milestones" / name) / "milestone.json", asdict(mark))
    found = evaluated("r", milestones=True)
    assert [(name, each["words_seen"]) for name, each in found.items()] == [("chck_50", 57), ("chck_900", 907)]
    assert found["chck_50"]["text"] == evaluate_run(Path("r"), replace(asked, revision="chck_50"))["text"]
    assert Path("r/milestones.png").read_bytes().startswith(b"\x89PNG")
    for places, more in ((["r", "r"], {}), ([run], {}), (["r"], {"revision": "chck_50"})):
        with pytest.raises(InputError):
            evaluated(*places, milestones=True, **more)
