"""What a model costs: parameters, floating-point operations, memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

# Korthikanti et al. 2022 count 17 (34 bytes at 16 bits). What autograd kept in models of 4 layers x 160: GPT-2 20 in
# float32 and 24 in bfloat16 (casts are kept too), Qwen3 30 and 41; with 24, logits included, all are within 20 %.
KEPT = 24


@dataclass(frozen=True)
class Size:
    """What a model costs.

    parameters: trainable, tied ones once. flops_per_token: forward and backward. rows: of a micro-batch, of `context`
    targets each. optimizer_bytes: of its state. activation_bytes: of a number inside autocast, 2 or 4.
    """

    parameters: int
    flops_per_token: int
    layers: int
    width: int
    vocabulary: int
    context: int
    rows: int
    optimizer_bytes: int
    activation_bytes: int
    checkpointing: bool = False

    def memory(self) -> dict[str, int]:
        """Bytes of a micro-batch's training step, an estimate: allocator, kernels and framework come on top.

        A layer keeps KEPT numbers for each token and unit of width until its backward pass; under checkpointing its
        input alone, and one layer at a time. The logits are there twice in float32 (their logarithms, and themselves or
        their gradient), and once in a 16-bit autocast type.
        """
        tokens, layer = self.rows * self.context, KEPT * self.width
        numbers = (self.layers * self.width + layer) if self.checkpointing else self.layers * layer
        logits = self.vocabulary * (8 if self.activation_bytes == 4 else 8 + self.activation_bytes)
        parts = {
            "weights": 4 * self.parameters,
            "gradients": 4 * self.parameters,
            "optimizer": self.optimizer_bytes,
            "activations": tokens * (numbers * self.activation_bytes + logits),
        }
        return {**parts, "total": sum(parts.values())}


def multiplied(model: Any) -> int:
    """Parameters that a token is multiplied with: all but embeddings that are only looked up, tied ones once."""
    from torch import nn

    head = model.get_output_embeddings()
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    looked_up = sum(w.numel() for w in embeddings if head is None or w is not head.weight)
    return sum(p.numel() for p in model.parameters()) - looked_up


def flops_per_token(model: Any, context: int) -> int:
    """Floating-point operations to train on one token in rows of `context`: 6 N + 12 layers * width * context.

    6 N: two for each weight forward, four backward (Kaplan et al. 2020, section 2.1); the attention term is that of
    PaLM (Chowdhery et al. 2022, appendix B). It counts full, not causal, attention over a whole row, so it is an upper
    bound for packed documents; recomputation under gradient checkpointing is left out.
    """
    config = model.config
    return 6 * multiplied(model) + 12 * config.num_hidden_layers * config.hidden_size * context


def size_of(
    model: Any, optimizer: Optimizer, *, context: int, rows: int, activation_bytes: int, checkpointing: bool = False
) -> Size:
    """The size of a transformers model that `optimizer` trains in micro-batches of rows x context targets."""
    config = model.config
    return Size(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops_per_token=flops_per_token(model, context),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        context=context,
        rows=rows,
        optimizer_bytes=_state_bytes(optimizer),
        activation_bytes=activation_bytes,
        checkpointing=checkpointing,
    )


def _state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state after a step: what it keeps for each number of a weight, times their count.

    A copy of the optimizer takes a step on stand-ins of four numbers a dimension.
    """
    import torch

    weights = [p for group in optimizer.param_groups for p in group["params"]]
    small = {id(p): torch.nn.Parameter(torch.ones([4] * p.dim())) for p in weights}
    clone = copy.deepcopy(optimizer, dict(small))
    clone.state.clear()
    for stand_in in small.values():
        stand_in.grad = torch.zeros_like(stand_in)
    clone.step()
    return sum(
        p.numel() * value.element_size()
        for p in weights
        for value in clone.state[small[id(p)]].values()
        if isinstance(value, torch.Tensor) and value.shape == small[id(p)].shape
    )
