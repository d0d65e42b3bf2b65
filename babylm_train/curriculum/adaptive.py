"""The one rule by which validation losses move an adaptive threshold, for the strategy `dynamic` and the schedule
`performance`."""

from collections.abc import Sequence


def improved(losses: Sequence[float], window: int) -> bool | None:
    """Whether the last `window` losses fell: the mean of their last half is lower than that of their first.

    While fewer than `window` losses exist, those that do are compared; of an odd number the middle one belongs to
    neither half. A NaN is no improvement. None for fewer than two losses: nothing to compare.
    """
    recent = losses[-window:]
    half = len(recent) // 2
    if half == 0:
        return None
    return sum(recent[-half:]) / half < sum(recent[:half]) / half


def moved(threshold: float, losses: Sequence[float], *, window: int, rate: float, low: float, high: float) -> float:
    """`threshold` after the last of `losses`: `rate` up if they improved, else down, within [low, high]."""
    better = improved(losses, window)
    if better is None:
        return threshold
    # Rounded, so that up and down again is where it was.
    return min(max(round(threshold + (rate if better else -rate), 12), low), high)
