"""Killed wherever and however often, a run ends as the one that nobody touched; and each saved item is needed for that."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from failpoints import KILL, Failpoints
from forked import Child, plain
from tiny import hybrid, tiny_trainer

from babylm_train.checkpoint import load, rng_state
from babylm_train.curriculum.schedule import LinearSchedule, PerformanceSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum
from babylm_train.errors import InputError, PreemptedError, watch_signals
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision
from babylm_train.options import Average, EarlyStopping
from babylm_train.run import find_start, restore
from babylm_train.state import Batch
from babylm_train.trainer import Trainer

BOUNDS = {"epochs": 3, "start_threshold": 0.3, "end_threshold": 1.0}


def performance() -> dict:
    return {"strategy": LengthBasedCurriculum(), "schedule": PerformanceSchedule(**BOUNDS), "eval_every": 2}


def dynamic() -> dict:
    strategy = DynamicCurriculum(LengthBasedCurriculum())
    return {"strategy": strategy, "schedule": LinearSchedule(**BOUNDS), "eval_every": 3}


BF16 = {"precision": Precision("bfloat16", "highest", False)}
SCALED = {"precision": Precision("float32", "highest", True, initial_scale=2.0**127, growth_interval=3)}
CONFIGURATIONS = {
    "none": lambda: {"save_every": 3},
    "none, bf16": lambda: BF16,
    "length by performance": performance,
    "length by performance, bf16": lambda: {**performance(), **BF16, "save_every": 4},
    "dynamic": lambda: {**dynamic(), "save_every": 1, "gradient_accumulation_steps": 1},
    "dynamic, loss scaling": lambda: {**dynamic(), **SCALED},
    "hybrid, dynamic": lambda: {**dynamic(), "objective": hybrid(masked_share=0.5), "save_every": 2},
}


def seed_all(seed: int) -> None:
    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder(seed)


def outcome(trainer: Trainer) -> dict[str, str]:
    """What must not depend on kills, by name."""
    parts = {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": {k: v for k, v in trainer.scheduler.state_dict().items() if k != "lr_lambdas"},
        "scaler": trainer.scaler.state_dict(),
        "curriculum": trainer.curriculum.state_dict(),
        "state": vars(trainer.state),
        "generators": rng_state(),
    }
    record = {"metrics": trainer.record.metrics.read_text(encoding="utf8")}
    return {name: hashlib.sha256(repr(plain(part)).encode()).hexdigest() for name, part in parts.items()} | record


def run(directory: Path, configuration: str, preemption: object = lambda: False) -> Trainer:
    """What `execute` does with a tiny trainer: go on from what is there, train to the end. Logs each applied update."""
    trainer = tiny_trainer(directory, **CONFIGURATIONS[configuration]())
    trainer.should_stop = preemption  # type: ignore[assignment]
    applied = os.open(directory / "applied", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    update = trainer.make_update

    def logged(batches: list[Batch]) -> torch.Tensor:
        norm = update(batches)
        os.write(applied, b"%d\n" % trainer.state.updates)
        return norm

    trainer.make_update = logged  # type: ignore[method-assign]
    seed_all(7)
    start = find_start(trainer, directory, None)
    trainer.checkpoints.check(1000, 9)
    if start is not None:
        restore(trainer, *start)
    trainer.train()
    return trainer


def job(directory: Path, configuration: str, failpoint: int | None = None):
    """Run to the end in a child; writes its outcome, and how many failpoints it passed."""

    def work() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with Failpoints(directory / "checkpoints", failpoint, KILL) as points:
            trainer = run(directory, configuration)
        (directory / "outcome").write_text(json.dumps([outcome(trainer), len(points.steps)]))

    return work


def updates_applied(directory: Path) -> list[int]:
    path = directory / "applied"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def start(work, directory: Path, more: int, pause: float) -> Child:
    """A child that has made `more` further updates some time within `pause` ago, or is over."""
    goal = len(updates_applied(directory)) + more
    child = Child(work, directory.parent / "said")
    child.wait_until(lambda: len(updates_applied(directory)) >= goal)
    time.sleep(pause)
    return child


def finish(directory: Path, configuration: str) -> tuple[dict[str, str], int]:
    child = Child(job(directory, configuration), directory.parent / "said")
    assert child.wait() == 0, child.err
    return json.loads((directory / "outcome").read_text())


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_six_kills_and_the_run_is_bitwise_the_one_without(tmp_path, configuration):
    """Two at random moments, two within the writing of a checkpoint, two on the run that had already been resumed."""
    expected, points = finish(whole := tmp_path / "whole", configuration)
    total, rng = len(updates_applied(whole)), random.Random(configuration)
    for chain in range(2):
        killed = tmp_path / f"killed {chain}"
        for kind in ("moment", "failpoint", "resumed"):
            code = 0
            while code != -signal.SIGKILL:
                if kind == "failpoint":
                    code = Child(job(killed, configuration, rng.randrange(points // 2)), tmp_path).wait()
                else:
                    more, pause = rng.randrange(total // 3), rng.uniform(0, 0.01)
                    code = start(job(killed, configuration), killed, more, pause).kill()
                if (killed / "outcome").exists():  # it was over before: the next kill hits another run
                    (killed := tmp_path / f"killed {chain} {rng.random()}").mkdir()
        found, _ = finish(killed, configuration)
        assert [name for name in expected if found[name] != expected[name]] == []


def test_preempted_at_random_moments_no_update_is_lost_or_repeated(tmp_path):
    """SIGTERM, SIGUSR1 and Ctrl-C: saved, and over all parts each update was applied once."""

    def work() -> None:
        with watch_signals() as preemption:
            preemption.training = True
            try:
                run(folder, "dynamic", preemption)
            except PreemptedError as error:
                raise SystemExit(error.exit_code) from error

    rng = random.Random(3)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(3):
            child = start(work, folder, rng.randint(1, 5), rng.uniform(0, 0.004))
            child.send(number)
            assert child.wait() == 75, child.err
        last = Child(work, tmp_path / "child")
        assert last.wait() == 0, last.err
        assert updates_applied(folder) == list(range(1, len(updates_applied(folder)) + 1))


class Drawing(CausalObjective):
    """An objective that draws from Python's and NumPy's global generators, as a user's own may."""

    def __call__(self, model, batch):
        return super().__call__(model, batch) * (1 + 1e-3 * random.random() * np.random.rand())


