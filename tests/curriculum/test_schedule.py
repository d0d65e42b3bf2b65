"""Thresholds against numbers worked out by hand, and what must hold for any arguments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from babylm_train.curriculum import follow_losses
from babylm_train.curriculum.schedule import (
    ExponentialSchedule,
    FullSchedule,
    LinearSchedule,
    PerformanceSchedule,
    RootSchedule,
    StepSchedule,
)
from babylm_train.errors import InputError


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (FullSchedule(), [1.0, 1.0, 1.0, 1.0]),
        (LinearSchedule(4, 0.1, 0.7), [0.1, 0.3, 0.5, 0.7]),
        # sqrt(0.01 + 0.48 q) at q = 0, 1/3, 2/3, 1
        (RootSchedule(4, 0.1, 0.7), [0.1, 0.412311, 0.574456, 0.7]),
        # (0.008 + 0.992 q)^(1/3)
        (RootSchedule(4, 0.2, 1.0, power=3), [0.2, 0.69704, 0.874744, 1.0]),
        # each epoch doubles
        (ExponentialSchedule(4, 0.1, 0.8), [0.1, 0.2, 0.4, 0.8]),
        (LinearSchedule(5, 0.2, 1.0, warmup_epochs=2), [0.2, 0.2, 0.2, 0.6, 1.0]),
        (LinearSchedule(5, 0.2, 1.0, warmup_epochs=5), [1.0] * 5),
        (StepSchedule(6, 0.2, [2, 4], [0.5, 1.0]), [0.2, 0.2, 0.5, 0.5, 1.0, 1.0]),
    ],
)
def test_thresholds_by_epoch(schedule, expected):
    at = [epoch / len(expected) for epoch in range(len(expected))]
    assert [round(schedule.threshold(progress), 6) for progress in at] == expected
    assert [schedule.upper_bound(progress) for progress in at] == [schedule.threshold(progress) for progress in at]


def performance(**arguments):
    return PerformanceSchedule(**{"epochs": 10, "adaptation_rate": 0.1, "performance_window": 4, **arguments})


def test_performance_follows_the_loss_within_its_bounds_and_ends_full():
    losses = [5.0, 4.0, 3.0, 3.5, 3.6, 3.9, 1.0]
    # window: 5 | 5 4 | 5 3 | (5 4)(3 3.5) | (4 3)(3.5 3.6) | (3 3.5)(3.6 3.9) | (3.5 3.6)(3.9 1.0)
    expected = [0.2, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.4]
    history = [((i + 1) / 20, loss) for i, loss in enumerate(losses)]
    found = [performance().threshold(i / 20, history[:i]) for i in range(len(losses) + 1)]
    assert found == pytest.approx(expected)
    falling, rising = ([(i / 100, 5.0 + sign * i / 100) for i in range(100)] for sign in (-1, 1))
    schedule = performance(end_threshold=0.45)
    assert schedule.threshold(0.5, falling) == schedule.upper_bound(0.0) == 0.45
    assert schedule.threshold(0.59, rising) == 0.2
    assert schedule.threshold(0.6, rising) == schedule.threshold(1.0, rising) == 0.45


def test_performance_holds_still_during_warmup():
    schedule = performance(warmup_epochs=3, performance_window=2)
    history = [(0.1, 5.0), (0.2, 4.0), (0.29, 3.0)]
    assert schedule.threshold(0.29, history) == schedule.upper_bound(0.2) == 0.2
    assert schedule.threshold(0.4, [*history, (0.4, 2.0)]) == pytest.approx(0.3)
    assert schedule.upper_bound(0.3) == 1.0


@pytest.mark.parametrize(
    ("losses", "window", "held", "expected"),
    [
        ([3.0, 2.0], 4, 0, 0.6),
        ([9.0, 9.0, 1.0, 2.0], 2, 3, 0.4),  # only the window counts
        ([1.0, 9.0, 4.0], 4, 2, 0.6),  # the middle one belongs to the first half: (1 + 9) / 2 > 4
        ([9.0, 1.0, 3.0, 5.0, 3.0], 5, 4, 0.6),  # (9 + 1 + 3) / 3 > (5 + 3) / 2
        ([3.0, *[2.0, 3.0] * 20], 2, 0, 0.5),  # up and down again is exactly where it was
    ],
)
def test_what_losses_move(losses, window, held, expected):
    assert follow_losses(losses, 0.5, window=window, rate=0.1, low=0.2, high=1.0, held=held) == expected


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (LinearSchedule, {"start_threshold": 0.8, "end_threshold": 0.5}, "start_threshold"),
        (StepSchedule, {"step_epochs": [1, 2], "step_thresholds": [0.5]}, "step_epochs"),
        (PerformanceSchedule, {"performance_window": 1}, "performance_window"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, named):
    with pytest.raises((InputError, ValidationError), match=named):
        kind(**{"epochs": 10, **arguments})


shares = st.floats(0.001, 1.0)
GROWING = [LinearSchedule, RootSchedule, ExponentialSchedule]


@given(st.sampled_from(GROWING), st.integers(1, 60), shares, shares, st.floats(0, 1), st.lists(st.floats(0, 1)))
def test_growing_schedules(kind, epochs, a, b, warmup, points):
    s, e = sorted((a, b))
    schedule = kind(epochs, s, e, warmup_epochs=warmup * epochs)
    values = [schedule.threshold(p) for p in sorted(points)]
    assert values == sorted(values)
    assert all(s <= c <= e for c in values)
    assert schedule.threshold((epochs - 1) / epochs) == schedule.threshold(1 - 1 / epochs) == e
    if warmup < 1 and epochs > 1:
        assert schedule.threshold(0.0) == s
