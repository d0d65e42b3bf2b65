"""Schedules: which share of the training data is admitted at which point of the run.

In the docstrings s is start_threshold, e end_threshold, w = warmup_epochs / epochs the share of the run held at s, and

    q = clip((p - w) / (1 - w - 1 / epochs), 0, 1)

so that the last epoch runs at e. With w = 1, or one epoch, the threshold is e throughout.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from babylm_train.curriculum import follow_losses
from babylm_train.errors import InputError, arguments

KEY = "curriculum.schedule"
ROUNDING = 1e-12  # progress is a quotient: 1 - 1/epochs and (epochs - 1)/epochs may differ in the last bit

History = Sequence[tuple[float, float]]  # (progress, validation loss) of each validation, oldest first
Share = Annotated[float, Field(gt=0, le=1)]  # of the training data


@arguments()
class FullSchedule:
    """All data always: no curriculum. What every schedule can do."""

    adaptive: ClassVar[bool] = False  # True: it reads the history

    def threshold(self, progress: float, history: History = ()) -> float:
        """Share of the data in (0, 1] at `progress` in [0, 1]."""
        return 1.0

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`, whatever the history."""
        return self.threshold(progress)


@arguments()
class LinearSchedule(FullSchedule):
    """s + (e - s) q."""

    epochs: Annotated[float, Field(gt=0)]
    start_threshold: Share = 0.2
    end_threshold: Share = 1.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.start_threshold > self.end_threshold:
            raise InputError(f"{KEY}.start_threshold must not exceed end_threshold = {self.end_threshold}")

    def threshold(self, progress: float, history: History = ()) -> float:
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        last = 1 - 1 / self.epochs
        if w >= 1 or progress >= last - ROUNDING:
            return e
        if progress <= w:
            return s
        # Rounded, so that platforms whose powers differ in the last bit agree.
        return min(max(round(self._between((progress - w) / (last - w)), 12), s), e)

    def _between(self, q: float) -> float:
        return self.start_threshold + (self.end_threshold - self.start_threshold) * q


@arguments()
class RootSchedule(LinearSchedule):
    """(s^n + (e^n - s^n) q)^(1/n) with n = power; n = 2: Platanios et al. 2019, who end at 1 and measure in steps."""

    power: Annotated[float, Field(gt=0, le=100)] = 2.0

    def _between(self, q: float) -> float:
        s, e = self.start_threshold**self.power, self.end_threshold**self.power
        return (s + (e - s) * q) ** (1 / self.power)


@arguments()
class ExponentialSchedule(LinearSchedule):
    """s (e / s)^q: equal ratios in equal times."""

    def _between(self, q: float) -> float:
        return self.start_threshold * (self.end_threshold / self.start_threshold) ** q


@arguments()
class StepSchedule(FullSchedule):
    """s before step_epochs[0], then step_thresholds[i] from step_epochs[i] on; one epoch: the last of them."""

    epochs: Annotated[float, Field(gt=0)]
    start_threshold: Share = 0.2
    step_epochs: Sequence[Annotated[float, Field(ge=0)]] = (1, 2, 3)
    step_thresholds: Sequence[Share] = (0.4, 0.7, 1.0)

    def __post_init__(self) -> None:
        s, steps, shares = self.start_threshold, list(self.step_epochs), list(self.step_thresholds)
        if not steps or len(steps) != len(shares) or steps != sorted(set(steps)):
            raise InputError(f"{KEY}.step_epochs must ascend, one for each of step_thresholds, got {steps}, {shares}")
        if [s, *shares] != sorted([s, *shares]):
            raise InputError(f"{KEY}.step_thresholds must never fall, nor below start_threshold = {s}, got {shares}")

    def threshold(self, progress: float, history: History = ()) -> float:
        if self.epochs <= 1:
            return self.step_thresholds[-1]
        reached = sum(progress >= epoch / self.epochs - ROUNDING for epoch in self.step_epochs)
        return self.step_thresholds[reached - 1] if reached else self.start_threshold


@arguments()
class PerformanceSchedule(LinearSchedule):
    """From s, moved by each validation after w as `follow_losses` says; e from `full_at` of the run on."""

    adaptive: ClassVar[bool] = True

    adaptation_rate: Share = 0.05
    performance_window: Annotated[int, Field(ge=2)] = 5
    full_at: Annotated[float, Field(ge=0, le=1)] = 0.6

    def threshold(self, progress: float, history: History = ()) -> float:
        s, e, w = self.start_threshold, self.end_threshold, self.warmup_epochs / self.epochs
        if self._is_full(progress):
            return e
        losses, held, rate = [loss for _, loss in history], sum(at < w for at, _ in history), self.adaptation_rate
        return follow_losses(losses, s, window=self.performance_window, rate=rate, low=s, high=e, held=held)

    def upper_bound(self, progress: float) -> float:
        held = progress < self.warmup_epochs / self.epochs and not self._is_full(progress)
        return self.start_threshold if held else self.end_threshold

    def _is_full(self, progress: float) -> bool:
        return progress >= min(self.full_at, 1 - 1 / self.epochs) - ROUNDING or self.warmup_epochs >= self.epochs
