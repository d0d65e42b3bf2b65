"""What a run trains on, and when. Here: the rule by which validation losses move a threshold, which the strategy
`dynamic` and the schedule `performance` share."""

from collections.abc import Sequence


def move_threshold(
    threshold: float, losses: Sequence[float], *, window: int, rate: float, low: float, high: float
) -> float:
    """`threshold` after the last of `losses`: `rate` up if they improved, else down, within [low, high].

    They improved if, of the last `window`, the mean of the last half is lower than that of the first half. While there
    are fewer, those that there are count; of an odd number the middle one belongs to the first half. One alone moves
    nothing; a NaN is no improvement.
    """
    recent = losses[-window:]
    half = len(recent) // 2
    if half == 0:
        return threshold
    first, last = recent[:-half], recent[-half:]
    better = sum(last) / len(last) < sum(first) / len(first)
    # Rounded, so that up and down again is where it was.
    return min(max(round(threshold + (rate if better else -rate), 12), low), high)
