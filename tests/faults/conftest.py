"""Thousands of small files are written and synced here: in memory, where the machine has a place for that."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path):
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="babylm_train-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
