"""The LR finder: its arithmetic by hand, and that a trainer it was used on trains as if it had not been."""

import copy
import csv
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from babylm_train.checkpoint import rng_state
from babylm_train.curriculum.schedule import PerformanceSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum
from babylm_train.errors import DivergedError, InputError, OutOfMemory, PreemptedError, StorageError
from babylm_train.optim import Precision
from babylm_train.tools import lr_finder
from babylm_train.tools.lr_finder import LRFinding, find_lr, own_options, range_test, suggest

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


# Arithmetic


def test_the_average_is_corrected_for_its_beginning():
    # v = 2, 0.5 * 2 + 0.5 * 2 = 2, 0.5 * 2 + 0.5 * 3 = 2.5; over 1 - 0.5^i = 0.5, 0.75, 0.875
    found = walk([4.0, 2.0, 3.0], 0.5)
    assert found.smoothed == pytest.approx((4.0, 8 / 3, 20 / 7), rel=1e-15)
    assert found.losses == (4.0, 2.0, 3.0)
    assert found.lrs == pytest.approx((1e-6, 1e-3, 1.0))


def test_no_smoothing_is_the_loss():
    assert walk([4.0, 2.0, 3.0], 0.0).smoothed == (4.0, 2.0, 3.0)


def test_it_stops_above_four_times_the_best_average_and_not_at_it():
    assert walk([2.0, 1.0, 4.0, 4.1, 1.0], 0.0, DECADES).stopped_at == DECADES[3]
    found = walk([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], 0.5, DECADES)
    # v = .5, .75, .875, 2.9375, 3.96875: averages 1, 1, 1, 3.13, 4.097
    assert (found.stopped_at, len(found.lrs)) == (DECADES[4], 5)
    assert found.smoothed[-1] == pytest.approx(3.96875 / 0.96875)


