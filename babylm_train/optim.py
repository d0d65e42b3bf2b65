"""How weights are moved: parameter groups, learning-rate schedules over applied updates, numeric precision."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from babylm_train.errors import InputError, arguments

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from babylm_train.options import Average

log = logging.getLogger(__name__)

KINDS = ("norm", "bias", "embedding")
SHAPED = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "mean", "square"}  # as their weight


def group_parameters(model: nn.Module, weight_decay: float, no_decay: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: matrices of the body (`matrix`) before the rest, decayed before not decayed.

    Args:
        model: its trainable parameters are taken once each (tied weights are embeddings).
        weight_decay: of the decayed groups.
        no_decay: kinds of parameters without decay: `norm` (weights of normalisation layers), `bias`, `embedding`.
    """
    from torch import nn
    from torch.nn.utils.parametrize import ParametrizationList

    kinds = (nn.Embedding, nn.EmbeddingBag, ParametrizationList)  # the last two where n-grams are shared
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    # embeddings first: a head tied to them is the same parameter
    for module in sorted(model.modules(), key=lambda m: not isinstance(m, kinds)):
        kind = "norm" if "norm" in type(module).__name__.lower() else "weight"
        kind = "embedding" if isinstance(module, kinds) else kind
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                named = "bias" if name == "bias" and kind != "embedding" else kind
                matrix = named == "weight" and parameter.dim() == 2 and module is not head
                groups.setdefault((matrix, named not in no_decay), []).append(parameter)
    return [
        {"params": groups[matrix, decayed], "weight_decay": weight_decay if decayed else 0.0, "matrix": matrix}
        for matrix, decayed in sorted(groups, reverse=True)
    ]


def set_decay_horizon(optimizer: Optimizer, horizon: float, updates_per_pass: float) -> None:
    """Sets each decayed group's weight decay to 1 / (lr x updates a pass x horizon), as decoupled decay reads it.

    At the peak rate decay alone then divides a weight by e in `horizon` passes (Wang and Aitchison 2024).
    """
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            group["weight_decay"] = float(1 / (group["lr"] * updates_per_pass * horizon))  # not NumPy's


class RunningAverage:
    """A mean of a model's weights over updates, as `kind` says; of nothing where it asks for none."""

    def __init__(self, model: nn.Module, kind: Average, total_updates: int, epochs: int) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad and (kind.half_life or kind.last)]
        self.weights = [p.detach().clone() for p in self.parameters]
        self.half_life = kind.half_life and kind.half_life * total_updates / epochs  # in updates
        self.start, self.count = (1 - kind.last) * total_updates if kind.last else 0.0, 0

    def update(self, updates: int) -> None:
        """Takes in the weights as they are after so many updates."""
        if self.weights and updates > self.start:
            share = 1 - 0.5 ** (1 / self.half_life) if self.half_life and self.count else 1 / (self.count + 1)
            for mean, parameter in zip(self.weights, self.parameters, strict=True):
                mean.lerp_(parameter.detach(), share)
            self.count += 1

    @contextlib.contextmanager
    def applied(self, optimizer: Any) -> Iterator[None]:
        """Inside, the model has the weights that are evaluated and exported: the mean, or the optimizer's own."""
        set_mode(optimizer, "eval")
        self._swap()
        try:
            yield
        finally:
            self._swap()
            set_mode(optimizer, "train")

    def _swap(self) -> None:
        for i, parameter in enumerate(self.parameters if self.count else ()):
            parameter.data, self.weights[i] = self.weights[i], parameter.data

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict takes."""
        return {"weights": self.weights, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues a mean. Raises ValueError: it is that of another model."""
        for mine, saved in zip(self.weights, state["weights"], strict=True):
            mine.copy_(saved)
        self.count = state["count"]


def check_state(optimizer: Optimizer) -> None:
    """Raises ValueError: a tensor of its state does not fit its weight, beyond which fused kernels would write."""
    for weight, state in optimizer.state.items():
        for name in SHAPED & state.keys():
            if state[name].shape != weight.shape or not state[name].is_contiguous():
                raise ValueError(f"the optimizer's {name} has the shape {tuple(state[name].shape)}")


