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
from exported import nano
from hindi_stories.pairs import minimal_pairs
from hindi_stories.stories import generate

from babylm_train import cli
from babylm_train.babylm import preflight
from babylm_train.data.tokenizer import Byte
from babylm_train.evaluation import command as evaluate
from babylm_train.evaluation.pairs import read_pairs, score_pairs
from babylm_train.model.export import submitted, write_model
from babylm_train.tools import difficulty, lr_finder, plan

DOC = Path(__file__).parents[2] / "docs" / "BABYLM.md"
MAINS = {
    "babylm_train": cli.main,
    "babylm_train.plan": plan.main,
    "babylm_train.difficulty": difficulty.main,
    "babylm_train.lr_finder": lr_finder.main,
    "babylm_train.evaluate": evaluate.main,
    "babylm_train.preflight": preflight.main,
}
# The same commands at the scale of a test.
SMALL = ["trainer.epochs=2", "trainer.batch_size=4", "tokenizer.vocab_size=400", "logger=none", "data.cache_dir=cache"]
SMALL += ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_head=2"]
MARKS = "track.milestones=[500,1000,1400]"
SCALE = {"data.max_length=512": "data.max_length=48", "revision=chck_1M": "revision=chck_1000"}
COMPOSED = ("babylm_train", "babylm_train.plan", "babylm_train.difficulty", "babylm_train.lr_finder")


