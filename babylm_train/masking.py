"""Which tokens of a row are hidden, a pure function of (seed, epoch, row): batch size and resume change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MASKING = 0x3A5C  # keeps these draws apart from other uses of the seed
EVALUATION = 0xE7A1


@dataclass(frozen=True)
class Corruption:
    """What becomes of a chosen token (Devlin et al. 2019, section 3.1): masked, replaced by another, or left as it is.

    Attributes:
        mask: id of the mask token. others: ids that may replace a token, shape (K,).
        mask_share, random_share: of the chosen tokens; the rest is left as it is.
    """

    mask: int
    others: np.ndarray
    mask_share: float
    random_share: float


def corrupt(
    inputs: np.ndarray, candidates: np.ndarray, rate: float, rule: Corruption, *, seed: int, epoch: int, first_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hides a share of each row's tokens.

    A token is chosen where its draw is below `rate`, so a higher rate chooses the same tokens and more; of a row with
    candidates at least one is chosen.

    Args:
        inputs: token ids, shape (rows, length). candidates: which of them may be chosen, bool, the same shape.
        first_row: number of the first row within its epoch.

    Returns:
        The ids as the model is to see them, and which were chosen (bool), both of shape (rows, length).
    """
    hidden, chosen = inputs.copy(), np.zeros_like(candidates)
    for row, (ids, may) in enumerate(zip(inputs, candidates, strict=True)):
        rng = np.random.default_rng([seed, MASKING, epoch, first_row + row])
        draw, action = np.where(may, rng.random(len(ids)), np.inf), rng.random(len(ids))
        replacement = rule.others[rng.integers(0, len(rule.others), len(ids))]
        chosen[row] = draw < rate
        if may.any():
            chosen[row, draw.argmin()] = True
        masked = chosen[row] & (action < rule.mask_share)
        swapped = chosen[row] & ~masked & (action < rule.mask_share + rule.random_share)
        hidden[row] = np.where(masked, rule.mask, np.where(swapped, replacement, ids))
    return hidden, chosen


def in_turn(candidates: np.ndarray, passes: int, first_row: int) -> Iterator[np.ndarray]:
    """`passes` masks (bool, shape (rows, length)) that choose every candidate exactly once, the same for every run."""
    rows, length = candidates.shape
    generators = (np.random.default_rng([EVALUATION, first_row + row]) for row in range(rows))
    group = np.stack([rng.permutation(length) % passes for rng in generators])
    for turn in range(passes):
        yield candidates & (group == turn)
