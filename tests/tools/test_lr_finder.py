"""The LR finder: its arithmetic by hand, and that its updates are those of training."""

import csv
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from babylm_train.errors import DivergedError, StorageError
from babylm_train.tools import lr_finder
from babylm_train.tools.lr_finder import LRFinding, Options, find_lr, range_test, suggest

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
    assert walk([2.0, 1.0, 4.0, 4.1, 1.0], 0.0, DECADES).stopped_at == DECADES[3]
    found = walk([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 0.5, DECADES)
    # v = .5, .75, .875, 2.9375, 3.96875: averages 1, 1, 1, 3.13, 4.097
    assert (found.stopped_at, len(found.lrs)) == (DECADES[4], 5)
    assert found.smoothed[-1] == pytest.approx(3.96875 / 0.96875)


@pytest.mark.parametrize("end", [DivergedError("NaN"), math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_not_kept(end):
    found = walk([3.0, 2.0, end, 1.0], 0.5, DECADES)
    assert (found.stopped_at, found.losses) == (DECADES[2], [3.0, 2.0])
    assert np.isfinite(found.smoothed).all()


CURVE = [5.0, 5.0, 5.0, 5.0, 4.5, 3.0, 1.5, 1.0, 2.0, 3.0]


def test_suggestions_by_hand():
    # differences over two decades: ... 4.5 -> (3 - 5), 3 -> (1.5 - 4.5), 1.5 -> (1 - 3); lowest: 1 at DECADES[7]
    assert suggest(DECADES[:10], CURVE, CURVE) == (DECADES[5], DECADES[7] / 10, [])


def test_steepest_descent_is_before_the_minimum_and_after_the_first_points():
    falls_at_once = [9.0, 5.0, 4.8, 4.6, 4.4, 4.0, 3.5, 3.4, 3.0, 9.0, 1e6, 3.2]
    steepest, tenth, _ = suggest(DECADES, falls_at_once, falls_at_once, skip=2)
    assert (steepest, tenth) == (DECADES[5], DECADES[8] / 10)


@pytest.mark.parametrize(
    ("losses", "diverged", "note"),
    [
        (CURVE[:7], True, "no suggestion: 7 updates before the loss diverged, 8 are needed; lower start_lr"),
        ([1.0] * 9, False, "no suggestion: the loss is lowest at 1e-09, where it begins"),
        ([3.0, 3.1, 2.9] * 3, False, "no suggestion: the loss falls by 0.1, which is chance"),
    ],
)
def test_no_number_is_made_up(losses, diverged, note):
    steepest, tenth, notes = suggest(DECADES[: len(losses)], losses, losses, diverged=diverged, chance=4.0)
    assert (steepest, tenth) == (None, None)
    assert len(notes) == 1
    assert notes[0].startswith(note)


def test_noise_alone_gives_no_suggestion():
    rng = np.random.default_rng(0)
    found = [walk((5 + 0.1 * rng.standard_normal(100)).tolist(), 0.9) for _ in range(100)]
    assert sum(f.steepest is not None for f in found) <= 3


@pytest.mark.parametrize(
    ("diverged", "note"),
    [(False, "the loss is lowest at 0.01, where the range ends"), (True, "right before it diverged")],
)
def test_a_minimum_at_the_end_asks_for_another_range(diverged, note):
    steepest, tenth, notes = suggest(DECADES[:8], CURVE[:8], CURVE[:8], diverged=diverged)
    assert (steepest, tenth) == (DECADES[5], DECADES[7] / 10)
    assert len(notes) == 1
    assert note in notes[0]


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


def test_divergence_stops_it(make_trainer):
    trainer = make_trainer(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), max_grad_norm=None)
    found = find_lr(trainer, Options(1e-2, 1e12, 40))
    assert found.stopped_at is not None
    assert len(found.lrs) < 40
    assert not trainer.record.directory.exists()


FINDING = LRFinding([1e-3, 1e-2], [2.0, 1.5], [2.0, 1.7], 1e-3, 2e-3, 0.1, ["look out"])


def test_the_text_the_table_and_the_picture(tmp_path):
    lines = FINDING.text().splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["1.00e-03", "2.00e-03", "1.00e-01"]
    assert "look out" in lines[4]
    picture, table = lr_finder.write(tmp_path / "out", FINDING)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.open(encoding="utf8")))
    assert rows[1] == {"update": "2", "learning_rate": "0.01", "loss": "1.5", "smoothed_loss": "1.7"}
    axis = lr_finder.draw(FINDING).axes[0]
    assert axis.get_xscale() == "log"
    drawn = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [text.rpartition(" ")[2] for text in drawn[2:]] == ["1.00e-03", "2.00e-03", "1.00e-01"]


def test_a_finding_of_nothing_can_be_shown(tmp_path):
    found = walk([DivergedError("NaN")], 0.9)
    picture, table = lr_finder.write(tmp_path, found)
    assert picture.exists()
    assert table.read_text(encoding="utf8") == "update,learning_rate,loss,smoothed_loss\n"
    assert "no suggestion: 0 updates" in found.text()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        lr_finder.write(tmp_path / "file" / "out", FINDING)


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["lr_finder", *words])
    with pytest.raises(SystemExit) as ended:
        lr_finder.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("start_lr=0", "start_lr"),
        ("num_iter=5", "num_iter"),
        ("start_lr=1 end_lr=0.1", "end_lr"),
        ("optimizer=sdg", "sgd"),
        ("seed=1,2", "sweep"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, named, monkeypatch, capsys):
    assert run(monkeypatch, *arguments.split()) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


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
