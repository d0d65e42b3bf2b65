"""Checks of a curriculum's arguments and scores; each message names the config key or the document."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from babylm_train.errors import InputError


def number(key: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """`value` as a float, if it is a number in [low, high], or in (low, high] with `above`.

    Raises:
        InputError: it is no number, not finite, or out of range.
    """
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or value > high or value < low or (above and value == low):
        if high == math.inf:
            bounds = f"{'above' if above else 'at least'} {low:g}"
        else:
            bounds = f"in {'(' if above else '['}{low:g}, {high:g}]"
        raise InputError(f"{key} must be {bounds}, got {value!r}")
    return float(value)


def window(key: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 2: a window of validations is compared by halves.

    Raises:
        InputError: it is not.
    """
    if number(key, value, 2) != int(value):
        raise InputError(f"{key} must be a whole number, got {value!r}")
    return int(value)


def check_scores(scores: np.ndarray, count: int, describe: Callable[[int], str] = "document {}".format) -> np.ndarray:
    """`scores` as float64 of shape (count,), all finite.

    Args:
        scores: what a strategy computed.
        count: documents it was given.
        describe: names a document by its index, for the message.

    Raises:
        InputError: another shape, or a NaN or infinite score; names the first such document.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (count,):
        raise InputError(f"a curriculum strategy must give one score a document: {count}, got the shape {scores.shape}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(f"the difficulty of {describe(int(bad[0]))} is {scores[bad[0]]}; it must be a finite number")
    return scores
