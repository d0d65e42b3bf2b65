"""The command line: what it refuses, what it writes, that it goes on."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from babylm_train import cli
from babylm_train.config import check_command_line

SMALL = ["data.words=3000", "data.max_length=32", "trainer.batch_size=4", "trainer.epochs=2", "logger=none"]


def test_pairs_that_do_not_fit_are_said_before_training_and_after_it(run):
    code, out, err = run(*SMALL, "data.max_length=4", "trainer.max_steps=1", "trainer.eval_pairs=corpus")
    assert code == 0
    said = re.search(r"trainer.eval_pairs: (\d+) texts are longer than data.max_length and are cut", err)
    assert 0 < int(said[1]) <= 2000
    assert f"{int(said[1]):,} texts of pairs, longer than data.max_length" in out


def test_a_run_from_nothing_and_again(run, tmp_path):
    code, out, _ = run(*SMALL, "optimizer=sgd", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert result["status"] == "finished"
    assert result["updates"] == 12
    assert result["tokens"] == 12 * 4 * 32
    assert result["perplexity"] == pytest.approx(math.exp(result["val_loss"]))
    assert set(result["pairs"]) == {"all", "ergative", "gender", "number", "postposition", "word_order"}
    for name in ("config.yaml", "metrics.jsonl", "timings.jsonl", "curves.png", "model/model.safetensors"):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert (tmp_path / "a/checkpoints/checkpoint_best.pt").exists()
    for text in ("parameters", "devanagari", "tokens, ", "val_loss", "एक दिन"):
        assert text in out.lower() or text in out
    last = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()][-1]
    assert last["val/loss"] == result["val_loss"]
    before = (tmp_path / "a/result.json").stat().st_mtime_ns
    code, out, _ = run(*SMALL, "optimizer=sgd", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 0
    assert "finished already" in out
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before
    code, _, err = run(*SMALL, "optimizer=adamw", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 2
    assert "a is of another configuration: optimizer._target_" in err
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before


RELOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.read import Stories
from babylm_train.data.tokens import tokenize
from babylm_train.evaluation.loss import evaluate
from babylm_train.objective import CausalObjective
model, cache = AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert tokenizer.is_fast and tokenizer.model_max_length == 32
corpus = Stories(words=3000, seed=0, validation_share=0.05, max_length=32, cache_dir=cache).load()
rows = EvaluationRows(tokenize(corpus.validation, tokenizer, cache_dir=cache), 32)
print(evaluate(model, CausalObjective(), rows, 3).loss)
"""


def test_the_exported_model_gives_the_same_loss_in_a_fresh_process(run, tmp_path):
    assert run(*SMALL, "model=modern_nano", "trainer.max_steps=6", "hydra.run.dir=a")[0] == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, "a/model", "cache"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(result["val_loss"], abs=1e-4)


def test_a_sweep_shares_a_directory_without_collisions(run, tmp_path):
    sweep = ["-m", *SMALL, "optimizer=adamw,sgd", "scheduler=linear,constant", "trainer.max_steps=2", "study=s"]
    assert run(*sweep)[0] == 0
    folders = [p for p in (tmp_path / "multirun_outputs/s").iterdir() if p.is_dir()]
    results = [json.loads((p / "result.json").read_text()) for p in folders]
    assert len({r["config_hash"] for r in results}) == len(folders) == 4
    assert all(p.name.isascii() for p in folders)
    again = run(*sweep)[1]
    assert again.count("validation loss") == 4
    assert "report: " in again
    assert {"report.html", "report.md", "results.csv"} <= {p.name for p in (tmp_path / "multirun_outputs/s").iterdir()}


def test_a_run_keeps_its_name_in_whatever_words_it_is_asked_for(run, tmp_path):
    small = [*SMALL, "trainer.max_steps=2", "study=s"]
    assert run(*small, "optimizer=sgd", "seed=1")[0] == 0
    again = run("seed=1", "scheduler=linear", "optimizer=sgd", *small)
    assert "finished already" in again[1]
    (folder,) = (p for p in (tmp_path / "multirun_outputs/s").iterdir() if p.is_dir())
    assert yaml.safe_load((folder / "overrides.yaml").read_text())[-3:-1] == ["optimizer=sgd", "seed=1"]


