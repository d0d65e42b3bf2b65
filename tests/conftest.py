"""Settings of every test, and the tiny run as a fixture."""

from __future__ import annotations

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: tiny tensors, and CI has two cores

import pytest
import torch
from tiny import tiny_trainer

torch.set_num_threads(1)  # tiny tensors: a second thread only costs


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(name, **changes)`: a tiny run in its own directory."""
    return lambda name="run", **changes: tiny_trainer(tmp_path / name, **changes)
