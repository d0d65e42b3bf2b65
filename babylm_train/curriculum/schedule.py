"""Schedules: which share of the training data is admitted at which point of the run.

Every schedule is a pure function of progress and of the validations so far. In the docstrings s is start_threshold, e
end_threshold, w = warmup_epochs / epochs the share of the run held at s, and

    q = clip((p - w) / (1 - w - 1 / epochs), 0, 1)

so that the last epoch runs at e. With w = 1, or one epoch, the threshold is e throughout.
"""

from collections.abc import Sequence
from itertools import pairwise

from babylm_train.curriculum.adaptive import moved
from babylm_train.curriculum.checks import number, window
from babylm_train.errors import InputError

KEY = "curriculum.schedule"
ROUNDING = 1e-12  # progress is a quotient: 1 - 1/epochs and (epochs - 1)/epochs may differ in the last bit

History = Sequence[tuple[float, float]]  # (progress, validation loss) of each validation, oldest first


class FullSchedule:
    """All data always: no curriculum."""

    adaptive = False

    def threshold(self, progress: float, history: History = ()) -> float:
        """1.0."""
        return 1.0

    def upper_bound(self, progress: float) -> float:
        """1.0."""
        return 1.0


class _Growing:
    """From s to e along `_between(q)`, which a subclass gives."""

    adaptive = False

    def __init__(
        self, epochs: float, start_threshold: float = 0.2, end_threshold: float = 1.0, warmup_epochs: float = 0
    ) -> None:
        """
        Args:
            epochs: epochs of the run, at least a part of one.
            start_threshold, end_threshold: s and e, shares of the data in (0, 1], s <= e.
            warmup_epochs: epochs held at s, in [0, epochs].

        Raises:
            InputError: an argument is out of range; the message names its key.
        """
        self.epochs = number(f"{KEY}.epochs", epochs, 0, above=True)
        self.start_threshold = number(f"{KEY}.start_threshold", start_threshold, 0, 1, above=True)
        self.end_threshold = number(f"{KEY}.end_threshold", end_threshold, 0, 1, above=True)
        self.warmup_epochs = number(f"{KEY}.warmup_epochs", warmup_epochs, 0, self.epochs)
        if self.start_threshold > self.end_threshold:
            raise InputError(
                f"{KEY}.start_threshold must not exceed end_threshold, got {start_threshold} > {end_threshold}"
            )

    def threshold(self, progress: float, history: History = ()) -> float:
        """Share of the data in [s, e] at `progress` in [0, 1]; `history` plays no part."""
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        last = 1 - 1 / self.epochs
        if w >= 1 or progress >= last - ROUNDING:
            return e
        if progress <= w:
            return s
        # Here w < progress < last, so neither clip nor a zero divisor can come up. Rounded so that platforms whose
        # powers differ in the last bit agree.
        return min(max(round(self._between((progress - w) / (last - w)), 12), s), e)

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`: the threshold itself."""
        return self.threshold(progress)

    def _between(self, q: float) -> float:
        raise NotImplementedError


class LinearSchedule(_Growing):
    """s + (e - s) q."""

    def _between(self, q: float) -> float:
        return self.start_threshold + (self.end_threshold - self.start_threshold) * q


class RootSchedule(_Growing):
    """(s^n + (e^n - s^n) q)^(1/n) with n = power; n = 2 is the root schedule of Platanios et al. 2019.

    They end at 1 and measure time in steps; here it ends at e, and the clock is q.
    """

    def __init__(
        self,
        epochs: float,
        start_threshold: float = 0.2,
        end_threshold: float = 1.0,
        warmup_epochs: float = 0,
        power: float = 2.0,
    ) -> None:
        """
        Args:
            epochs, start_threshold, end_threshold, warmup_epochs: as for every growing schedule.
            power: n, above 0; larger rises earlier, 1 is linear.

        Raises:
            InputError: an argument is out of range; the message names its key.
        """
        super().__init__(epochs, start_threshold, end_threshold, warmup_epochs)
        self.power = number(f"{KEY}.power", power, 0, 100, above=True)

    def _between(self, q: float) -> float:
        s, e = self.start_threshold**self.power, self.end_threshold**self.power
        return (s + (e - s) * q) ** (1 / self.power)


class ExponentialSchedule(_Growing):
    """s (e / s)^q: equal ratios in equal times. The fragment `geom` is the same."""

    def _between(self, q: float) -> float:
        return self.start_threshold * (self.end_threshold / self.start_threshold) ** q


class StepSchedule:
    """s before step_epochs[0], then step_thresholds[i] from step_epochs[i] on; one epoch: the last of them."""

    adaptive = False

    def __init__(
        self,
        epochs: float,
        start_threshold: float = 0.2,
        step_epochs: Sequence[float] = (1, 2, 3),
        step_thresholds: Sequence[float] = (0.4, 0.7, 1.0),
    ) -> None:
        """
        Args:
            epochs: epochs of the run; a step at or past the last is not reached.
            start_threshold: share of the data before the first step, in (0, 1].
            step_epochs: where the steps are, ascending, at least 0.
            step_thresholds: one share in (0, 1] a step, never falling, the first at least start_threshold.

        Raises:
            InputError: an argument is out of range; the message names its key.
        """
        self.epochs = number(f"{KEY}.epochs", epochs, 0, above=True)
        self.start_threshold = number(f"{KEY}.start_threshold", start_threshold, 0, 1, above=True)
        self.step_epochs = [number(f"{KEY}.step_epochs[{i}]", v, 0) for i, v in enumerate(step_epochs)]
        self.step_thresholds = [
            number(f"{KEY}.step_thresholds[{i}]", v, 0, 1, above=True) for i, v in enumerate(step_thresholds)
        ]
        if len(self.step_epochs) != len(self.step_thresholds) or not self.step_epochs:
            raise InputError(
                f"{KEY}.step_epochs and {KEY}.step_thresholds must have the same length, at least 1, "
                f"got {len(self.step_epochs)} and {len(self.step_thresholds)}"
            )
        if any(a >= b for a, b in pairwise(self.step_epochs)):
            raise InputError(f"{KEY}.step_epochs must ascend, got {list(step_epochs)}")
        if any(a > b for a, b in pairwise([self.start_threshold, *self.step_thresholds])):
            raise InputError(
                f"{KEY}.step_thresholds must never fall, from start_threshold on, "
                f"got {start_threshold}, then {list(step_thresholds)}"
            )

    def threshold(self, progress: float, history: History = ()) -> float:
        """Share of the data at `progress` in [0, 1]; `history` plays no part."""
        if self.epochs <= 1:
            return self.step_thresholds[-1]
        reached = sum(progress >= epoch / self.epochs - ROUNDING for epoch in self.step_epochs)
        return self.step_thresholds[reached - 1] if reached else self.start_threshold

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`: the threshold itself."""
        return self.threshold(progress)


class PerformanceSchedule(_Growing):
    """Follows the validation loss, from s, and is at e from `full_at` of the run on, whatever happened.

    After each validation: if the mean of the last half of `performance_window` losses is lower than that of the first
    half, `c += adaptation_rate`, else `c -= adaptation_rate`, clamped to [s, e]. The first validation moves nothing
    (one loss cannot be compared), and none moves it while w lasts. Always replayed from the start of `history`, so
    there is no state to save beside it. w = 1 or one epoch: e.
    """

    adaptive = True

    def __init__(
        self,
        epochs: float,
        start_threshold: float = 0.2,
        end_threshold: float = 1.0,
        warmup_epochs: float = 0,
        adaptation_rate: float = 0.1,
        performance_window: int = 4,
        full_at: float = 0.6,
    ) -> None:
        """
        Args:
            epochs, start_threshold, end_threshold, warmup_epochs: as for every growing schedule.
            adaptation_rate: what one validation moves, in (0, 1].
            performance_window: validations that are compared by halves, at least 2.
            full_at: progress in [0, 1] from which the threshold is e.

        Raises:
            InputError: an argument is out of range; the message names its key.
        """
        super().__init__(epochs, start_threshold, end_threshold, warmup_epochs)
        self.adaptation_rate = number(f"{KEY}.adaptation_rate", adaptation_rate, 0, 1, above=True)
        self.performance_window = window(f"{KEY}.performance_window", performance_window)
        self.full_at = number(f"{KEY}.full_at", full_at, 0, 1)

    def threshold(self, progress: float, history: History = ()) -> float:
        """Share of the data in [s, e] at `progress` in [0, 1], after every validation in `history`."""
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        if self._full(progress):
            return e
        now, losses = s, []
        for at, loss in history:
            losses.append(loss)
            if at >= w:
                now = moved(
                    now, losses, window=self.performance_window, rate=self.adaptation_rate, low=s, high=e
                )  # fmt: skip
        return now

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`: s while w lasts, then e."""
        held = progress < self.warmup_epochs / self.epochs and not self._full(progress)
        return self.start_threshold if held else self.end_threshold

    def _full(self, progress: float) -> bool:
        return progress >= min(self.full_at, 1 - 1 / self.epochs) - ROUNDING or self.warmup_epochs >= self.epochs
