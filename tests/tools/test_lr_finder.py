"""The LR finder: its arithmetic by hand, and that its updates are those of training."""

import csv
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from babylm_train.errors import DivergedError
from babylm_train.tools import lr_finder
from babylm_train.tools.lr_finder import DIVERGED, STEEPEST, TENTH, Options, find_lr, range_test, suggest

DECADES = [10.0**k for k in range(-9, 3)]


def walk(losses, smoothing, rates=None):
    """The finding where update i gives losses[i]; an exception in their place is raised."""
    values = iter(losses)

    def update():
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return value

    return range_test(update, rates or np.geomspace(1e-6, 1, len(losses)).tolist(), smoothing)


def test_the_average_is_corrected_for_its_beginning():
    # v = 2, 0.5 * 2 + 0.5 * 2 = 2, 0.5 * 2 + 0.5 * 3 = 2.5; over 1 - 0.5^i = 0.5, 0.75, 0.875
    found = walk([4.0, 2.0, 3.0], 0.5)
    assert found.smoothed == pytest.approx([4.0, 8 / 3, 20 / 7], rel=1e-15)
    assert found.lrs == pytest.approx([1e-6, 1e-3, 1.0])


def test_it_stops_above_four_times_the_best_average_and_not_at_it():
    assert walk([2.0, 1.0, 4.0, 4.1, 1.0], 0.0, DECADES).marks[DIVERGED] == DECADES[3]
    found = walk([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 0.5, DECADES)
    # v = .5, .75, .875, 2.9375, 3.96875: averages 1, 1, 1, 3.13, 4.097
    assert (found.marks[DIVERGED], len(found.lrs)) == (DECADES[4], 5)
    assert found.smoothed[-1] == pytest.approx(3.96875 / 0.96875)


@pytest.mark.parametrize("end", [DivergedError("NaN"), math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_not_kept(end):
    found = walk([3.0, 2.0, end, 1.0], 0.5, DECADES)
    assert (found.marks[DIVERGED], found.losses) == (DECADES[2], [3.0, 2.0])
    assert np.isfinite(found.smoothed).all()


CURVE = [5.0, 5.0, 5.0, 5.0, 4.5, 3.0, 1.5, 1.0, 2.0, 3.0]


def test_suggestions_by_hand():
    # differences over two decades: ... 4.5 -> (3 - 5), 3 -> (1.5 - 4.5), 1.5 -> (1 - 3); lowest: 1 at DECADES[7]
    marks = {STEEPEST: DECADES[5], TENTH: DECADES[7] / 10}
    assert suggest(DECADES[:10], CURVE, CURVE, 0, False, 0.0) == (marks, "")


@pytest.mark.parametrize("losses", [CURVE[:7], [1.0] * 9, [3.0, 3.1, 2.9] * 3], ids=["few", "flat", "noise"])
def test_no_number_is_made_up(losses):
    marks, note = suggest(DECADES[: len(losses)], losses, losses, 0, False, 4.0)
    assert marks == {}
    assert "no suggestion" in note


def test_noise_alone_gives_no_suggestion():
    rng = np.random.default_rng(0)
    found = [walk((5 + 0.1 * rng.standard_normal(100)).tolist(), 0.9) for _ in range(100)]
    assert sum(STEEPEST in f.marks for f in found) <= 3


@pytest.mark.parametrize(("diverged", "remedy"), [(False, "end_lr"), (True, "num_iter")])
def test_a_minimum_at_the_end_asks_for_another_range(diverged, remedy):
    marks, note = suggest(DECADES[:8], CURVE[:8], CURVE[:8], 0, diverged, 0.0)
    assert marks == {STEEPEST: DECADES[5], TENTH: DECADES[7] / 10}
    assert remedy in note


def momentum(parameters):
    weights = list(parameters)
    groups = [{"params": weights[:3], "lr": 0.04}, {"params": weights[3:], "lr": 0.01}]
    return torch.optim.SGD(groups, momentum=0.9)


def test_rates_ratios_and_rows(make_trainer):
    trainer, seen = make_trainer(optimizer=momentum), []
    whole = trainer.curriculum.prepare_epoch(0).updates
    update = trainer.make_update

    def recorded(batches):
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        seen.append((rates, [b.first_row for b in batches], trainer.model.training))
        return update(batches)

    trainer.make_update = recorded
    trainer.model.eval()
    found = find_lr(trainer, Options(1e-7, 1e-3, whole + 2))
    assert found.lrs == np.geomspace(1e-7, 1e-3, whole + 2).tolist()
    for (first, second), lr in zip((rates for rates, *_ in seen), found.lrs, strict=True):
        assert first == lr
        assert second == pytest.approx(lr / 4, rel=1e-15)
    rows = [row for _, row, _ in seen]
    assert rows[0] == [0, 3]  # two micro-batches of three rows
    assert rows[whole:] == rows[:2]
    assert len({tuple(row) for row in rows}) == whole
    assert all(training for *_, training in seen)
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


@pytest.mark.parametrize("end", [[DivergedError("NaN")], [2.0] * 9 + [1.0] * 9])
def test_a_finding_is_shown(end):
    found = walk(end, 0.9)
    axis = lr_finder.draw(found).axes[0]
    assert axis.get_xscale() == "log"
    drawn = [text.get_text() for text in axis.get_legend().get_texts()][2:]
    said = found.text().splitlines()
    assert [line.split()[-1] for line in said[1 : len(drawn) + 1]] == [text.rpartition(" ")[2] for text in drawn]
    assert len(drawn) == len(found.marks) > 0


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["lr_finder", *words])
    with pytest.raises(SystemExit) as ended:
        lr_finder.main()
    return ended.value.code


@pytest.mark.parametrize("arguments", ["num_iter=5", "start_lr=1 end_lr=0.1", "seed=1,2"])
def test_a_mistake_is_one_line_and_exit_2(arguments, monkeypatch, capsys):
    assert run(monkeypatch, *arguments.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command(tmp_path, monkeypatch, capsys):
    small = ["data.words=3000", "data.max_length=16", "trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"]
    own = ["start_lr=1e-4", "end_lr=100", "num_iter=12"]
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *small, *own, "optimizer=sgd", "data.cache_dir=cache") == 0
    folder = Path("multirun_outputs/lr_finder")
    assert capsys.readouterr().out.splitlines()[-2:] == [str(folder / "lr_finder.png"), str(folder / "lr_finder.csv")]
    assert sorted(p.name for p in Path("multirun_outputs").iterdir()) == ["lr_finder"]  # no run, no W&B
    assert sorted(p.name for p in folder.iterdir()) == ["lr_finder.csv", "lr_finder.png"]
    rates = [float(row["learning_rate"]) for row in csv.DictReader((folder / "lr_finder.csv").open(encoding="utf8"))]
    assert rates == pytest.approx(np.geomspace(1e-4, 100, 12)[: len(rates)].tolist())
