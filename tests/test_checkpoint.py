"""Checkpoints: written aside, verified, pruned; a failed save loses nothing."""

import errno
import os

import pytest
import torch

from babylm_train import checkpoint
from babylm_train.checkpoint import BEST, Checkpoints, load
from babylm_train.errors import InputError, StorageError


def content(update: int) -> dict:
    return {"state": {"updates": update}, "model": {"w": torch.full((50,), float(update))}}


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep_last=2)


def save(store, update, best=False):
    return store.save(content(update), [f"checkpoint_step_{update}.pt"] + [BEST] * best)


def updates(store):
    return sorted(int(p.stem.rpartition("_")[2]) for p in store.directory.glob("checkpoint_step_*.pt"))


def test_the_newest_two_and_the_best_stay(store):
    for update in range(1, 7):
        save(store, update, best=update == 2)
    assert updates(store) == [5, 6]
    assert store.best(2)[1]["state"]["updates"] == 2
    assert store.newest()[1]["state"]["updates"] == 6
    assert len(list(store.directory.iterdir())) == 6  # three files and their hashes, nothing aside


@pytest.mark.parametrize("damage", ["flip", "truncate", "no hash"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(store, damage, caplog):
    save(store, 1)
    path = save(store, 2)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:-1])
    else:
        path.with_name(path.name + ".sha256").unlink()
    with pytest.raises(InputError):
        load(path)
    assert store.newest()[1]["state"]["updates"] == 1
    assert "passed over" in caplog.text


def test_a_damaged_best_is_found_in_its_other_copy_or_named(store):
    save(store, 1, best=True)
    save(store, 2)
    best = store.directory / BEST
    raw = best.read_bytes()
    best.unlink()
    best.write_bytes(raw[:-1] + b"x")  # a file of its own now
    assert store.best(1)[1]["state"]["updates"] == 1
    save(store, 3)
    with pytest.raises(StorageError, match=r"checkpoint_best\.pt of update 1 is missing or damaged"):
        store.best(1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "rename", "link"])
def test_a_failed_save_leaves_every_earlier_checkpoint(store, monkeypatch, error, call):
    save(store, 1, best=True)
    before = {p.name: p.read_bytes() for p in store.directory.iterdir()}

    def fail(*_):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, call, fail)
        with pytest.raises(StorageError, match="earlier checkpoints are intact"):
            save(store, 2, best=True)
    after = {p.name: p.read_bytes() for p in store.directory.iterdir()}
    assert all(after[name] == data for name, data in before.items() if name.endswith(".pt"))
    assert store.best(1)[1]["state"]["updates"] == 1
    assert load(store.directory / BEST)["state"]["updates"] == 1
    assert not [n for n in after if n.endswith(".tmp")]


def test_killed_between_hash_and_rename_the_old_file_still_verifies(store, monkeypatch):
    """Replacing checkpoint_best.pt: at the rename its .sha256 knows the old and the new file."""
    save(store, 1, best=True)
    seen = []
    rename = os.rename

    def spy(source, target):
        if str(target).endswith(BEST):
            seen.append(load(store.directory / BEST)["state"]["updates"])  # the moment before
            rename(source, target)
            seen.append(load(store.directory / BEST)["state"]["updates"])  # and the moment after
        else:
            rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", spy)
    save(store, 2, best=True)
    assert seen == [1, 2]


def test_no_room_is_found_before_training(store):
    with pytest.raises(StorageError, match="MiB free, but 4 checkpoints"):
        store.check(1 << 60, 9)
    store.check(1000, 9)


def test_a_pickle_is_never_run(store, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    path = store.save({"state": {"updates": 1}}, ["checkpoint_step_1.pt"])
    torch.save({"state": Bomb()}, path)
    path.with_name(path.name + ".sha256").write_text(f"{checkpoint.hashlib.sha256(path.read_bytes()).hexdigest()}  x\n")
    with pytest.raises(InputError, match="holds more than tensors and plain values"):
        load(path)
    assert not (tmp_path / "canary").exists()


def test_no_more_room_is_asked_for_than_the_run_can_fill(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    many = Checkpoints(tmp_path, keep_last=1_000_000)
    many.check(free // 10, saves=2)
    with pytest.raises(StorageError, match="checkpoints of"):
        many.check(free // 10, saves=20)
