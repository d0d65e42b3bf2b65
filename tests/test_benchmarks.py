"""The benchmarks run: tiny, so that they work the first time on a machine that has what they measure."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def test_gpu_table_tiny():
    """Every row is measured, ours with and without the compiler; HF Trainer's where it is installed."""
    import gpu

    if importlib.util.find_spec("accelerate") is None:
        gpu.hf_trainer = gpu.ours
    text = gpu.main(["--tiny", "--updates", "3"])
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 4
    assert all(float(r[3].replace(",", "")) > 0 and r[4].strip().endswith("%") for r in rows)


def test_arms_of_the_cpu_table():
    import arms
    from transformers import GPT2Config

    documents = [torch.randint(2, 64, (n % 40 + 1,)).tolist() for n in range(300)]
    setting = arms.Setting(partial(GPT2Config, n_layer=1, n_embd=32, n_head=2), 64, 32, 4, updates=2)
    peers = [arms.hf_trainer, arms.lightning] if importlib.util.find_spec("accelerate") else []
    for arm in (arms.ours, arms.bare, partial(arms.bare, tuned=True), arms.padded_to_512, *peers):
        found = arm(documents, setting)
        assert min(found.tokens, found.memory) > 0
