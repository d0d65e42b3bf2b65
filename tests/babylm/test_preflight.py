"""docs/BABYLM.md from corpus to submission, and what a preflight finds."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hindi_stories.pairs import minimal_pairs
from hindi_stories.stories import generate

from babylm_train.babylm import preflight
from babylm_train.evaluation import command as evaluate
from babylm_train.evaluation.pairs import read_pairs, score_pairs

DOC = Path(__file__).parents[2] / "docs" / "BABYLM.md"
# The same commands at the scale of a test.
SMALL = ["trainer.epochs=2", "trainer.batch_size=4", "tokenizer.vocab_size=400", "logger=none", "data.cache_dir=cache"]
SMALL += ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_head=2"]
SMALL += ["track.milestones=[500,1000,1400]"]
SCALE = {"data.max_length=512": "data.max_length=48", "revision=chck_1M": "revision=chck_1000"}
FINISHED = ("babylm_train.evaluate", "babylm_train.preflight")  # take a run; the others take the keys of one
COMMANDS = [shlex.split(line) for line in DOC.read_text(encoding="utf8").split("```")[1].strip().splitlines()]


def call(patch, module: str, *arguments: str) -> int:
    """The exit code of a command in this process."""
    patch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as stopped:
        sys.exit(importlib.import_module("babylm_train.cli" if module == "babylm_train" else module).main())
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module", autouse=True)
def _in_the_workplace(tmp_path_factory):
    """The working directory is a participant's folder, after the ten commands."""
    folder = tmp_path_factory.mktemp("babylm")
    (folder / "corpus").mkdir()
    for name, words, seed in (("corpus/a.txt", 700, 1), ("validation.txt", 200, 2)):
        texts = [text.replace("\n", " ") for text in generate(words, seed)]
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf8")
    lines = [json.dumps(pair._asdict(), ensure_ascii=False) for pair in minimal_pairs(4, 0)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _python, _flag, module, *arguments in COMMANDS:
            small = [SCALE.get(a, a) for a in arguments] + SMALL * (module not in FINISHED)
            small += ["end_lr=1e-2", "num_iter=10"] * (module == "babylm_train.lr_finder")
            assert call(patch, module, *small) == 0, arguments
        yield


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf8")) | changes), encoding="utf8")


def test_the_ten_commands():
    assert len(COMMANDS) == 10
    result = json.loads(Path("causal/result.json").read_text())
    words = len(Path("corpus/a.txt").read_text(encoding="utf8").split())
    assert result["words"] == 2 * words
    assert set(result["milestones"]) == {f"chck_{mark}" for mark in (500, 1000, 1400) if mark <= 2 * words}
    found = json.loads(Path("causal/pairs.json").read_text())["pairs"]["summed"]["all"]
    lines = [json.loads(line) for line in Path("causal/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["pairs/all"] for line in lines if "pairs/all" in line}
    assert found["n"] == 20
    assert found["accuracy"] == pytest.approx(logged[result["best_update"]], abs=1e-9)
    card = Path("hybrid/model/README.md").read_text(encoding="utf8")
    for text in ("license: cc-by-sa-4.0\n", "language: hi\n", "# hindi-babylm\n", "| `chck_500` |", "corpus: "):
        assert text in card


def test_the_card_shows_values_but_no_environment_and_no_markup(monkeypatch):
    run = shutil.copytree("hybrid", Path("hybrid.2"))
    text = (run / "config.yaml").read_text(encoding="utf8").replace("cache_dir: cache", "cache_dir: ${oc.env:CACHE}")
    text = text.replace("text_field: text", "text_field: ${oc.env:WORD}")
    (run / "config.yaml").write_text(text, encoding="utf8")
    rewrite(run / "result.json", device="\x1b[2J<script>alert(1)</script>")
    monkeypatch.setenv("CACHE", str(Path("elsewhere").absolute()))
    assert call(monkeypatch, "babylm_train.preflight", "hybrid.2", "license=mit") == 2  # WORD is not set
    monkeypatch.setenv("WORD", "text")
    assert call(monkeypatch, "babylm_train.preflight", "hybrid.2", "license=mit") == 0
    assert not Path("elsewhere").exists()  # a run's directory does not say where is written
    card = (run / "model/README.md").read_text(encoding="utf8")
    assert all(line.isprintable() for line in card.splitlines())
    assert not any(text in card for text in ("<script>", "elsewhere", "language:"))
    assert all(text in card for text in ("# hybrid_2\n", "text_field=${oc.env:WORD}"))


def test_more_words_than_the_track_allows_are_found():
    run = preflight.open_run(Path("causal"), "cache")
    words = run.result.words
    assert all(ok for ok, _ in preflight.check_ledger(run, words // 2))
    failed = [text for ok, text in preflight.check_ledger(run, words // 11) if not ok]
    assert failed == [f"{words:,} words seen, track strict_small allows {words // 11 * 10:,} (10 epochs)"]


def test_what_costs_scores_is_found(monkeypatch, capsys):
    broken = shutil.copytree("hybrid", Path("broken"))
    shutil.copyfile(broken / "model/model.safetensors", broken / "milestones/chck_500/model.safetensors")
    shutil.rmtree(broken / "milestones/chck_1000")
    rewrite(broken / "model/tokenizer.json", post_processor=None)
    rewrite(broken / "model/tokenizer_config.json", tokenizer_class="TokenizersBackend", padding_side="right")
    assert call(monkeypatch, "babylm_train.preflight", "broken", "name=gpt.0", "license=") == 2
    said = capsys.readouterr()
    failed = [line for line in said.out.splitlines() if line.startswith("FAILED")]
    found = ["without chck_1000", "chck_500: loss", "tokenizer class", "begins with that mark", "on the right"]
    found += ["backend mntp", "gpt.0", "licence is not"]
    for text in found:
        assert sum(text in line for line in failed) == 1, text
    assert len(failed) == len(found) + ("backend causal" in "".join(failed))
    assert said.err.strip() == f"error: broken: {len(failed)} checks failed"


def test_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for argument, named in (("push_to=me/hindi", "push_to=me/hindi"), ("licence=mit", "did you mean license")):
        assert call(monkeypatch, "babylm_train.preflight", "hybrid", "license=mit", argument) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert named in line


EVALUATED = ("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "model/model.safetensors")
RECORDS = ("config.yaml", "result.json", "metrics.jsonl", "milestones/chck_500/milestone.json")


@pytest.mark.parametrize("file", EVALUATED + RECORDS)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, monkeypatch, capsys, file):
    run, sound = tmp_path / "run", Path("hybrid", file).read_bytes()
    shutil.copytree("hybrid", run, ignore=shutil.ignore_patterns("checkpoints"))
    command = ["babylm_train.preflight", str(run), "license=mit", "cache_dir=cache"]
    if file in EVALUATED:
        command = ["babylm_train.evaluate", str(run), "pairs=pairs.jsonl"]
    for content in [b"", sound[: len(sound) // 2], b"[3]\n", b"[" * 100_000 + b"\n", b"\xff" + sound, None]:
        (run / file).unlink(missing_ok=True)
        if content is not None:
            (run / file).write_bytes(content)
        assert call(monkeypatch, *command) == 2, content
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1, content
        assert Path(file).name in said.err or "FAILED" in said.out, content


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}),
        ("config.json", {"n_layer": 2}),  # drawn at random where the weights have none
        ("config.json", {"model_type": "evil"}),
        ("modeling_mntp.py", {}),  # has to be ours
    ],
)
def test_a_model_of_a_stranger_runs_no_code_and_gives_no_wrong_score(tmp_path, monkeypatch, capsys, file, changes):
    run, fire = shutil.copytree("hybrid", tmp_path / "run"), f"open({str(tmp_path / 'canary')!r}, 'w')\n"
    (run / "model/evil.py").write_text(fire)
    if changes:
        rewrite(run / "model" / file, **changes)
    else:
        (run / "model" / file).write_text(fire + (run / "model" / file).read_text())
    for module, option in (("preflight", "license=mit"), ("evaluate", "pairs=pairs.jsonl")):
        assert call(monkeypatch, f"babylm_train.{module}", str(run), option) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert file in line
    assert not (tmp_path / "canary").exists()


def test_nothing_is_unpickled(tmp_path, monkeypatch, capsys):
    shutil.copytree("hybrid/model", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "m/pytorch_model.bin")
    assert call(monkeypatch, "babylm_train.evaluate", str(tmp_path / "m"), "pairs=pairs.jsonl") == 2
    assert "safetensors" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: make lm-eval")
def test_lm_eval_finds_the_same_accuracy():
    Path("tasks").mkdir()
    task = """{task: hindi_pairs, dataset_path: json, dataset_kwargs: {data_files: {validation: pairs.jsonl}},
validation_split: validation, output_type: multiple_choice, doc_to_text: "", doc_to_target: 0,
doc_to_choice: "{{[good, bad]}}", target_delimiter: "", metric_list: [{metric: acc}]}"""
    Path("tasks/hindi_pairs.yaml").write_text(task)
    run = "-m lm_eval --model hf --model_args pretrained=causal/model,dtype=float32 --tasks hindi_pairs --device cpu"
    subprocess.run([sys.executable, *run.split(), "--include_path", "tasks", "--output_path", "lm_eval"], check=True)
    (path,) = Path("lm_eval").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]["hindi_pairs"]["acc,none"]
    model, tokenizer, _ = evaluate.load_model(Path("causal/model"))
    assert theirs == pytest.approx(score_pairs(model, tokenizer, read_pairs("pairs.jsonl"), closing=False)["all"])