def everything(directory: Path) -> Trainer:
    """A tiny run in which every item of the saved state moves."""
    changes = {**dynamic(), "schedule": performance()["schedule"], **SCALED, "objective": Drawing()}
    changes |= {"early_stopping": EarlyStopping(patience=4, min_delta=0.05), "average": Average(half_life=0.3)}
    trainer = tiny_trainer(directory, **changes, save_every=1, keep_last=99, log_every=3)
    trainer.state.run_id = directory.name
    return trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(directory, outcome, contents of its checkpoints) of one whole run, and the content that a fresh run would save."""
    whole = everything(tmp_path_factory.mktemp("mutants") / "whole")
    seed_all(7)
    whole.train()
    expected = outcome(whole)
    contents = [load(path) for path in whole.checkpoints.directory.glob("checkpoint_[es]*.pt")]
    contents.sort(key=lambda c: (c["state"]["updates"], c["state"]["epoch"]))
    fresh, kept = everything(whole.record.directory.parent / "fresh"), []
    fresh.record.start()
    seed_all(12345)
    fresh.checkpoints.save = lambda content, names: kept.append(content)
    fresh.save_checkpoint([])
    return whole.record.directory, expected, contents, kept[0]


NESTED = ("state", "rng", "curriculum", "optimizer", "scheduler", "scaler", "average")
FREE = {"seconds", "threads"}  # a wall clock, and the number that the warning "not bitwise" compares


def items(content: dict) -> dict[tuple[str, ...], object]:
    """Each item of the saved state as plain values, by its keys."""
    parts = {(key,): value for key, value in content.items() if key not in NESTED}
    parts |= {(key, name): value for key in NESTED for name, value in content[key].items()}
    return {item: plain(value) for item, value in parts.items()}


def ends_alike(saved, content: dict, folder: Path) -> bool:
    """Does a run that goes on from `content` end as the whole one?"""
    directory, expected, *_ = saved
    trainer = everything(folder)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes((directory / "metrics.jsonl").read_bytes())
    seed_all(99)
    try:
        trainer.load_checkpoint(content)
    except InputError:  # seen at once
        return False
    trainer.train()
    return outcome(trainer) == expected


def test_every_item_of_saved_state_is_needed(saved, tmp_path):
    """A mutant leaves one item of a checkpoint as a fresh run has it; from some checkpoint on, it must end differently."""
    *_, contents, fresh = saved
    points = [contents[-1], contents[7], contents[len(contents) // 2]]
    for number, content in enumerate(points):
        assert ends_alike(saved, content, tmp_path / f"control {number}")
    then = [items(content) for content in points]
    moved = {item for item, value in items(fresh).items() if any(values[item] != value for values in then)}
    assert {key for key, *_ in moved} == set(fresh) - FREE | {"seconds"}
    missed = []
    for item in sorted(moved - {("seconds",)}):
        mutants = [(n, without(c, item, fresh)) for n, c in enumerate(points)]
        if all(ends_alike(saved, mutant, tmp_path / f"{'.'.join(item)} {n}") for n, mutant in mutants):
            missed.append(item)
    assert missed == []


def without(content: dict, item: tuple[str, ...], fresh: dict) -> dict:
    if len(item) == 1:
        return {**content, item[0]: fresh[item[0]]}
    return {**content, item[0]: {**content[item[0]], item[1]: fresh[item[0]][item[1]]}}
