"""What a run trains on, and when. Here: how validation losses move a threshold, for `dynamic` and `performance`."""

from collections.abc import Sequence


def follow_losses(
    losses: Sequence[float], start: float, *, window: int, rate: float, low: float, high: float, held: int = 0
) -> float:
    """The threshold after `losses`: from `start`, each but the first `held` moves it by `rate`, within [low, high].

    Up if, of the last `window` losses, the mean of the last half is lower than that of the first half, which has the
    middle one of an odd number; else down. The very first moves nothing: it has none to be compared with.
    """
    threshold = start
    for end in range(max(held + 1, 2), len(losses) + 1):
        recent = losses[max(end - window, 0) : end]
        half = len(recent) // 2
        better = sum(recent[-half:]) / half < sum(recent[:-half]) / (len(recent) - half)
        # Rounded, so that up and down again is where it was.
        threshold = min(max(round(threshold + (rate if better else -rate), 12), low), high)
    return threshold