@pytest.mark.parametrize("end", [DivergedError("NaN"), math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_not_kept(end):
    found = walk([3.0, 2.0, end, 1.0], 0.5, DECADES)
    assert (found.stopped_at, found.losses) == (DECADES[2], (3.0, 2.0))
    assert np.isfinite(found.smoothed).all()


def test_other_errors_are_errors():
    with pytest.raises(OutOfMemory):
        walk([3.0, OutOfMemory("too large")], 0.5)


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
        ([], True, "no suggestion: 0 updates before the loss diverged, 8 are needed; lower start_lr"),
        ([1.0 + k for k in range(9)], False, "no suggestion: the loss is lowest at 1e-09, where it begins"),
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
    assert all(f.stopped_at is None for f in found)


@pytest.mark.parametrize(
    ("diverged", "note"),
    [(False, "the loss is lowest at 0.01, where the range ends"), (True, "right before it diverged")],
)
def test_a_minimum_at_the_end_asks_for_another_range(diverged, note):
    steepest, tenth, notes = suggest(DECADES[:8], CURVE[:8], CURVE[:8], diverged=diverged)
    assert (steepest, tenth) == (DECADES[5], DECADES[7] / 10)
    assert len(notes) == 1
    assert note in notes[0]


def test_gradient_descent_on_a_parabola():
    """x^2 / 2 falls below a rate of 2 and rises above; a loss is measured before its update, so one rate later."""
    rates, x = np.geomspace(1e-3, 10, 200).tolist(), 1.0
    pending = iter(rates)

    def update():
        nonlocal x
        loss = x * x / 2
        x -= next(pending) * x
        return loss

    found = range_test(update, rates, smoothing=0.0)
    assert found.tenth_of_minimum == next(rate for rate in rates if rate > 2) / 10
    assert found.stopped_at is not None
    assert 2 < found.stopped_at < 3
    assert 0.01 < found.steepest < 0.2


# On a trainer


def snapshot(trainer):
    """Everything that training depends on, as values."""
    model = trainer.model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "grad": [p.grad is None for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),  # its tensors are the live ones
        "scheduler": {k: v for k, v in trainer.scheduler.state_dict().items() if k != "lr_lambdas"},
        "scaler": trainer.scaler.state_dict(),
        "state": asdict(trainer.state),
        "curriculum": copy.deepcopy(trainer.curriculum.state_dict()),
        "rng": rng_state(),
        "objects": [id(thing) for thing in (trainer.state, trainer.scheduler, trainer.scaler, trainer.logger)],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def momentum(parameters):
    weights = list(parameters)
    groups = [{"params": weights[:3], "lr": 0.04}, {"params": weights[3:], "lr": 0.01}]
    return torch.optim.SGD(groups, momentum=0.9)


RUNS = {
    "adamw": dict,
    "sgd with momentum": lambda: {"optimizer": momentum},
    "bf16": lambda: {"precision": Precision("bfloat16")},
    "loss scaling": lambda: {"precision": Precision("float32", "highest", True, initial_scale=2.0**127)},
    "adaptive": lambda: {
        "strategy": DynamicCurriculum(LengthBasedCurriculum(), 0.2, initial_threshold=0.5),
        "schedule": PerformanceSchedule(3),
        "eval_every": 2,
    },
}


@pytest.mark.parametrize("before", [0, 5], ids=["fresh", "at update 5"])
@pytest.mark.parametrize("name", RUNS)
def test_training_is_bitwise_the_same_after_it(make_trainer, name, before):
    results = []
    for tested in (True, False):
        trainer = make_trainer(f"{tested}", **RUNS[name]())
        trainer.model.register_buffer("counted", torch.zeros(1), persistent=False)
        trainer.model.register_forward_hook(lambda model, *_: model.counted.add_(1) and None)
        if before:
            trainer.should_stop = lambda run=trainer: run.state.updates == before
            with pytest.raises(PreemptedError):
                trainer.train()
            trainer.should_stop = lambda: False
        if tested:
            then, files = snapshot(trainer), sorted(trainer.record.directory.rglob("*"))
            found = find_lr(trainer, 1e-5, 10.0, 15)
            assert len(found.lrs) >= 8
            assert same(snapshot(trainer), then)
            assert sorted(trainer.record.directory.rglob("*")) == files
        trainer.train()
        results.append((trainer.record.metrics.read_bytes(), snapshot(trainer)))
    (record, after), (record_without, after_without) = results
    assert record == record_without
    del after["objects"], after_without["objects"]
    assert same(after, after_without)


def test_a_test_that_is_cut_off_leaves_no_trace(make_trainer):
    trainer = make_trainer()
    trainer.model.lm_head.eval()
    then, update, left = snapshot(trainer), trainer.make_update, iter(range(4))

    def interrupted(batches):
        if next(left, None) is None:
            for parameter in trainer.model.parameters():  # as a backward pass that ran out of memory leaves them
                parameter.grad = torch.ones_like(parameter)
            raise KeyboardInterrupt
        return update(batches)

    trainer.make_update = interrupted
    with pytest.raises(KeyboardInterrupt):
        find_lr(trainer, 1e-3, 1.0, 10)
    assert next(left, None) is None
    assert same(snapshot(trainer), then)


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
    found = find_lr(trainer, 1e-7, 1e-3, whole + 2)
    assert found.lrs == tuple(np.geomspace(1e-7, 1e-3, whole + 2))
    assert (found.lrs[0], found.lrs[-1]) == (1e-7, 1e-3)
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
    trainer = make_trainer(
        max_steps=10, epochs=1, log_every=1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1)
    )
    found = find_lr(trainer, 0.1, 0.1 * (1 + 1e-9), 10)
    trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda update: 1.0)
    trainer.train()
    logged = [line["train/loss"] for line in trainer.record.lines() if "train/loss" in line]
    assert found.losses == pytest.approx(logged, rel=1e-6)