def set_mode(optimizer: Any, mode: Literal["train", "eval"]) -> None:
    """Some optimizers (schedule-free ones) train other weights than those that are to be used, and switch by this."""
    getattr(optimizer, mode, lambda: None)()


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
    if not 0 <= (steps := warmup_steps or 0) <= total_updates:
        raise InputError(f"scheduler.warmup_steps must be from 0 to the run's {total_updates} updates, got {steps}")
    return steps


def schedule(
    optimizer: Optimizer,
    total_updates: int,
    name: str,
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    decay_ratio: float | None = None,
    **kwargs: Any,
) -> LambdaLR:
    """A schedule of transformers.get_scheduler: linear warmup from 0 to the optimizer's lr, then as `name` says.

    Args:
        name: linear, cosine, constant_with_warmup, cosine_with_min_lr, warmup_stable_decay, ...
        warmup_steps, warmup_ratio: updates, or their share of the run; not both.
        decay_ratio: share of the run at its end in which the rate falls, for warmup_stable_decay.
        kwargs: of that schedule (num_cycles, min_lr_rate, decay_type, ...).

    Raises:
        InputError: an option is out of range, or not one of this schedule.
    """
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import get_scheduler

    warmup = resolve_warmup(total_updates, warmup_steps, warmup_ratio)
    if decay_ratio is not None:
        if not 0 < decay_ratio <= 1:
            raise InputError(f"scheduler.decay_ratio must be in (0, 1], got {decay_ratio}")
        kwargs["num_decay_steps"] = min(math.ceil(decay_ratio * total_updates), total_updates - warmup)
    if not kwargs.get("num_cycles", 1) > 0:
        raise InputError(f"scheduler.num_cycles must be positive, got {kwargs['num_cycles']}")
    try:
        made = get_scheduler(name, optimizer, warmup, total_updates, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"scheduler: {str(error).splitlines()[0]}") from error
    if not isinstance(made, LambdaLR):
        raise InputError(f"scheduler.name={name} follows losses; a schedule has to be fixed before the run")
    return made


@arguments()
class Precision:
    """One numeric format for the forward and backward pass; weights and optimizer state stay float32.

    Args:
        dtype: inside autocast.
        matmul: rounding of float32 matrix products, as in torch.set_float32_matmul_precision: `highest` (exact),
            `high` (TF32 on GPUs), `medium` (TF32 on GPUs, sums of bfloat16 products on CPUs with avx512_bf16).
        loss_scaling: scale the loss and skip updates that overflow (Micikevicius et al. 2018); for float16.
        initial_scale, growth_interval: of the loss scale; it halves at an overflow and doubles after
            `growth_interval` updates without one.
    """

    dtype: Literal["float32", "bfloat16", "float16"]
    matmul: Literal["highest", "high", "medium"] = "highest"
    loss_scaling: bool = False
    initial_scale: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 2.0**16
    growth_interval: Annotated[int, Field(ge=1)] = 2000

    @property
    def inside(self) -> torch.dtype:
        """What matrix products are computed in."""
        import torch

        return getattr(torch, self.dtype)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The gradient scaler; one that does nothing where loss_scaling is off. Sets the matmul rounding."""
        import torch

        from babylm_train.throughput import has_bf16

        slow = device.type == "cpu" and not has_bf16() and "bfloat16 instructions, which this CPU has not"
        if device.type == "cpu" and self.dtype == "float16":
            log.warning("precision=fp16 is about 50 times slower than fp32 on a CPU")
        if slow and self.dtype == "bfloat16":
            log.warning("precision=bf16 is about 20 times slower than fp32 without %s", slow)
        if slow and self.matmul == "medium":
            log.warning("precision=tf32 needs %s: products are exact, as with fp32", slow)
        if device.type == "cuda" and self.dtype == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
            log.warning(
                "precision=bf16: this GPU has no bfloat16 units, and attention no fast kernel; take precision=fp16"
            )
        torch.set_float32_matmul_precision("highest" if slow and self.matmul == "medium" else self.matmul)
        return torch.amp.GradScaler(
            device.type, self.initial_scale, growth_interval=self.growth_interval, enabled=self.loss_scaling
        )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context of the forward pass."""
        import torch

        return torch.autocast(device.type, self.inside, enabled=self.dtype != "float32")
