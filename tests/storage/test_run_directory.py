"""A run's directory, damaged, deleted or left in the middle: the same command again says so in one line, or goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import SMALL, Child, command

from babylm_train import runner
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
    if "json" in named:
        (out / named).write_text('{"status": "finished", "config_hash": ' + "\n" * 2000)
    else:
        for path in out.glob("checkpoints/*.pt"):
            content = torch.load(path, weights_only=True)
            content["state"] |= {"updates": 5} if named == "state.updates" else {"tokens": "many"}
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
    assert all("step" in json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines())
    assert len({p.stat().st_ino for p in out.glob("checkpoints/checkpoint_[es]*.pt")}) <= 2
    assert not list(out.rglob("*.tmp"))


STEPS = {"make_update": Trainer, "evaluate": Trainer, "finish": runner, "draw_curves": runner, "write_json": runner}


@pytest.mark.parametrize("step", STEPS)
def test_deleted_under_its_run_it_ends_with_a_storage_error_and_stays_deleted(out, monkeypatch, step):
    take = getattr(STEPS[step], step)

    def delete_first(*given, **more):
        shutil.rmtree(out, ignore_errors=True)
        return take(*given, **more)

    monkeypatch.setattr(STEPS[step], step, delete_first)
    shutil.rmtree(out)
    child = again(out)
    assert (child.code, child.err.count("\n")) == (4, 1), child.err
    assert not out.exists()
