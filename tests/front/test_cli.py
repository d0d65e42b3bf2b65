"""The command line: what it reads, what a run writes, that it goes on, how it stops."""

import json
import math
import os
import shutil
import signal

import pytest
import yaml
from forked import SMALL as FORKED
from forked import command

from babylm_train import cli
from babylm_train.config import check_command_line

SMALL = [small for small in FORKED if not small.startswith(("hydra", "data.cache"))] + ["data.words=1500"]

FILES = (" lead.txt", "trail.txt ", "a,b.txt")  # the name of one that is there is taken as it stands
TYPED = {  # as typed: as each job of the sweep, or the one run, has it
    **{name: [name] for name in FILES},
    "brackets [v2]/*.txt": ["brackets [v2]/*.txt"],
    "हिन्दी पाठ/क (1).txt": ["हिन्दी पाठ/क (1).txt"],
    "[हिन्दी.txt, मराठी.txt]": [["हिन्दी.txt", "मराठी.txt"]],
    "'हिन्दी, मराठी.txt'": ["हिन्दी, मराठी.txt"],
    "a;b&c|d#e!f<g>@h+i:j%.txt": ["a;b&c|d#e!f<g>@h+i:j%.txt"],
    "": [""],
    "null": [None],
    "None": [None],
    "1e-3": [0.001],
    "'हिन्दी.txt','मराठी.txt'": ["हिन्दी.txt", "मराठी.txt"],
    "[हिन्दी.txt],[मराठी.txt,x]": [["हिन्दी.txt"], ["मराठी.txt", "x"]],
    "1,two,3.5": [1, "two", 3.5],
}
FOLDERS = ["a [1],b", "घर का", "d'e", 'f"g', "f=g", "config dir (v2)", "r{s}", "$u;x:y"]


@pytest.mark.parametrize("text", TYPED)
def test_a_value_is_what_was_typed(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()
    jobs = check_command_line(["data=text", f"data.train={text}"])
    assert [job.data.train for job in jobs] == TYPED[text]


def test_folders_of_any_name(tmp_path, monkeypatch):
    """With --config-dir, and --config-name of a file there."""
    monkeypatch.chdir(tmp_path)
    for name in FOLDERS:
        (tmp_path / name / "experiment").mkdir(parents=True)
        (tmp_path / name / "experiment/mine.yaml").write_text("# @package _global_\noptimizer: {lr: 0.002}\n")
        (tmp_path / name / "mine.yaml").write_text("defaults: [config, _self_]\noptimizer: {lr: 0.003}\n")
        assert check_command_line(["experiment=mine"], folder=name)[0].optimizer.lr == 0.002
        (config,) = check_command_line([f"hydra.run.dir={name}"] if "," not in name else [], "mine", name)
        assert config.optimizer.lr == 0.003


def test_a_run_from_nothing_and_again(run, tmp_path):
    given = [*SMALL, "optimizer=sgd", "scheduler=cosine", "trainer.epochs=2", "trainer.max_steps=12", "hydra.run.dir=a"]
    code, out, _ = run(*given)
    assert code == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert (result["status"], result["updates"]) == ("finished", 12)
    assert result["perplexity"] == pytest.approx(math.exp(result["val_loss"]))
    assert set(result["pairs"]) == {"all", "ergative", "gender", "number", "postposition", "word_order"}
    for name in ("config.yaml", "curves.png", "model/model.safetensors", "checkpoints/checkpoint_best.pt"):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert len(result["samples"]) == 2  # a validation document each
    assert all(f"{each['prompt']} … " in out for each in result["samples"])
    last = (tmp_path / "a/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["val/loss"] == result["val_loss"]
    before = (tmp_path / "a/result.json").stat().st_mtime_ns
    assert "finished already" in run(*given)[1]
    code, _, err = run(*given, "optimizer.momentum=0.5")
    assert code == 2
    assert "optimizer.momentum" in err
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before


def test_a_run_keeps_its_name_in_whatever_words_it_is_asked_for(run, tmp_path):
    assert run(*SMALL, "study=s", "optimizer=sgd", "seed=1")[0] == 0
    assert "finished already" in run("seed=1", "scheduler=linear", "optimizer=sgd", *SMALL, "study=s")[1]
    (folder,) = (p for p in (tmp_path / "multirun_outputs/s").iterdir() if p.is_dir())
    assert "seed=1" in yaml.safe_load((folder / "overrides.yaml").read_text())


@pytest.mark.parametrize(("number", "code", "epochs"), [(signal.SIGUSR1, 75, 20), (signal.SIGINT, 130, 1)])
def test_stopped_by_a_signal_it_saves_and_goes_on_exactly(tmp_path, number, code, epochs):
    """In its second epoch of 10 updates, or before it has saved anything."""
    given = [small for small in SMALL if "max_steps" not in small] + ["data.cache_dir=cache", "trainer.log_every=1"]
    given += ["trainer.max_steps=200", f"trainer.epochs={epochs}"]
    stopped, metrics = command([*given, "hydra.run.dir=a"], tmp_path, tmp_path / "said"), tmp_path / "a/metrics.jsonl"
    stopped.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 14)
    stopped.send(number)
    assert stopped.wait(60) == code, stopped.err
    assert len(stopped.err.splitlines()) == 1
    assert json.loads((tmp_path / "a/result.json").read_text())["status"] == "preempted"
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    for more in (["hydra.run.dir=b", "resume=a"], ["hydra.run.dir=c"], ["hydra.run.dir=d"]):
        child = command([*given, *more], tmp_path, tmp_path / "said")
        assert child.wait(120) == 0, child.err
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "bcd"}) == 1


def test_a_signal_before_anything_has_begun(run, tmp_path, monkeypatch):
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        monkeypatch.setattr(cli.checks, "read_overrides", lambda _, number=number: os.kill(os.getpid(), number))
        ended, _, err = run(*SMALL, "hydra.run.dir=a")
        assert (ended, len(err.splitlines())) == (code, 1)
    assert list(tmp_path.iterdir()) == []
