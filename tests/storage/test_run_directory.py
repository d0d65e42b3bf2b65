"""A run's directory, damaged, deleted or left in the middle: the same command again says so in one line, or goes on."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from forked import SMALL, Child, command

from babylm_train import cli, runner
from babylm_train.trainer import Trainer

ARGUMENTS = [*SMALL, "data.words=1500", "trainer.max_steps=6", "trainer.epochs=3", "trainer.save_every=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a run has ended in `out`."""
    folder = tmp_path_factory.mktemp("finished")
    child = command(ARGUMENTS, folder, folder / "said")
    assert child.wait() == 0, child.err
    return folder


@pytest.fixture
def out(finished, tmp_path):
    """A copy of its directory, `tmp_path/out`."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True) / "out"


def again(out: Path) -> Child:
    child = command(ARGUMENTS, out.parent, out.parent / "said")
    child.wait()
    assert "Traceback" not in child.err
    return child


@pytest.mark.parametrize("named", ["result.json", "metrics.jsonl", "checkpoint_", "state.updates"])
def test_a_damaged_record_is_one_line_that_names_it(out, named):
    (out / "result.json").unlink()
    if named.endswith("json"):
        (out / named).write_text('{"status": "finished", "config_hash": ')
    elif named == "metrics.jsonl":
        (out / named).write_text("{]\n" * 2000)
    else:
        for path in (out / "checkpoints").glob("*.pt"):
            content = torch.load(path, weights_only=True)
            content["state"].update({"updates": 5} if named == "state.updates" else {"tokens": "many"})
            torch.save(content, path)
    child = again(out)
    assert (child.code, child.err.count("\n")) == (2, 1)
    assert named in child.err


def test_what_can_be_made_again_is(out):
    """The newest checkpoint, timings and the caches: the run goes on from what is left, to the same weights."""
    weights = (out / "model/model.safetensors").read_bytes()
    (out / "result.json").unlink()
    (out / "timings.jsonl").write_bytes(b"\xff{")
    (out / "checkpoints/checkpoint_epoch_3.pt").write_bytes(b"PK")
    (out / "checkpoints/.checkpoint_best.pt.1.tmp").write_bytes(b"PK")  # as a killed process leaves it
    for manifest in out.parent.glob("cache/*/manifest.json"):
        manifest.write_text("[]")
    assert again(out).code == 0
    assert (out / "model/model.safetensors").read_bytes() == weights
    assert json.loads((out / "result.json").read_text())["status"] == "finished"
    assert len({p.stat().st_ino for p in out.glob("checkpoints/checkpoint_[es]*.pt")}) <= 2
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Trainer, "make_update"),
        (Trainer, "evaluate"),
        (runner, "finish"),
        (runner, "draw_curves"),
        (runner, "write_json"),
    ],
)
def test_deleted_under_its_run_it_ends_with_a_storage_error_and_stays_deleted(tmp_path, finished, owner, name):
    shutil.copytree(finished / "cache", tmp_path / "cache")

    def job() -> None:
        real = getattr(owner, name)

        def delete_first(*given, **more):
            shutil.rmtree("out", ignore_errors=True)
            return real(*given, **more)

        os.chdir(tmp_path)
        setattr(owner, name, delete_first)
        sys.argv = ["babylm-train", *ARGUMENTS]
        cli.main()

    child = Child(job, tmp_path / "said")
    assert child.wait() == 4, child.err
    assert child.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_before_the_first_checkpoint_loses_nothing(tmp_path, finished):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    more = ["trainer.max_steps=500", "trainer.log_every=1", "trainer.save_every=null"]
    child = command([*ARGUMENTS, *more], tmp_path, tmp_path / "said")
    metrics = tmp_path / "out/metrics.jsonl"
    child.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3)
    child.send(signal.SIGINT)
    assert child.wait() == 130
    assert len(list(tmp_path.glob("out/checkpoints/checkpoint_step_*.pt"))) == 1