def test_a_diverging_job_does_not_take_the_others_down(run, tmp_path):
    code, _, err = run("-m", *SMALL, "optimizer=sgd", "optimizer.lr=0.01,1e30", "trainer.max_steps=8", "study=s")
    assert code == 3
    assert "loss" in err
    statuses = [json.loads(p.read_text())["status"] for p in (tmp_path / "multirun_outputs/s").glob("*/result.json")]
    assert sorted(statuses) == ["diverged", "finished"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "babylm_train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    until = time.time() + 120
    while process.poll() is None and time.time() < until:
        if path.exists() and len(path.read_bytes().splitlines()) >= lines:
            return
        time.sleep(0.01)


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def test_killed_twice_mid_epoch_ends_with_the_same_weights_and_record(tmp_path):
    arguments = [*SMALL, "data.cache_dir=cache", "trainer.max_steps=40", "trainer.gradient_accumulation_steps=2"]
    arguments += ["trainer.save_every=3", "trainer.log_every=1", "trainer.eval_every=7"]
    assert start([*arguments, "hydra.run.dir=whole"], tmp_path).wait(300) == 0
    kills = []
    for lines in (6, 22):  # within the first epoch's 20 updates, then within the second's
        process = start([*arguments, "hydra.run.dir=killed"], tmp_path)
        wait_for(tmp_path / "killed/metrics.jsonl", lines, process)
        os.killpg(process.pid, signal.SIGKILL)
        kills.append(process.wait())
    assert kills == [-signal.SIGKILL] * 2
    assert start([*arguments, "hydra.run.dir=killed"], tmp_path).wait(300) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_preemption_saves_exits_75_and_resume_elsewhere_is_exact(tmp_path):
    arguments = [*SMALL, "data.cache_dir=cache", "trainer.max_steps=40", "trainer.log_every=1"]
    process = start([*arguments, "hydra.run.dir=a"], tmp_path)
    wait_for(tmp_path / "a/metrics.jsonl", 8, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    assert json.loads((tmp_path / "a/result.json").read_text())["status"] == "preempted"
    assert start([*arguments, "hydra.run.dir=b", "resume=a"], tmp_path).wait(300) == 0
    assert start([*arguments, "hydra.run.dir=a"], tmp_path).wait(300) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_signal_before_anything_has_begun_is_exit_75(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_check_mode", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run(*SMALL, "hydra.run.dir=a")
    signal.signal(signal.SIGTERM, before)
    assert code == 75
    assert err.startswith("error: ")
    assert not (tmp_path / "a").exists()


def test_a_second_run_in_one_directory_is_refused(run, tmp_path):
    from filelock import FileLock

    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a/.lock"):
        code, _, err = run(*SMALL, "hydra.run.dir=a")
    assert code == 2
    assert "a is in use by another run" in err


def test_a_refused_resume_writes_nothing(run, tmp_path):
    assert run(*SMALL, "trainer.max_steps=4", "hydra.run.dir=a")[0] == 0
    code, _, err = run(*SMALL, "trainer.max_steps=4", "optimizer.lr=0.01", "resume=a", "hydra.run.dir=b")
    assert code == 2
    assert "the checkpoint is of another configuration: optimizer.lr is 0.0003 there, 0.01 here" in err
    assert not (tmp_path / "b").exists()


def test_a_glob_sweeps_over_every_option(run, tmp_path):
    assert run("-m", *SMALL, "optimizer=glob(ad*)", "trainer.max_steps=2", "study=s")[0] == 0
    assert len(list((tmp_path / "multirun_outputs/s").glob("*/result.json"))) == 2


def test_help_and_config_need_no_heavy_import():
    code = "import sys; import babylm_train.cli; print([m for m in ('torch', 'transformers', 'wandb') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_paths_in_devanagari(run, tmp_path):
    from hindi_stories.stories import generate

    folder = tmp_path / "हिन्दी पाठ"
    folder.mkdir()
    (folder / "कहानियाँ.txt").write_text("\n".join(generate(3000, 1)), encoding="utf8")
    small = [
        "data=text",
        "data.train=हिन्दी पाठ/कहानियाँ.txt",
        "data.max_length=32",
        "trainer.max_steps=2",
        "logger=none",
    ]
    assert run(*small, "hydra.run.dir=परिणाम")[0] == 0
    assert json.loads((tmp_path / "परिणाम/result.json").read_text())["updates"] == 2
    assert run(*small)[0] == 0  # a generated name
    assert all(p.name.isascii() for p in (tmp_path / "multirun_outputs/runs").iterdir())
    assert len(check_command_line(small)) == 1  # as `plan` and `difficulty` read them


def test_a_strategy_of_ones_own_as_the_readme_shows_it(tmp_path):
    """The class, fragment and command of CONTRIBUTING.md, word for word."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf8")
    blocks = text.split("```")
    code, fragment, command = (
        next(b for b in blocks if mark in b) for mark in ("CommaCurriculum(", "_target_: my_", "ALLOW_TARGETS=my")
    )
    (tmp_path / "my_curricula.py").write_text(code.removeprefix("python"), encoding="utf8")
    (tmp_path / "my_conf/curriculum/strategy").mkdir(parents=True)
    (tmp_path / "my_conf/curriculum/strategy/commas.yaml").write_text(fragment.removeprefix("yaml"), encoding="utf8")
    call = (
        command.strip().replace("python -m", f"{sys.executable} -m")
        + " "
        + " ".join(SMALL)
        + " trainer.max_steps=2 hydra.run.dir=a"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(call, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a/result.json").read_text())["exposures"]["hardest_decile"] is not None
    refused = subprocess.run(
        call.replace("BABYLM_ALLOW", "NOT"), shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert refused.returncode == 2
    assert "curriculum.strategy._target_=my_curricula.CommaCurriculum is not allowed" in refused.stderr
