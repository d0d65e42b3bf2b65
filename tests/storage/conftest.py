"""Thousands of small files are written and synced here: in memory, where the machine has a place for that."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from forked import import_all
from tiny import tiny_trainer

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path):
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="babylm_train-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory):
    """Everything is imported, and has run once, before anything is forked."""
    import_all()
    tiny_trainer(tmp_path_factory.mktemp("warm"), epochs=1, max_steps=1).train()
