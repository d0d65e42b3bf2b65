"""How weights are moved: parameter groups, learning-rate schedules over applied updates, numeric precision."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from babylm_train.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

KINDS = ("norm", "bias", "embedding")


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    """Two groups for a torch optimizer: decayed, and not decayed.

    Args:
        model: its trainable parameters are taken once each (tied weights are embeddings).
        weight_decay: of the first group.
        no_decay: kinds of parameters without decay: `norm` (weights of normalisation layers), `bias`, `embedding`.

    Raises:
        InputError: an unknown kind.
    """
    from torch import nn

    for kind in no_decay:
        if kind not in KINDS:
            raise InputError(f"trainer.no_decay may name {', '.join(KINDS)}, got {kind}")
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    # embeddings first: a head tied to them is the same parameter
    modules = sorted(model.modules(), key=lambda m: not isinstance(m, nn.Embedding))
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                (plain if _kind(module, name) in no_decay else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _kind(module: nn.Module, name: str) -> str:
    from torch import nn

    if isinstance(module, nn.Embedding):
        return "embedding"
    if name == "bias":
        return "bias"
    return "norm" if "norm" in type(module).__name__.lower() else "weight"


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


log = logging.getLogger(__name__)

MATMUL = ("highest", "high", "medium")


class Precision:
    """One numeric format for the forward and backward pass; weights and optimizer state stay float32.

    Args:
        dtype: `float32`, `bfloat16` or `float16` inside autocast.
        matmul: rounding of float32 matrix products, as in torch.set_float32_matmul_precision: `highest` (exact),
            `high` (TF32 on GPUs), `medium` (TF32 on GPUs, sums of bfloat16 products on CPUs with avx512_bf16).
        loss_scaling: scale the loss and skip updates that overflow (Micikevicius et al. 2018); for float16.
        initial_scale, growth_interval: of the loss scale; it halves at an overflow and doubles after
            `growth_interval` updates without one.
    """

    def __init__(
        self,
        dtype: str,
        matmul: str = "highest",
        loss_scaling: bool = False,
        initial_scale: float = 2.0**16,
        growth_interval: int = 2000,
    ) -> None:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"precision.dtype must be float32, bfloat16 or float16, got {dtype}")
        if matmul not in MATMUL:
            raise InputError(f"precision.matmul must be one of {', '.join(MATMUL)}, got {matmul}")
        self.dtype, self.matmul, self.loss_scaling = dtype, matmul, loss_scaling
        self.initial_scale, self.growth_interval = initial_scale, growth_interval

    @property
    def inside(self) -> torch.dtype:
        """What matrix products are computed in."""
        import torch

        return getattr(torch, self.dtype)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The gradient scaler; one that does nothing where loss_scaling is off. Sets the matmul rounding."""
        import torch

        if self.dtype == "float16" and device.type == "cpu":
            log.warning(
                "precision=fp16 is about 50 times slower than fp32 on a CPU; precision=bf16 is the fast one there"
            )
        torch.set_float32_matmul_precision(self.matmul)
        return torch.amp.GradScaler(
            device.type,
            init_scale=self.initial_scale,
            growth_interval=self.growth_interval,
            enabled=self.loss_scaling,
        )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context of the forward pass."""
        import torch

        return torch.autocast(device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")
