"""Numeric precision: autocast and loss scaling behind one code path."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from babylm_train.errors import InputError

if TYPE_CHECKING:
    import torch

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
