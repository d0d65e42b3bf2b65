"""Files of these tests are in memory, where the machine has a place for that."""

import tempfile
from pathlib import Path

import pytest
from forked import MEMORY_FOLDER, import_all
from tiny import tiny_trainer


@pytest.fixture
def tmp_path():
    with tempfile.TemporaryDirectory(prefix="babylm_train-", dir=MEMORY_FOLDER, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory):
    """Everything is imported, and has run once, before anything is forked."""
    import_all()
    tiny_trainer(tmp_path_factory.mktemp("warm"), epochs=1, max_steps=1).train()
