"""The LR finder: its arithmetic by hand, and that its updates are those of training."""

import csv
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from babylm_train.tools import lr_finder
from babylm_train.tools.lr_finder import DIVERGED, STEEPEST, TENTH, Options, find_lr, range_test, suggest

DECADES = [10.0**k for k in range(-9, 3)]


@pytest.mark.parametrize(
    ("losses", "smoothing", "averages", "end"),
    [
        # v = 2, 0.5 * 2 + 0.5 * 2 = 2, 0.5 * 2 + 0.5 * 3 = 2.5; over 1 - 0.5^i = 0.5, 0.75, 0.875
        ([4.0, 2.0, 3.0], 0.5, [4.0, 8 / 3, 20 / 7], None),
        ([2.0, 1.0, 4.0, 4.1, 1.0], 0.0, [2.0, 1.0, 4.0, 4.1], 3),  # above four times the best, and not at it
        # v = .5, .75, .875, 2.9375, 3.96875: averages 1, 1, 1, 3.13, 4.097
        ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 0.5, [1.0, 1.0, 1.0, 2.9375 / 0.9375, 3.96875 / 0.96875], 4),
        ([3.0, 2.0, math.nan, 1.0], 0.5, [3.0, 7 / 3], 2),  # what is not finite is not kept
    ],
)
def test_averages_are_corrected_for_their_beginning_and_end_the_walk(losses, smoothing, averages, end):
    found, count = range_test(iter(losses).__next__, DECADES[: len(losses)], smoothing), len(averages)
    assert found.smoothed == pytest.approx(averages, rel=1e-15)
    assert (found.lrs, found.losses) == (DECADES[:count], losses[:count])
    assert found.marks.get(DIVERGED) == (end and DECADES[end])


CURVE = [5.0, 5.0, 5.0, 5.0, 4.5, 3.0, 1.5, 1.0, 2.0, 3.0]


def test_suggestions_by_hand():
    # differences over two decades: ... 4.5 -> (3 - 5), 3 -> (1.5 - 4.5), 1.5 -> (1 - 3); lowest: 1 at DECADES[7]
    marks = {STEEPEST: DECADES[5], TENTH: DECADES[7] / 10}
    assert suggest(DECADES[:10], CURVE, CURVE, 0, False, 0.0) == (marks, "")
    for diverged, remedy in ((False, "end_lr"), (True, "num_iter")):  # a minimum at the end asks for another range
        found, note = suggest(DECADES[:8], CURVE[:8], CURVE[:8], 0, diverged, 0.0)
        assert found == marks
        assert remedy in note


def test_no_number_is_made_up():
    for losses in (CURVE[:7], [1.0] * 9):
        marks, note = suggest(DECADES[: len(losses)], losses, losses, 0, False, 4.0)
        assert marks == {}
        assert "no suggestion" in note
    rng = np.random.default_rng(0)  # nor of noise: at most 3 in 100
    rates, noise = np.geomspace(1e-6, 1, 100).tolist(), (5 + 0.1 * rng.standard_normal((100, 100))).tolist()
    assert sum(STEEPEST in range_test(iter(losses).__next__, rates, 0.9).marks for losses in noise) <= 3


def test_rates_keep_the_ratios_of_groups(make_trainer):
    def momentum(parameters):
        weights = list(parameters)
        groups = [{"params": weights[:3], "lr": 0.04}, {"params": weights[3:], "lr": 0.01}]
        return torch.optim.SGD(groups, momentum=0.9)

    trainer, seen = make_trainer(optimizer=momentum), []
    update, updates = trainer.make_update, trainer.curriculum.prepare_epoch(0).updates

    def recorded(batches):
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
        assert (trainer.model.training, trainer.state.updates) == (True, (len(seen) - 1) % updates)
        return update(batches)

    trainer.make_update = recorded
    trainer.model.eval()
    found = find_lr(trainer, Options(1e-7, 1e-3, 40))
    assert found.lrs == [first for first, _ in seen] == np.geomspace(1e-7, 1e-3, 40).tolist()
    assert [second for _, second in seen] == pytest.approx([first / 4 for first, _ in seen], rel=1e-15)
    assert not trainer.record.directory.exists()


def test_the_losses_are_those_of_training(make_trainer):
    """At a constant rate (as good as) the range test is a training run."""

    def fresh(name):
        sgd = partial(torch.optim.SGD, lr=0.1)
        return make_trainer(name, max_steps=10, epochs=1, log_every=1, dropout=0.0, optimizer=sgd)

    found = find_lr(fresh("tested"), Options(0.1, 0.1 * (1 + 1e-9), 10))
    trainer = fresh("trained")
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda update: 1.0)
    trainer.train()
    logged = [line["train/loss"] for line in trainer.record.lines() if "train/loss" in line]
    assert found.losses == pytest.approx(logged, rel=1e-6)


def test_the_command(tmp_path, monkeypatch):
    small = ["data.words=3000", "data.max_length=16", "trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"]
    own = ["start_lr=1e-4", "end_lr=100", "num_iter=12"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lr_finder", *small, *own, "optimizer=sgd", "data.cache_dir=cache"])
    with pytest.raises(SystemExit, match="0"):
        lr_finder.main()
    folder = Path("multirun_outputs/lr_finder")
    assert sorted(p.name for p in Path("multirun_outputs").iterdir()) == ["lr_finder"]  # no run, no W&B
    assert sorted(p.name for p in folder.iterdir()) == ["lr_finder.csv", "lr_finder.png"]
    rates = [float(row["learning_rate"]) for row in csv.DictReader((folder / "lr_finder.csv").open(encoding="utf8"))]
    assert rates == pytest.approx(np.geomspace(1e-4, 100, 12)[: len(rates)].tolist())
