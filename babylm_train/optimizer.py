"""Parameter groups: which parameters are decayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from babylm_train.errors import InputError

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
    if isinstance(module, nn.Embedding):
        return "embedding"
    if name == "bias":
        return "bias"
    return "norm" if "norm" in type(module).__name__.lower() else "weight"
