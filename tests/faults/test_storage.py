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
from babylm_train.errors import InputError, StorageError
from babylm_train.files import cached


def content(update: int, best: int = 0) -> dict:
    return {"state": {"updates": update, "best_update": best}, "model": {"w": torch.full((30,), float(update))}}


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
            store.check(1000, 9)  # what the next start does: leftovers go
            assert not list(folder.glob(".*")), (fault, step)
            newest = store.newest()
            if before:
                assert newest is not None, (fault, step)
                assert newest[1]["state"]["updates"] in (before[-1][0], update), (fault, step)
                wanted = newest[1]["state"]["best_update"]
                assert store.best(wanted)[1]["state"]["updates"] == wanted, (fault, step)
            save(store, update, best)  # and the disk is well again
            assert store.best(best)[1]["state"]["updates"] == best
            assert store.newest()[1]["state"]["updates"] == update


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


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """One flipped bit, or a shorter file."""
    if rng.random() < 0.3:
        return raw[: rng.randrange(len(raw))]
    flipped = bytearray(raw)
    flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def test_a_thousand_flips_and_truncations_never_load_silently(tmp_path):
    """In a checkpoint or its .sha256: it is refused by name, or (the file name in .sha256) nothing that counts changed."""
    rng = random.Random(5)
    path = Checkpoints(tmp_path, 1).save(content(1), ["checkpoint_step_1.pt"])
    hashes = path.with_name(path.name + ".sha256")
    originals = {path: path.read_bytes(), hashes: hashes.read_bytes()}
    refused = 0
    for number in range(1000):
        hit = hashes if number % 4 == 0 else path
        hit.write_bytes(damaged(originals[hit], rng))
        try:
            loaded = load(path)
        except InputError as error:
            refused += str(path) in str(error)
        else:
            assert hit == hashes
            assert loaded["state"] == content(1)["state"]
            assert torch.equal(loaded["model"]["w"], content(1)["model"]["w"])
        hit.write_bytes(originals[hit])
    assert refused >= 900


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_under_a_hash_that_fits_is_one_line_too(tmp_path):
    """A file that somebody handed on with a .sha256 of its own: other weights, maybe, but nothing beside InputError."""
    rng = random.Random(6)
    path = Checkpoints(tmp_path, 1).save(content(1), ["checkpoint_step_1.pt"])
    original, refused = path.read_bytes(), 0
    for _ in range(500):
        raw = damaged(original, rng)
        path.write_bytes(raw)
        path.with_name(path.name + ".sha256").write_text(hashlib.sha256(raw).hexdigest())
        try:
            load(path)
        except InputError as error:
            refused += str(path) in str(error)
    assert refused > 200


def test_damage_in_a_cache_is_built_again(tmp_path):
    rng = random.Random(7)
    built = []

    def build(folder):
        built.append(1)
        (folder / "values").write_bytes(bytes(range(100)))

    folder = cached(tmp_path, "kind", "key", build)
    names = ["values", "manifest.json"]
    for number in range(60):
        hit = folder / names[number % 2]
        hit.write_bytes(damaged(hit.read_bytes(), rng))
        assert (cached(tmp_path, "kind", "key", build) / "values").read_bytes() == bytes(range(100))
    assert len(built) > 50


def test_over_500_histories_the_best_and_the_last_verified_are_never_deleted(tmp_path):
    """Saves, better ones among them, a damaged newest file, a run that is taken back: held against a list of all saves."""
    for seed in range(500):
        rng = random.Random(seed)
        store = Checkpoints(tmp_path / str(seed), keep_last=rng.randint(1, 3))
        intact: list[int] = []  # updates whose checkpoint nobody damaged, oldest first
        update = best = 0
        for _ in range(rng.randint(3, 7)):
            event = rng.random()
            if event < 0.8 or not intact:
                update += rng.randint(1, 2)
                best = update if not best or rng.random() < 0.4 else best
                save(store, update, best)
                intact.append(update)
                assert store.newest()[1]["state"]["updates"] == update
            elif intact[-1] != best:  # the newest file is hit, and the run goes on from what is left
                path = store.directory / f"checkpoint_step_{intact.pop()}.pt"
                path.write_bytes(damaged(path.read_bytes(), rng))
                left = [u for u in intact if (store.directory / f"checkpoint_step_{u}.pt").exists()]
                _, found = store.newest()
                assert found["state"]["updates"] == max(left, default=best)
                update, best = found["state"]["updates"], found["state"]["best_update"]
                intact = [u for u in intact if u <= update]
                store.forget_after(update)
            assert load(store.directory / BEST)["state"]["updates"] == best
            names = [p.name for p in store.directory.iterdir()]
            assert {n + ".sha256" for n in names if n.endswith(".pt")} <= set(names)
