"""docs/BABYLM.md from corpus to submission, and what a preflight finds."""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import model_of

from babylm_train import cli
from babylm_train.babylm import preflight
from babylm_train.data.pairs import minimal_pairs
from babylm_train.data.stories import generate
from babylm_train.data.tokenizer import Byte
from babylm_train.evaluation import command as evaluate
from babylm_train.evaluation.pairs import read_pairs
from babylm_train.model.export import submitted, write_model
from babylm_train.tools import difficulty, lr_finder, plan

DOC = Path(__file__).parents[1] / "docs" / "BABYLM.md"
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
SMALL += ["track.milestones=[500,1000,1400]"]
SCALE = {"data.max_length=512": "data.max_length=48", "revision=chck_1M": "revision=chck_1000"}
COMPOSED = ("babylm_train", "babylm_train.plan", "babylm_train.difficulty", "babylm_train.lr_finder")


def commands() -> list[list[str]]:
    block = DOC.read_text(encoding="utf8").split("```")[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A participant's folder, after the ten commands; and what each printed."""
    folder = tmp_path_factory.mktemp("babylm")
    (folder / "corpus").mkdir()
    for name, words, seed in (("corpus/a.txt", 700, 1), ("validation.txt", 200, 2)):
        texts = [text.replace("\n", " ") for text in generate(words, seed)]
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf8")
    lines = [json.dumps(pair._asdict(), ensure_ascii=False) for pair in minimal_pairs(4, 0)]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf8")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for python, flag, module, *arguments in commands():
            assert (python, flag) == ("python", "-m")
            small = [SCALE.get(a, a) for a in arguments] + SMALL * (module in COMPOSED)
            small += ["end_lr=1e-2", "num_iter=10"] * (module == "babylm_train.lr_finder")
            if module == "babylm_train.difficulty":
                small.remove("track.milestones=[500,1000,1400]")
            patch.setattr(sys, "argv", [module, *small])
            MAINS[module]()
            printed.append(module)
    return folder


def test_the_ten_commands(workplace):
    assert len(commands()) == 10
    assert {module for _, _, module, *_ in commands()} == set(MAINS)
    result = json.loads((workplace / "causal/result.json").read_text())
    words = sum(len(line.split()) for line in (workplace / "corpus/a.txt").read_text(encoding="utf8").splitlines())
    assert result["words"] == 2 * words
    assert set(result["milestones"]) == {f"chck_{mark}" for mark in (500, 1000, 1400) if mark <= 2 * words}
    found = json.loads((workplace / "causal/pairs.json").read_text())["pairs"]
    assert found["summed"]["all"]["n"] == 20
    assert found["summed"]["all"]["accuracy"] == pytest.approx(result_of_pairs(workplace), abs=1e-9)
    card = (workplace / "hybrid/model/README.md").read_text(encoding="utf8")
    assert "license: cc-by-sa-4.0" in card
    assert "# hindi-babylm" in card
    assert f"those of update {result_of(workplace / 'hybrid')['exported_update']:,}, after " in card


def result_of(run) -> dict:
    return json.loads((run / "result.json").read_text())


def test_the_card_is_named_for_the_run_and_shows_values_but_no_environment(workplace, monkeypatch):
    """Interpolations as they were composed; text of the environment stays a name."""
    run = workplace / "hybrid.2"
    shutil.copytree(workplace / "hybrid", run)
    text = (run / "config.yaml").read_text(encoding="utf8")
    for plain, other in (("cache_dir: cache", "cache_dir: ${oc.env:CACHE}"), ("batch_size: 4", "batch_size: ${seed}4")):
        assert plain in text
        text = text.replace(plain, other)
    (run / "config.yaml").write_text(text.replace("text_field: text", "text_field: ${oc.env:WORD}"), encoding="utf8")
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["preflight", "hybrid.2", "license=mit"])
    monkeypatch.setenv("CACHE", "cache")
    with pytest.raises(SystemExit):
        preflight.main()
    monkeypatch.setenv("WORD", "text")
    preflight.main()
    card = (run / "model/README.md").read_text(encoding="utf8")
    assert "\n# hybrid_2\n" in card
    assert "batch_size=04" in card
    assert "text_field=${oc.env:WORD}" in card
    assert "${seed}" not in card


