"""Schedules: which share of the training data is admitted at which point of the run.

Every schedule is a pure function of progress and of the validations so far. In the docstrings s is start_threshold, e
end_threshold, w = warmup_epochs / epochs the share of the run held at s, and

    q = clip((p - w) / (1 - w - 1 / epochs), 0, 1)

so that the last epoch runs at e. With w = 1, or one epoch, the threshold is e throughout. Arguments out of range raise
ValidationError, or InputError where two of them do not fit; both name them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from babylm_train.curriculum import move_threshold
from babylm_train.errors import InputError, arguments

KEY = "curriculum.schedule"
ROUNDING = 1e-12  # progress is a quotient: 1 - 1/epochs and (epochs - 1)/epochs may differ in the last bit

History = Sequence[tuple[float, float]]  # (progress, validation loss) of each validation, oldest first
Share = Annotated[float, Field(gt=0, le=1)]  # of the training data
Epochs = Annotated[float, Field(gt=0)]


class Schedule:
    """What every schedule shares. Subclasses give `threshold`."""

    adaptive: ClassVar[bool] = False  # True: it reads the history

    def threshold(self, progress: float, history: History = ()) -> float:
        """Share of the data in (0, 1] at `progress` in [0, 1], after every validation in `history`, if it is read."""
        raise NotImplementedError

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`: the threshold itself where no history is read."""
        return self.threshold(progress)


@arguments()
class FullSchedule(Schedule):
    """All data always: no curriculum."""

    def threshold(self, progress: float, history: History = ()) -> float:
        return 1.0


@arguments()
class GrowingSchedule(Schedule):
    """From s to e along `_between(q)`, which a subclass gives."""

    epochs: Epochs
    start_threshold: Share = 0.2
    end_threshold: Share = 1.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        s, e = self.start_threshold, self.end_threshold
        if s > e:
            raise InputError(f"{KEY}.start_threshold must not exceed end_threshold, got {s} > {e}")
        if self.warmup_epochs > self.epochs:
            raise InputError(f"{KEY}.warmup_epochs must be in [0, {self.epochs:g}], got {self.warmup_epochs:g}")

    def threshold(self, progress: float, history: History = ()) -> float:
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        last = 1 - 1 / self.epochs
        if w >= 1 or progress >= last - ROUNDING:
            return e
        if progress <= w:
            return s
        # Here w < progress < last, so neither clip nor a zero divisor can come up. Rounded so that platforms whose
        # powers differ in the last bit agree.
        return min(max(round(self._between((progress - w) / (last - w)), 12), s), e)

    def _between(self, q: float) -> float:
        raise NotImplementedError


@arguments()
class LinearSchedule(GrowingSchedule):
    """s + (e - s) q."""

    def _between(self, q: float) -> float:
        return self.start_threshold + (self.end_threshold - self.start_threshold) * q


@arguments()
class RootSchedule(GrowingSchedule):
    """(s^n + (e^n - s^n) q)^(1/n) with n = power: larger rises earlier, 1 is linear.

    n = 2 is the root schedule of Platanios et al. 2019. They end at 1 and measure time in steps; here it ends at e, and
    the clock is q.
    """

    power: Annotated[float, Field(gt=0, le=100)] = 2.0

    def _between(self, q: float) -> float:
        s, e = self.start_threshold**self.power, self.end_threshold**self.power
        return (s + (e - s) * q) ** (1 / self.power)


@arguments()
class ExponentialSchedule(GrowingSchedule):
    """s (e / s)^q: equal ratios in equal times. The fragment `geom` is the same."""

    def _between(self, q: float) -> float:
        return self.start_threshold * (self.end_threshold / self.start_threshold) ** q


@arguments()
class StepSchedule(Schedule):
    """s before step_epochs[0], then step_thresholds[i] from step_epochs[i] on; one epoch: the last of them.

    A step at or past the last epoch is not reached.
    """

    epochs: Epochs
    start_threshold: Share = 0.2
    step_epochs: Sequence[Annotated[float, Field(ge=0)]] = (1, 2, 3)
    step_thresholds: Sequence[Share] = (0.4, 0.7, 1.0)

    def __post_init__(self) -> None:
        s, steps, shares = self.start_threshold, list(self.step_epochs), list(self.step_thresholds)
        if len(steps) != len(shares) or not steps:
            raise InputError(f"{KEY}.step_epochs and step_thresholds must be of one length, got {steps} and {shares}")
        if any(a >= b for a, b in pairwise(steps)):
            raise InputError(f"{KEY}.step_epochs must ascend, got {steps}")
        if any(a > b for a, b in pairwise([s, *shares])):
            raise InputError(f"{KEY}.step_thresholds must never fall, nor below start_threshold = {s}, got {shares}")

    def threshold(self, progress: float, history: History = ()) -> float:
        if self.epochs <= 1:
            return self.step_thresholds[-1]
        reached = sum(progress >= epoch / self.epochs - ROUNDING for epoch in self.step_epochs)
        return self.step_thresholds[reached - 1] if reached else self.start_threshold


@arguments()
class PerformanceSchedule(GrowingSchedule):
    """Follows the validation loss, from s, and is at e from `full_at` of the run on, whatever happened.

    After each validation: if the mean of the last half of `performance_window` losses is lower than that of the first
    half, `c += adaptation_rate`, else `c -= adaptation_rate`, clamped to [s, e]. The first validation moves nothing
    (one loss cannot be compared), and none moves it while w lasts. Always replayed from the start of `history`, so
    there is no state to save beside it. w = 1 or one epoch: e.
    """

    adaptive: ClassVar[bool] = True

    adaptation_rate: Share = 0.05
    performance_window: Annotated[int, Field(ge=2)] = 5
    full_at: Annotated[float, Field(ge=0, le=1)] = 0.6

    def threshold(self, progress: float, history: History = ()) -> float:
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        window, rate = self.performance_window, self.adaptation_rate
        if self._is_full(progress):
            return e
        now, losses = s, []
        for at, loss in history:
            losses.append(loss)
            if at >= w:
                now = move_threshold(now, losses, window=window, rate=rate, low=s, high=e)
        return now

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`: s while w lasts, then e."""
        held = progress < self.warmup_epochs / self.epochs and not self._is_full(progress)
        return self.start_threshold if held else self.end_threshold

    def _is_full(self, progress: float) -> bool:
        return progress >= min(self.full_at, 1 - 1 / self.epochs) - ROUNDING or self.warmup_epochs >= self.epochs
