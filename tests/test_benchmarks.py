"""The benchmarks run: tiny, so that they work the first time on a machine that has what they measure."""

import importlib.util
from functools import partial
from pathlib import Path

import torch


def test_gpu_table_tiny(monkeypatch):
    """Every row is measured, ours with and without the compiler; HF Trainer's where it is installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    import gpu

    if importlib.util.find_spec("accelerate") is None:
        gpu.hf_trainer = gpu.ours
    text = gpu.main(["--tiny", "--updates", "3"])
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 7
    assert all(float(r[3].replace(",", "")) > 0 and r[4].strip().endswith("%") for r in rows)