def test_more_words_than_the_track_allows_are_found(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    run = preflight.open_run("causal")
    words = run.result["words"]
    assert all(finding.ok is not False for finding in preflight.check_ledger(run, words // 2))
    failed = [finding.text for finding in preflight.check_ledger(run, words // 11) if finding.ok is False]
    assert failed == [f"{words:,} words seen, track strict_small allows {words // 11 * 10:,} (10 epochs)"]


@pytest.mark.parametrize("backend", ["causal", "mntp"])
def test_a_short_model_and_a_tokenizer_without_padding_are_read_too(tmp_path, backend):
    tokenizer = Byte().build([])
    tokenizer.model_max_length, tokenizer.pad_token = 16, None
    write_model(model_of("gpt2_nano", len(tokenizer), 16), tokenizer, tmp_path / "m", ("causal", "mntp"))
    text = preflight.fitting("राम घर गया", submitted(tokenizer), 16 - preflight.FILLING)
    assert text == "राम"  # the mark and 9 bytes; the next letter has 3 more beside its space
    assert preflight.check_interface(tmp_path / "m", backend, [text]).ok
    assert preflight.check_interface(tmp_path / "m", backend, []).ok is None


def result_of_pairs(workplace) -> float:
    """The accuracy that the run itself logged at the validation whose weights it exported."""
    best = json.loads((workplace / "causal/result.json").read_text())["best_update"]
    lines = [json.loads(line) for line in (workplace / "causal/metrics.jsonl").read_text().splitlines()]
    return next(line["pairs/all"] for line in lines if line["step"] == best and "pairs/all" in line)


def check(folder, *arguments):
    """Exit code and output of preflight on a run, in a fresh process."""
    call = [sys.executable, "-m", "babylm_train.preflight", str(folder), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder.parent)
    return done.returncode, done.stdout, done.stderr


def test_what_costs_scores_is_found(workplace, capsys):
    """A revision with other weights, one that is missing, a tokenizer that begins with nothing, a name cut by its dot."""
    broken = workplace / "broken"
    shutil.copytree(workplace / "hybrid", broken)
    shutil.copyfile(broken / "model/model.safetensors", broken / "milestones/chck_500/model.safetensors")
    shutil.rmtree(broken / "milestones/chck_1000")
    rules = json.loads((broken / "model/tokenizer.json").read_text(encoding="utf8"))
    (broken / "model/tokenizer.json").write_text(json.dumps({**rules, "post_processor": None}), encoding="utf8")
    code, out, err = check(broken, "name=gpt.0", "license=")
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert code == 2
    assert err.strip() == f"error: {broken}: {len(failed)} checks failed"
    for text in (
        "without chck_1000",
        "chck_500: loss",
        "begins with that mark",
        "backend mntp",
        "gpt.0",
        "licence is not",
    ):
        assert sum(text in line for line in failed) == 1, text
    assert sum(line.startswith("FAILED") for line in out.splitlines()) == 6 + ("backend causal" in "".join(failed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hybrid", "license=mit", "push_to=me/hindi"], "push_to=me/hindi: HF_HUB_OFFLINE is set"),
        (["hybrid", "licence=mit"], "licence: no such option (there are license, name, push_to)"),
        (["corpus"], "config.yaml is missing: this is no run's directory"),
    ],
)
def test_refused_in_one_line(workplace, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["preflight", *arguments])
    with pytest.raises(SystemExit) as stopped:
        preflight.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


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
    from babylm_train.evaluation.pairs import score_pairs

    pairs = read_pairs(str(workplace / "pairs.jsonl"))
    assert theirs == pytest.approx(score_pairs(loaded, tokenizer, pairs, closing=False)["all"])
