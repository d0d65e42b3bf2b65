"""Writing checkpoints while the process is killed, the disk fills up or fails, and bits flip."""

import itertools
import os
import pickle
import random
import re
import signal
from collections import Counter
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from failpoints import FAULTS, KILL, Failpoints
from forked import Child, load_damaged

from babylm_train.checkpoint import BEST, Checkpoints, load, rng_state
from babylm_train.errors import InputError, StorageError
from babylm_train.state import RunState


def content(update: int, best: int = 0) -> dict:
    parts = {name: {} for name in ("optimizer", "scheduler", "scaler", "curriculum", "average", "rng")}
    parts |= {"state": asdict(RunState(updates=update, best_update=best)), "metrics_bytes": 0, "seconds": 0.0}
    return {**parts, "model": {"w": torch.full((30,), float(update))}, "threads": 1}


def save(store: Checkpoints, update: int, best: int = 0) -> None:
    store.save(content(update, best), [f"checkpoint_step_{update}.pt"] + [BEST] * (best == update))


def updates_of(found: tuple) -> int:
    return found[1]["state"]["updates"]


def updates(store: Checkpoints) -> list[int]:
    return sorted(int(p.stem.rpartition("_")[2]) for p in store.directory.glob("checkpoint_step_*.pt"))


HISTORIES = {  # what was saved before (update, best update), and the save that meets the fault
    "a better one": ([(1, 1), (2, 2)], (3, 3)),
    "not a better one": ([(1, 1), (2, 1)], (3, 1)),
    "under a name that is there": ([(1, 1), (3, 1)], (3, 3)),
    "the first": ([], (1, 1)),
}


def prepared(folder, history) -> Checkpoints:
    store = Checkpoints(folder, keep_last=1)
    for update, best in HISTORIES[history][0]:
        save(store, update, best)
    return store


@pytest.mark.parametrize("history", HISTORIES)
def test_every_failpoint_and_every_fault_leave_a_loadable_checkpoint(tmp_path, history):
    before, (update, best) = HISTORIES[history]

    def save_last(store: Checkpoints, at: int | None = None, fault: str | None = None) -> list[str]:
        with Failpoints(store.directory, at, fault) as points:
            save(store, update, best)
        return points.steps

    reached = save_last(prepared(tmp_path / "dry", history))
    for number, step in enumerate(reached):
        if step.startswith("replace"):  # with the power goes what was not synced: the file before, the folder after
            aside = [s for s in reached[:number] if re.fullmatch(rf"\w+ \.{re.escape(step.split()[1])}\.\d+\.tmp", s)]
            assert aside[-1].startswith("fsync"), (step, reached)
            assert reached[number + 1] == "fsync dry", (step, reached)
    assert {step.split()[0] for step in reached} >= {"open", "write", "fsync", "replace"}
    for fault, (at, step) in itertools.product(FAULTS, enumerate(reached)):
        store = prepared(folder := tmp_path / f"{fault} {at}", history)
        if fault == KILL:
            child = Child(partial(save_last, store, at, fault), tmp_path / "child")
            assert child.wait() == -signal.SIGKILL, child.err
        else:
            with pytest.raises(StorageError):
                save_last(store, at, fault)
            assert not list(folder.glob(".*")) or fault == "EIO", (fault, step)
        found = store.newest()
        assert found or not before, (fault, step)
        store.check(1000, 9)  # what the next start does: leftovers go, and keep_last holds
        if found:
            state = found[1]["state"]
            assert state["updates"] in (update, *(saved for saved, _ in before[-1:])), (fault, step)
            assert updates_of(store.best(state["best_update"])) == state["best_update"], (fault, step)
            store.forget_after(state["updates"])
        assert len(updates(store)) <= 1, (fault, step)
        assert not list(folder.glob(".*")), (fault, step)
        save(store, update, best)  # and the disk is well again
        assert updates_of(store.best(best)) == best
        assert updates_of(store.newest()) == update


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flips_and_truncations_never_load_silently(tmp_path):
    """A damaged file is refused, or (a bit of the padding) holds what was saved. `make torture` tries thousands."""
    path = Checkpoints(tmp_path, 1).save(content(1) | {"rng": rng_state()}, ["checkpoint_step_1.pt"])
    found = Counter(load_damaged(path, 400, random.Random(5)))
    assert found["silent"] == 0
    assert found["refused"] > 350


