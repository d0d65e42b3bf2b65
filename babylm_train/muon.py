"""Muon for matrices, AdamW for the rest: one optimizer to the loop and to its checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from babylm_train.throughput import has_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024); AdamW elsewhere.

    A matrix moves by lr x 0.2 sqrt(its longer side) x an orthogonal matrix, whose elements are as large as AdamW's
    (Liu et al. 2025), so that one rate and one decay suit both.

    Args:
        params: groups as group_parameters makes them; those marked `matrix` hold 2-D weights for Muon.
        lr: of the matrices. rest_lr: of the rest, by AdamW; None: the same.
        momentum: Nesterov's, of the matrices. betas, eps: of the rest.
        row_beta: decay of each row's mean square, by whose root it is divided (NorMuon, Li et al. 2025).
        cautious: decay only where it has the sign of the update (Chen et al. 2025); of the matrices.
        weight_decay: decoupled, of all groups that do not bring their own.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        rest_lr: float | None = None,
        momentum: float = 0.95,
        row_beta: float | None = None,
        cautious: bool = False,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        for name, value in (("lr", lr), ("rest_lr", rest_lr or 0)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name, value in (("momentum", momentum), ("row_beta", row_beta or 0), ("betas", max(betas))):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        rest = {"lr": lr if rest_lr is None else rest_lr, "betas": tuple(betas), "eps": eps}
        own = {"lr": lr, "momentum": momentum, "row_beta": row_beta, "cautious": cautious}
        groups = [{**(own if group["matrix"] else rest), **group} for group in params]
        super().__init__(groups, {"weight_decay": weight_decay, "decoupled_weight_decay": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient; `closure` is not for it."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not group["matrix"]:
                self._move_rest(group, weights)
                continue
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)  # those of one shape are one batched product
            for weight in weights:
                alike[weight.shape].append(weight)
            for weights in alike.values():
                self._move_matrices(group, weights)

    def _move_rest(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        step = [self._state(weight, "step", torch.zeros((), device=weight.device)) for weight in weights]
        mean, square = ([self._state(weight, name, weight) for weight in weights] for name in ("mean", "square"))
        gradients: Any = [weight.grad for weight in weights]
        (beta1, beta2), options = group["betas"], {name: group[name] for name in ("lr", "weight_decay", "eps")}
        options |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, "fused": True}
        adamw(weights, gradients, mean, square, [], step, **options)

    def _move_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        means = [self._state(weight, "mean", weight) for weight in weights]
        gradients: Any = [weight.grad for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        moves = orthogonalise(torch.stack(torch._foreach_lerp(gradients, means, group["momentum"])))
        if group["row_beta"] is not None:
            squares = moves.square().mean(-1, keepdim=True)
            rows = [self._state(weight, "row", square) for weight, square in zip(weights, squares, strict=True)]
            torch._foreach_lerp_(rows, list(squares), 1 - group["row_beta"])
            size = moves.norm(dim=(1, 2), keepdim=True)
            moves /= torch.stack(rows).sqrt().add(1e-8)
            moves *= size / moves.norm(dim=(1, 2), keepdim=True)
        moves *= 0.2 * max(weights[0].shape) ** 0.5
        for weight, move in zip(weights, moves, strict=True):
            shrink = group["lr"] * group["weight_decay"]
            weight.sub_(weight * (move * weight > 0) if group["cautious"] else weight, alpha=shrink)
            weight.sub_(move, alpha=group["lr"])

    def _state(self, weight: Tensor, name: str, like: Tensor) -> Tensor:
        """What is remembered of a weight under `name`; zeros at first."""
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(like)
        return state[name]


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each matrix (M, rows, columns) with its singular values brought near 1 (0.7 to 1.2), by Newton-Schulz iteration.

    In bfloat16 where the device multiplies it, in float32 on other CPUs, where bfloat16 takes 24 times as long.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16) if matrices.device.type == "cuda" or has_bf16() else matrices
    if turned := x.size(-2) > x.size(-1):
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if turned else x).to(matrices.dtype)