def commands() -> list[list[str]]:
    block = DOC.read_text(encoding="utf8").split("```")[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


def call(patch, module: str, *arguments: str) -> int:
    """The exit code of a command in this process."""
    patch.setattr(sys, "argv", [module, *arguments])
    try:
        MAINS[module]()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A participant's folder, after the ten commands."""
    folder = tmp_path_factory.mktemp("babylm")
    (folder / "corpus").mkdir()
    for name, words, seed in (("corpus/a.txt", 700, 1), ("validation.txt", 200, 2)):
        texts = [text.replace("\n", " ") for text in generate(words, seed)]
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf8")
    lines = [json.dumps(pair._asdict(), ensure_ascii=False) for pair in minimal_pairs(4, 0)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for python, flag, module, *arguments in commands():
            assert (python, flag) == ("python", "-m")
            small = [SCALE.get(a, a) for a in arguments] + SMALL * (module in COMPOSED)
            small += [MARKS] * (module in COMPOSED and module != "babylm_train.difficulty")
            small += ["end_lr=1e-2", "num_iter=10"] * (module == "babylm_train.lr_finder")
            assert call(patch, module, *small) == 0, arguments
    return folder


def result_of(run) -> dict:
    return json.loads((run / "result.json").read_text())


def test_the_ten_commands(workplace):
    assert len(commands()) == 10
    assert {module for _, _, module, *_ in commands()} == set(MAINS)
    result = result_of(workplace / "causal")
    words = sum(len(line.split()) for line in (workplace / "corpus/a.txt").read_text(encoding="utf8").splitlines())
    assert result["words"] == 2 * words
    assert set(result["milestones"]) == {f"chck_{mark}" for mark in (500, 1000, 1400) if mark <= 2 * words}
    found = json.loads((workplace / "causal/pairs.json").read_text())["pairs"]
    lines = [json.loads(line) for line in (workplace / "causal/metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["pairs/all"] for line in lines if "pairs/all" in line}
    assert found["summed"]["all"]["n"] == 20
    assert found["summed"]["all"]["accuracy"] == pytest.approx(logged[result["best_update"]], abs=1e-9)
    card = (workplace / "hybrid/model/README.md").read_text(encoding="utf8")
    for text in ("license: cc-by-sa-4.0\n", "language: hi\n", "# hindi-babylm\n", "| `chck_500` |"):
        assert text in card
    assert f"of update {result_of(workplace / 'hybrid')['exported_update']:,}, after " in card


def test_the_card_shows_values_but_no_environment_and_no_markup(workplace, monkeypatch):
    """Interpolations as they were composed; text of the environment stays a name; a stranger's text stays text."""
    run = workplace / "hybrid.2"
    shutil.copytree(workplace / "hybrid", run)
    text = (run / "config.yaml").read_text(encoding="utf8").replace("cache_dir: cache", "cache_dir: ${oc.env:CACHE}")
    assert "batch_size: 4" in text
    text = text.replace("batch_size: 4", "batch_size: ${seed}4").replace(
        "text_field: text", "text_field: ${oc.env:WORD}"
    )
    (run / "config.yaml").write_text(text, encoding="utf8")
    result = result_of(run)
    result["device"] = "\x1b[2J<script>alert(1)</script>"
    (run / "result.json").write_text(json.dumps(result))
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("CACHE", str(workplace / "elsewhere"))
    assert call(monkeypatch, "babylm_train.preflight", "hybrid.2", "license=mit") == 2  # WORD is not set
    monkeypatch.setenv("WORD", "text")
    assert call(monkeypatch, "babylm_train.preflight", "hybrid.2", "license=mit") == 0
    assert not (workplace / "elsewhere").exists()  # a run's directory does not say where is written
    card = (run / "model/README.md").read_text(encoding="utf8")
    assert all(line.isprintable() for line in card.splitlines())
    assert "<script>" not in card
    assert "${seed}" not in card
    for text in ("# hybrid_2\n", "batch_size=04", "text_field=${oc.env:WORD}"):
        assert text in card
    assert "language:" not in card


def test_more_words_than_the_track_allows_are_found(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    run = preflight.open_run(Path("causal"), "cache")
    words = run.result.words
    assert all(finding.ok is not False for finding in preflight.check_ledger(run, words // 2))
    failed = [finding.text for finding in preflight.check_ledger(run, words // 11) if finding.ok is False]
    assert failed == [f"{words:,} words seen, track strict_small allows {words // 11 * 10:,} (10 epochs)"]


@pytest.mark.parametrize("backend", ["causal", "mntp"])
def test_a_short_model_and_a_tokenizer_without_padding_are_read_too(tmp_path, backend):
    tokenizer = Byte().build([])
    tokenizer.model_max_length, tokenizer.pad_token = 16, None
    write_model(nano("gpt2", len(tokenizer), 16), tokenizer, tmp_path / "m", ("causal", "mntp"))
    text = preflight.shorten("राम घर गया", submitted(tokenizer), 16 - preflight.FILLING)
    assert text == "राम"  # the mark and 9 bytes; the next letter has 3 more beside its space
    assert preflight.check_interface(tmp_path / "m", backend, [text]).ok
    assert preflight.check_interface(tmp_path / "m", backend, []).ok is None


def test_what_costs_scores_is_found(workplace, monkeypatch, capsys):
    """Other weights in a revision, one that is missing, a tokenizer of a class that no transformers 4 knows, that
    begins with nothing and pads on the wrong side, a name cut by its dot."""
    broken = workplace / "broken"
    shutil.copytree(workplace / "hybrid", broken)
    shutil.copyfile(broken / "model/model.safetensors", broken / "milestones/chck_500/model.safetensors")
    shutil.rmtree(broken / "milestones/chck_1000")
    rewrite(broken / "model", "tokenizer.json", post_processor=None)
    rewrite(broken / "model", "tokenizer_config.json", tokenizer_class="TokenizersBackend", padding_side="right")
    monkeypatch.chdir(workplace)
    assert call(monkeypatch, "babylm_train.preflight", "broken", "name=gpt.0", "license=") == 2
    said = capsys.readouterr()
    failed = [line for line in said.out.splitlines() if line.startswith("FAILED")]
    found = ["without chck_1000", "chck_500: loss", "tokenizer class", "begins with that mark", "on the right"]
    found += ["backend mntp", "gpt.0", "licence is not"]
    for text in found:
        assert sum(text in line for line in failed) == 1, text
    assert len(failed) == len(found) + ("backend causal" in "".join(failed))
    assert said.err.strip() == f"error: broken: {len(failed)} checks failed"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["hybrid", "license=mit", "push_to=me/hindi"], "push_to=me/hindi"),
        (["hybrid", "licence=mit"], "did you mean license"),
        (["hybrid", "license=mit\nx: y"], "license"),
        (["hybrid", "device=tpu"], "device=tpu"),
        (["corpus"], "config.yaml"),
        (["causal", "hybrid"], "one run"),
    ],
)
def test_refused_in_one_line(workplace, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert call(monkeypatch, "babylm_train.preflight", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line


def damage(data: bytes) -> dict[str, bytes | None]:
    """What may stand in a file in place of `data`."""
    return {
        "nothing": b"",
        "half": data[: len(data) // 2],
        "zeros": bytes(len(data)),
        "a list": b"[3]\n",
        "a number": b"1" * 5000 + b"\n",
        "nested": b"[" * 100_000 + b"\n",
        "half a surrogate pair": b'{"a": "\\ud800"}\n',
        "not UTF-8": b"\xff" + data,
        "missing": None,
    }


EVALUATED = ("model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "model/model.safetensors")
RECORDS = ("config.yaml", "result.json", "metrics.jsonl", "milestones/chck_500/milestone.json")


@pytest.mark.parametrize("file", EVALUATED + RECORDS)
def test_a_damaged_file_is_one_line_that_names_it(workplace, tmp_path, monkeypatch, capsys, file):
    monkeypatch.chdir(workplace)
    run, sound = tmp_path / "run", (workplace / "hybrid" / file).read_bytes()
    shutil.copytree(workplace / "hybrid", run, ignore=shutil.ignore_patterns("checkpoints"))
    command = ["babylm_train.preflight", str(run), "license=mit", "cache_dir=cache"]
    if file in EVALUATED:
        command = ["babylm_train.evaluate", str(run), "pairs=pairs.jsonl"]
    for kind, content in damage(sound).items():
        (run / file).unlink()  # which may be a link to the same file of a milestone
        if content is not None:
            (run / file).write_bytes(content)
        capsys.readouterr()
        assert call(monkeypatch, *command) == 2 or (kind, file) == ("missing", RECORDS[-1]), kind
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1, kind
        assert Path(file).name in said.err or "FAILED" in said.out, kind
        (run / file).write_bytes(sound)


def rewrite(run: Path, file: str, **changes: object) -> None:
    held = json.loads((run / file).read_text(encoding="utf8"))
    (run / file).unlink()
    (run / file).write_text(json.dumps(held | changes), encoding="utf8")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}),
        ("config.json", {"auto_map": {"AutoModelForMaskedLM": "evil.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}),
        ("config.json", {"n_layer": 2}),  # drawn at random where the weights have none
        ("config.json", {"n_embd": 10**9}),
        ("config.json", {"vocab_size": "many"}),
        ("config.json", {"layer_norm_epsilon": float("nan")}),
        ("config.json", {"backends": ["psychic"]}),
        ("config.json", {"model_type": "evil"}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}),
        ("tokenizer_config.json", {"eos_token": None}),
        ("tokenizer_config.json", {"model_max_length": -1}),
    ],
)
def test_a_model_of_a_stranger_runs_no_code_and_gives_no_wrong_score(
    workplace, tmp_path, monkeypatch, capsys, file, changes
):
    monkeypatch.chdir(workplace)
    shutil.copytree(workplace / "hybrid/model", tmp_path / "m")
    (tmp_path / "m/evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    rewrite(tmp_path / "m", file, **changes)
    assert call(monkeypatch, "babylm_train.evaluate", str(tmp_path / "m"), "pairs=pairs.jsonl") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file in line
    assert not (tmp_path / "canary").exists()


def test_the_code_beside_the_weights_has_to_be_ours(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    shutil.copytree(workplace / "hybrid", tmp_path / "run")
    code = tmp_path / "run/model/modeling_mntp.py"
    ours = code.read_text()
    code.unlink()
    code.write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n" + ours)
    for command in (["babylm_train.preflight", "license=mit"], ["babylm_train.evaluate", "pairs=pairs.jsonl"]):
        assert call(monkeypatch, command[0], str(tmp_path / "run"), *command[1:]) == 2
        assert "modeling_mntp.py" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run/model")
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "run/pytorch_model.bin")
    shutil.copytree(workplace / "hybrid/model", tmp_path / "run/model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "run/pytorch_model.bin").rename(tmp_path / "run/model/pytorch_model.bin")
    assert call(monkeypatch, "babylm_train.evaluate", str(tmp_path / "run"), "pairs=pairs.jsonl") == 2
    assert "safetensors" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


TASK = """
task: hindi_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{validation: "{path}"}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: make lm-eval")
def test_lm_eval_finds_the_same_accuracy(workplace):
    tasks = workplace / "tasks"
    tasks.mkdir()
    (tasks / "hindi_pairs.yaml").write_text(TASK.format(path=workplace / "pairs.jsonl"), encoding="utf8")
    model = f"pretrained={workplace / 'causal/model'},dtype=float32"
    call = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model, "--tasks", "hindi_pairs"]
    call += ["--include_path", str(tasks), "--device", "cpu", "--output_path", str(workplace / "lm_eval")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=workplace)
    assert done.returncode == 0, done.stderr
    (path,) = (workplace / "lm_eval").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]["hindi_pairs"]["acc,none"]
    loaded, tokenizer, _ = evaluate.load_model(workplace / "causal/model")
    pairs = read_pairs(str(workplace / "pairs.jsonl"))
    assert theirs == pytest.approx(score_pairs(loaded, tokenizer, pairs, closing=False)["all"])
