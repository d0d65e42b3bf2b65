"""Writing checkpoints while the process is killed, the disk fills up or fails, and bits flip."""

import hashlib
import random
import re
import signal

import pytest
import torch
from failpoints import FAULTS, KILL, Failpoints
from forked import Child

from babylm_train.checkpoint import BEST, Checkpoints, load
from babylm_train.data.cache import cached
from babylm_train.errors import InputError, StorageError


def content(update: int, best: int = 0) -> dict:
    return {"state": {"update": update, "best_update": best}, "model": {"w": torch.full((30,), float(update))}}


def save(store: Checkpoints, update: int, best: int) -> None:
    names = [f"checkpoint_step_{update}.pt"] + [BEST] * (best == update)
    store.save(content(update, best), names)


HISTORIES = {  # what was saved before (update, best update), and the save that meets the fault
    "a better one": ([(1, 1), (2, 2)], (3, 3)),
    "not a better one": ([(1, 1), (2, 1)], (3, 1)),
    "under a name that is there": ([(1, 1), (3, 1)], (3, 3)),
    "the first": ([], (1, 1)),
}


def steps(folder, history) -> list[str]:
    store = prepared(folder, history)
    with Failpoints(folder) as points:
        save(store, *HISTORIES[history][1])
    return points.steps


def prepared(folder, history) -> Checkpoints:
    store = Checkpoints(folder, keep_last=1)
    for update, best in HISTORIES[history][0]:
        save(store, update, best)
    return store


@pytest.mark.parametrize("history", HISTORIES)
def test_every_failpoint_and_every_fault_leave_a_loadable_checkpoint(tmp_path, history):
    reached = steps(tmp_path / "dry", history)
    before, (update, best) = HISTORIES[history]
    kinds = {step.split()[0] for step in reached}
    assert kinds == {"open", "write", "fsync", "rename", "unlink"} | ({"link"} if best == update else set())
    for fault in FAULTS:
        for at, step in enumerate(reached):
            folder = tmp_path / f"{fault} {at}"
            store = prepared(folder, history)
            with Failpoints(folder, at, fault) as points:
                if fault == KILL:
                    child = Child(lambda store=store: save(store, update, best), tmp_path / "child")
                    assert child.wait() == -signal.SIGKILL, child.err
                else:
                    with pytest.raises(StorageError, match="earlier checkpoints are intact"):
                        save(store, update, best)
                    assert len(points.steps) > at
            store.check(1000)  # what the next start does: leftovers go
            assert not list(folder.glob(".*")), (fault, step)
            newest = store.newest()
            if before:
                assert newest is not None, (fault, step)
                assert newest[1]["state"]["update"] in (before[-1][0], update), (fault, step)
                wanted = newest[1]["state"]["best_update"]
                assert store.best(wanted)[1]["state"]["update"] == wanted, (fault, step)
            save(store, update, best)  # and the disk is well again
            assert store.best(best)[1]["state"]["update"] == best
            assert store.newest()[1]["state"]["update"] == update


@pytest.mark.parametrize("history", HISTORIES)
def test_what_is_renamed_was_synced_first_and_the_folder_after(tmp_path, history):
    """A machine that loses power loses what was not synced: the order of the steps is what protects."""
    reached = steps(tmp_path / "checkpoints", history)
    for number, step in enumerate(reached):
        if step.startswith("rename"):
            name = step.split()[1]
            aside = [s for s in reached[:number] if re.fullmatch(rf"\w+ \.{re.escape(name)}\.\d+\.tmp", s)]
            assert aside[-1].startswith(("fsync", "link")), (step, reached)  # a link's bytes were synced as the first
            assert "fsync checkpoints" in reached[number + 1 : number + 3], (step, reached)