def test_divergence_stops_it(make_trainer):
    trainer = make_trainer(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), max_grad_norm=None)
    found = find_lr(trainer, 1e-2, 1e12, 40)
    assert found.stopped_at is not None
    assert len(found.lrs) < 40
    assert "where the loss diverged" in found.text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_lr": 0.0}, "start_lr must be positive, got 0"),
        ({"start_lr": math.nan}, "start_lr must be positive, got nan"),
        ({"end_lr": 1e-6}, "end_lr must be greater than start_lr = 1e-06, got 1e-06"),
        ({"end_lr": math.inf}, "end_lr must be greater than start_lr = 1e-06, got inf"),
        ({"num_iter": 9}, "num_iter must be at least 10, got 9"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_are_checked(make_trainer, arguments, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        find_lr(make_trainer(), **arguments)


# What is printed and written

FINDING = LRFinding((1e-3, 1e-2), (2.0, 1.5), (2.0, 1.7), 1e-3, 1e-3, 0.1, ("look out",))


def test_the_text_says_which_is_which():
    assert FINDING.text().splitlines() == [
        "LR range test: 2 updates, learning rate 0.001 to 0.01; stopped at 0.1, where the loss diverged",
        "  steepest descent               1.00e-03",
        "  one tenth of the minimum's LR  1.00e-03",
        "warning: look out",
    ]


def test_the_table_and_the_picture(tmp_path):
    picture, table = lr_finder.write(tmp_path / "out", FINDING)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.open(encoding="utf8")))
    assert rows[1] == {"update": "2", "learning_rate": "0.01", "loss": "1.5", "smoothed_loss": "1.7"}
    assert len(rows) == 2

    axis = lr_finder.draw(FINDING).axes[0]
    assert (axis.get_xscale(), axis.get_xlabel(), axis.get_ylabel()) == ("log", "learning rate", "loss (nats a token)")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "loss of each update",
        "smoothed",
        "steepest descent: 1.00e-03",
        "one tenth of the minimum's LR: 1.00e-03",
        "diverged: 1.00e-01",
    ]


def test_a_finding_of_nothing_can_be_shown(tmp_path):
    found = walk([DivergedError("NaN")], 0.9)
    picture, table = lr_finder.write(tmp_path, found)
    assert picture.exists()
    assert table.read_text(encoding="utf8") == "update,learning_rate,loss,smoothed_loss\n"
    assert "no suggestion: 0 updates" in found.text()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        lr_finder.write(tmp_path / "file" / "out", FINDING)


# The command


def test_own_options_are_no_overrides():
    given = own_options(["start_lr=1e-4", "optimizer=sgd", "end_lr=10", "num_iter=20", "out=there", "optimizer.lr=1"])
    assert (given.start_lr, given.end_lr, given.num_iter, given.out) == (1e-4, 10.0, 20, Path("there"))
    assert given.overrides == ["optimizer=sgd", "optimizer.lr=1"]
    assert own_options([]).out == Path("multirun_outputs/lr_finder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("start_lr=abc", "start_lr must be a number, got 'abc'"),
        ("num_iter=10.5", "num_iter must be a whole number, got '10.5'"),
        ("num_iter=5", "num_iter must be at least 10, got 5"),
        ("start_lr=1 end_lr=0.1", "end_lr must be greater than start_lr = 1, got 0.1"),
        ("out=", "out= needs a directory"),
        ("optimizer=sdg", "optimizer=sdg: no such option, did you mean sgd?"),
        ("seed=1,2", "babylm_train.lr_finder tests one configuration, not a sweep"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lr_finder", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        lr_finder.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_the_command(tmp_path, monkeypatch, capsys):
    small = ["data.words=3000", "data.max_length=16", "trainer.batch_size=2", "trainer.gradient_accumulation_steps=2"]
    own = ["start_lr=1e-4", "end_lr=100", "num_iter=12"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lr_finder", *small, *own, "optimizer=sgd", "data.cache_dir=cache"])
    lr_finder.main()
    out = capsys.readouterr()
    assert "training" not in out.err
    assert "it/s" not in out.err
    folder = Path("multirun_outputs/lr_finder")
    assert out.out.splitlines()[-2:] == [str(folder / "lr_finder.png"), str(folder / "lr_finder.csv")]
    assert "LR range test: " in out.out
    assert sorted(p.name for p in Path("multirun_outputs").iterdir()) == ["lr_finder"]  # no run, no W&B
    assert sorted(p.name for p in folder.iterdir()) == ["lr_finder.csv", "lr_finder.png"]
    rates = [float(row["learning_rate"]) for row in csv.DictReader((folder / "lr_finder.csv").open(encoding="utf8"))]
    assert rates[0] == 1e-4
    assert rates == pytest.approx(np.geomspace(1e-4, 100, 12)[: len(rates)].tolist())
