"""What only a GPU can show: `pytest -m gpu`. Skipped elsewhere."""

import functools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny import VOCABULARY, loss_and_gradients, model_of, packed

from babylm_train.errors import PreemptedError
from babylm_train.model.forward import Forward
from babylm_train.optim import Precision

DEVICE = "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def make(make_trainer):
    return functools.partial(make_trainer, device=DEVICE)


def losses(trainer) -> list[float]:
    return [line["train/loss"] for line in trainer.record.lines() if "train/loss" in line]


@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_documents_are_isolated_as_on_a_cpu(name, compiled):
    """Loss and every gradient."""
    model, batch = model_of(name, VOCABULARY, 256).eval(), packed(4, 256, 0)
    loss, gradients = loss_and_gradients(Forward(model), model, batch)
    model = model.to(DEVICE)
    forward = Forward(model, compile=compiled, rows=4)
    found, theirs = loss_and_gradients(forward, model, batch.to(DEVICE))
    assert found == pytest.approx(loss, rel=1e-4)
    for mine, expected in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(mine.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_bf16_compiled_runs_and_agrees_with_eager(name):
    model, batch = model_of(name, VOCABULARY, 256).to(DEVICE).eval(), packed(4, 256, 0).to(DEVICE)
    found = []
    for compiled in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16):
            found.append(loss_and_gradients(Forward(model, compile=compiled, rows=4), model, batch)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_resumed_run_is_exact_where_operations_are_deterministic(make):
    torch.use_deterministic_algorithms(True)
    try:
        whole = make("whole")
        torch.manual_seed(7)
        whole.train()
        first = make("parts")
        torch.manual_seed(7)
        first.should_stop = lambda: first.state.updates == 5
        with pytest.raises(PreemptedError, match="preempted at update 5"):
            first.train()
        second = make("parts")
        second.load_checkpoint(second.checkpoints.newest()[1])
        second.train()
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (t.checkpoints.newest()[1]["model"] for t in (whole, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(whole) == losses(second)


def test_fp16_scales_its_loss_and_skips_overflows(make):
    precision = Precision("float16", "highest", True, initial_scale=2.0**30, growth_interval=100)
    trainer = make("run", precision=precision)
    state = trainer.train()
    assert 0 < state.skipped < 20
    assert math.isfinite(state.val_loss)
    assert trainer.scaler.get_scale() < 2.0**30


def test_two_jobs_of_a_study_in_processes_of_their_own(tmp_path):
    """CUDA does not survive a fork: nothing may have touched it in the process that jobs are forked from."""
    arguments = ["-m", "experiment=smoke", "precision=bf16", "seed=1,2", "study=s", "logger=none"]
    command = [sys.executable, "-m", "babylm_train", *arguments, f"trainer.device={DEVICE}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in (tmp_path / "multirun_outputs/s").glob("*/result.json")]
    assert [r["status"] for r in results] == ["finished"] * 2
    assert all(r["device"] == torch.cuda.get_device_name() for r in results)
    timings = next((tmp_path / "multirun_outputs/s").glob("*/timings.jsonl")).read_text().splitlines()
    assert json.loads(timings[-1])["peak_memory_mib"] > 0
