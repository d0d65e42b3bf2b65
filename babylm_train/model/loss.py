"""Cross-entropy of a linear head without its logits: a chunk of positions at a time, gradients made along the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from babylm_train.state import IGNORE

LOGITS = {"cpu": 1 << 22, "other": 1 << 28}  # float32 values a chunk: a CPU's cache, a GPU's memory


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: Any = None) -> Tensor:
    """-sum log softmax(hidden @ weight.T)[target] over the valid targets: a float32 scalar, in nats.

    The product is rounded as autocast says, the softmax is float32. The gradients of a chunk's logits are used while
    they are at hand, so neither the logits of all positions nor their gradients are ever in memory (the idea of Liger
    Kernel, Hsu et al. 2024). It cannot be differentiated twice.

    Args:
        hidden: (..., size) of the last layer. weight: (vocabulary, size) of the head, which has no bias.
        targets: int64 (...), IGNORE where there is none. chunk: stands in for `chunk_loss`, compiled for instance.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    grads = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    chunks = -(-targets.numel() * len(weight) // LOGITS.get(kind, LOGITS["other"]))
    rows = -(-targets.numel() // chunks)  # chunks of one size, so that they are compiled once
    return _Summed.apply(hidden.flatten(0, -2), weight, targets.flatten(), (dtype, grads, rows, chunk or chunk_loss))


def chunk_loss(hidden: Tensor, weight: Tensor, targets: Tensor, grads: bool) -> tuple[Tensor, ...]:
    """Summed loss of some positions, and with `grads` its gradients by `hidden` and `weight`, in their dtype."""
    scores = (hidden @ weight.T).float().log_softmax(1)
    valid, places = targets != IGNORE, targets.clamp(min=0)
    positions = torch.arange(len(targets), device=targets.device)
    loss = -(scores[positions, places] * valid).sum()
    if not grads:
        return (loss,)
    scores = scores.exp_()
    scores[positions, places] -= 1.0  # not scatter_add_, which trainer.deterministic refuses on GPUs
    slope = scores.mul_(valid[:, None]).to(hidden.dtype)
    return loss, slope @ weight, slope.T @ hidden


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, how: Any) -> Tensor:
        dtype, grads, rows, chunk = how
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        by_hidden = torch.empty_like(hidden) if grads else None
        by_weight = torch.zeros_like(weight) if grads else None
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            loss, *slopes = chunk(hidden[part].to(dtype), cast, targets[part], grads)
            total += loss
            if by_hidden is not None and by_weight is not None:
                by_hidden[part] = slopes[0]
                by_weight += slopes[1]
        context.save_for_backward(by_hidden, by_weight)
        return total

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_hidden, by_weight = context.saved_tensors
        return by_hidden * grad.to(by_hidden.dtype), by_weight * grad, None, None
