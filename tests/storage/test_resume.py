"""Killed wherever and however often, a run ends as one that nobody touched; each saved item is needed for that."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import Run, chain
from forked import plain
from tiny import hybrid, tiny_trainer

from babylm_train.checkpoint import load, rng_state
from babylm_train.curriculum.schedule import LinearSchedule, PerformanceSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum
from babylm_train.errors import InputError, PreemptedError, watch_signals
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision
from babylm_train.options import Average, EarlyStopping
from babylm_train.runner import find_start, restore
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


def outcome(trainer: Trainer) -> dict[str, object]:
    """What must not depend on kills, by name."""
    parts = {name: getattr(trainer, name) for name in ("model", "optimizer", "scheduler", "scaler", "curriculum")}
    parts = {name: part.state_dict() for name, part in parts.items()}
    parts["scheduler"].pop("lr_lambdas")
    return parts | {"state": vars(trainer.state), "rng": rng_state(), "metrics": trainer.record.metrics.read_bytes()}


class TinyRun(Run):
    """What `execute` does, with a tiny trainer; writes down each update it applies."""

    seconds, progress = 0.3, "applied"

    def __init__(self, directory: Path, configuration: str) -> None:
        super().__init__(directory)
        self.configuration = configuration

    def work(self) -> dict[str, object]:
        trainer = tiny_trainer(self.directory, **CONFIGURATIONS[self.configuration]())
        self.directory.mkdir(exist_ok=True)
        applied = os.open(self.lines_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        update = trainer.make_update

        def logged(batches: list[Batch]) -> torch.Tensor:
            norm = update(batches)
            os.write(applied, b"%d\n" % trainer.state.updates)
            return norm

        trainer.make_update = logged
        seed_all(7)
        with watch_signals() as trainer.should_stop:
            trainer.should_stop.training = True
            start = find_start(trainer, self.directory, None)
            trainer.checkpoints.check(1000, 9)
            if start is not None:
                restore(trainer, *start)
            try:
                trainer.train()
            except PreemptedError as error:
                raise SystemExit(error.exit_code) from error
        return outcome(trainer)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_six_kills_and_the_run_is_bitwise_the_one_without(tmp_path, configuration):
    """Two at random moments, two within the writing of a checkpoint, two on the run that had already been resumed."""
    control, rng = TinyRun(tmp_path / "whole", configuration), random.Random(configuration)
    control.finish()
    for number in range(2):
        kills, differs = chain(TinyRun(tmp_path / f"killed {number}", configuration), control, rng)
        assert (kills.total(), differs) == (3, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_preempted_at_random_moments_no_update_is_lost_or_repeated(tmp_path, number):
    """Saved, and over all parts each update was applied once."""
    run, rng = TinyRun(tmp_path / "run", "dynamic"), random.Random(3)
    for _ in range(3):
        child = run.start_and_wait(rng.randint(1, 5), rng.uniform(0, 0.004))
        child.send(number)
        assert child.wait() == 75, child.err
    run.finish()
    assert run.lines_file.read_text().split() == [str(n + 1) for n in range(run.lines())]


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


NESTED = ("state", "rng", "curriculum", "optimizer", "scheduler", "scaler", "average")
FREE = {"processes", "seconds", "threads"}  # a wall clock, and the number that the warning "not bitwise" compares


def items(content: dict) -> dict[tuple[str, ...], object]:
    """Each item of the saved state as plain values, by its keys."""
    parts = {(key,): value for key, value in content.items() if key not in NESTED}
    parts |= {(key, name): value for key in NESTED for name, value in content[key].items()}
    return {item: plain(value) for item, value in parts.items()}


def without(content: dict, item: tuple[str, ...], fresh: dict) -> dict:
    """`content`, but `item` is that of a fresh run."""
    key, *inside = item
    return {**content, key: without(content[key], inside, fresh[key]) if inside else fresh[key]}


def test_every_item_of_saved_state_is_needed(tmp_path):
    """A mutant leaves one item as a fresh run has it; from some checkpoint on, it must end differently."""
    whole, fresh, kept = everything(tmp_path / "whole"), everything(tmp_path / "fresh"), []
    seed_all(7)
    whole.train()
    expected = plain(outcome(whole))
    contents = [load(path) for path in whole.checkpoints.directory.glob("checkpoint_[es]*.pt")]
    contents.sort(key=lambda c: (c["state"]["updates"], c["state"]["epoch"]))
    points = [contents[-1], contents[7], contents[len(contents) // 2]]

    def ends_alike(content: dict, name: str) -> bool:
        trainer = everything(tmp_path / name)
        trainer.directory.mkdir()
        trainer.record.metrics.write_bytes(whole.record.metrics.read_bytes())
        seed_all(99)
        try:
            trainer.load_checkpoint(content)
        except InputError:  # seen at once
            return False
        trainer.train()
        return plain(outcome(trainer)) == expected

    for number, content in enumerate(points):
        assert ends_alike(content, f"control {number}")
    fresh.record.start()
    seed_all(12345)
    fresh.checkpoints.save = lambda content, names: kept.append(content)
    fresh.save_checkpoint([])
    then, start = [items(content) for content in points], items(kept[0])
    moved = {item for item, value in start.items() if any(values[item] != value for values in then)}
    assert {key for key, *_ in moved} == set(kept[0]) - FREE | {"seconds"}
    for item in sorted(moved - {("seconds",)}):
        mutants = [without(content, item, kept[0]) for content in points]
        assert not all(ends_alike(mutant, f"{'.'.join(item)} {n}") for n, mutant in enumerate(mutants)), item