def test_over_200_histories_the_best_and_the_last_verified_are_never_deleted(tmp_path):
    """Saves, a damaged newest file, a run that is taken back: held against a list of all saves."""
    for seed in range(200):
        rng = random.Random(seed)
        store = Checkpoints(tmp_path / str(seed), keep_last=rng.randint(1, 3))
        intact: list[int] = []  # updates whose checkpoint nobody damaged, oldest first
        update = best = 0
        for _ in range(rng.randint(3, 7)):
            if rng.random() < 0.8 or not intact:
                update += rng.randint(1, 2)
                best = update if not best or rng.random() < 0.4 else best
                save(store, update, best)
                intact.append(update)
                assert updates_of(store.newest()) == update
            elif intact[-1] != best:  # the newest file is hit, and the run goes on from what is left
                path = store.directory / f"checkpoint_step_{intact.pop()}.pt"
                path.write_bytes(path.read_bytes()[: rng.randrange(2000)])
                left = [u for u in intact if u in updates(store)]
                _, found = store.newest()
                assert found["state"]["updates"] == max(left, default=best)
                update, best = found["state"]["updates"], found["state"]["best_update"]
                intact = [u for u in intact if u <= update]
                store.forget_after(update)
            assert load(store.directory / BEST)["state"]["updates"] == best
            assert len(updates(store)) <= store.keep_last


def test_a_damaged_best_is_found_in_its_other_copy_or_named(tmp_path, caplog):
    store = Checkpoints(tmp_path, keep_last=2)
    save(store, 1, best=1)
    save(store, 2)
    raw = (tmp_path / BEST).read_bytes()
    (tmp_path / BEST).unlink()
    (tmp_path / BEST).write_bytes(raw[:-1])  # a file of its own now
    assert updates_of(store.best(1)) == 1
    save(store, 3)
    with pytest.raises(StorageError, match=BEST):
        store.best(1)
    assert f"{BEST} is damaged, or no checkpoint: BadZipFile; passed over" in caplog.text


def test_no_room_is_found_before_training_and_no_more_is_asked_for_than_the_run_can_fill(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    many = Checkpoints(tmp_path, keep_last=1_000_000)
    many.check(free // 10, saves=2)
    with pytest.raises(StorageError):
        many.check(free // 10, saves=20)


def test_a_file_that_cannot_be_read_is_not_passed_over(tmp_path):
    """The disk, or its permissions, may be well again tomorrow: the run must not begin anew meanwhile."""
    store = Checkpoints(tmp_path, keep_last=2)
    save(store, 1)
    (tmp_path / "checkpoint_step_2.pt").mkdir()
    with pytest.raises(InputError, match=r"checkpoint_step_2\.pt"):
        store.newest()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def test_a_file_of_another_program_or_layout_is_one_line_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, whole = tmp_path / "checkpoint_step_1.pt", content(1)
    others = [[1, 2], {"state": Bomb()}, {**whole, "state": {"steps": 1}}, {**whole, "metrics_bytes": -1}]
    others += [{**whole, "optimizer": [1]}, {**whole, "state": {**whole["state"], "tokens": "1e999"}}]
    for other in (pickle.dumps(Bomb()), *others):
        path.write_bytes(other) if isinstance(other, bytes) else torch.save(other, path)
        with pytest.raises(InputError, match=path.name):
            load(path)
        assert os.listdir(tmp_path) == [path.name]


def test_a_state_that_would_not_load_again_is_refused_as_it_is_first_saved(tmp_path):
    """A number of NumPy's in an optimizer's group, say: what is saved is read back without running anybody's code."""
    store = Checkpoints(tmp_path, 2)
    wrong = content(1) | {"optimizer": {"param_groups": [{"weight_decay": np.float64(0.1)}]}}
    with pytest.raises(InputError, match="numpy"):
        store.save(wrong, ["checkpoint_step_1.pt"])
    assert not list(tmp_path.iterdir())
    save(store, 1)
    assert updates_of(store.newest()) == 1
