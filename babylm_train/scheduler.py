"""Learning-rate schedules over the applied updates of a run; the formulas are those of transformers.optimization."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from babylm_train.errors import InputError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def resolve_warmup(total_updates: int, warmup_steps: int | None, warmup_ratio: float | None) -> int:
    """Warmup in updates, from steps or from a share of the run.

    Raises:
        InputError: both are given, one is out of range, or the warmup is longer than the run.
    """
    if warmup_steps is not None and warmup_ratio is not None:
        raise InputError("scheduler.warmup_steps and scheduler.warmup_ratio are both given: set one of them to null")
    if warmup_ratio is not None:
        if not 0 <= warmup_ratio <= 1:
            raise InputError(f"scheduler.warmup_ratio must be in [0, 1], got {warmup_ratio}")
        return math.floor(warmup_ratio * total_updates)
    steps = warmup_steps or 0
    if steps < 0:
        raise InputError(f"scheduler.warmup_steps must not be negative, got {steps}")
    if steps > total_updates:
        raise InputError(f"scheduler.warmup_steps = {steps} is longer than the run of {total_updates} updates")
    return steps


def linear(
    optimizer: Optimizer, total_updates: int, warmup_steps: int | None = None, warmup_ratio: float | None = None
) -> LambdaLR:
    """Linear warmup from 0 to the optimizer's lr, then linear decay to 0 at `total_updates`."""
    warmup = resolve_warmup(total_updates, warmup_steps, warmup_ratio)
    from transformers import get_linear_schedule_with_warmup

    return get_linear_schedule_with_warmup(optimizer, warmup, total_updates)


def cosine(
    optimizer: Optimizer,
    total_updates: int,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    num_cycles: float = 0.5,
) -> LambdaLR:
    """Linear warmup, then lr * (1 + cos(2 pi num_cycles t)) / 2 with t from 0 to 1 (Loshchilov and Hutter 2017)."""
    if num_cycles <= 0:
        raise InputError(f"scheduler.num_cycles must be positive, got {num_cycles}")
    warmup = resolve_warmup(total_updates, warmup_steps, warmup_ratio)
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, warmup, total_updates, num_cycles=num_cycles)


def constant(
    optimizer: Optimizer, total_updates: int, warmup_steps: int | None = None, warmup_ratio: float | None = None
) -> LambdaLR:
    """Linear warmup, then the optimizer's lr to the end."""
    warmup = resolve_warmup(total_updates, warmup_steps, warmup_ratio)
    from transformers import get_constant_schedule_with_warmup

    return get_constant_schedule_with_warmup(optimizer, warmup)
