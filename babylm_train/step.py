"""One optimizer step: exact accumulation, and nothing applied that is not finite, without waiting for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_

from babylm_train.errors import DivergedError, OutOfMemory
from babylm_train.state import Batch

MAX_SKIPPED = 20  # overflows of fp16 in a row before the run counts as diverged


@dataclass(frozen=True)
class Update:
    """An update that was made; its figures are on the device.

    nats: summed loss. norm: of the gradient before clipping. good: whether it was applied. targets: valid ones.
    skipped: fp16 overflows before it. name: of its rows.
    """

    nats: torch.Tensor
    norm: torch.Tensor
    good: torch.Tensor
    targets: int
    skipped: int
    name: str

    def diverged(self, number: int, nats: float, norm: float, overflows: int = 0) -> DivergedError:
        """The error of update `number`, this one, that was not applied."""
        return DivergedError(
            f"update {number} ({self.name}): loss {nats / self.targets:g}, gradient norm {norm:g}"
            + (f", {overflows} overflows in a row" if overflows else "")
            + "; the update was not applied, the last checkpoint is good"
        )


class Step:
    """Makes updates of `model`; once one is not finite, none is applied any more.

    A fused optimizer reads from a flag on the device whether to leave everything as it is, so nobody waits for it. Any
    other optimizer, and fp16, has to look at each step.

    Args:
        scaler: of fp16, or one that is not enabled. max_grad_norm: None: no clipping.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        max_grad_norm: float | None,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.limit = float("inf") if max_grad_norm is None else max_grad_norm
        self.device = next(model.parameters()).device
        self.gated = getattr(optimizer, "_step_supports_amp_scaling", False) and not scaler.is_enabled()
        self.healthy = torch.ones((), dtype=torch.bool, device=self.device)

    def __call__(
        self,
        number: int,
        batches: Sequence[Batch],
        loss: Callable[[Batch], torch.Tensor],
        watch: Callable[[], None] | None = None,
    ) -> Update:
        """One step on the gradient of the mean loss over all valid targets of `batches`.

        The micro-batches' summed losses are divided by the update's targets, so accumulation is exact however the
        targets are spread. An fp16 overflow changes nothing but the loss scale, and the same batches are tried again.

        Args:
            number: of the update. loss: summed over a micro-batch, in nats. watch: called while there are gradients.

        Raises:
            DivergedError: fp16 overflowed 20 times in a row. OutOfMemory: the micro-batch is too large.
        """
        targets = sum(batch.tokens for batch in batches)
        name = f"epoch {batches[0].epoch + 1}, {sum(len(b.inputs) for b in batches)} rows from {batches[0].first_row}"
        for skipped in range(MAX_SKIPPED):
            nats = torch.zeros((), dtype=torch.float64, device=self.device)
            with memory_errors(*batches[0].inputs.shape):
                for batch in batches:
                    value = loss(batch)
                    self.scaler.scale(value / targets).backward()
                    nats += value.detach()
                self.scaler.unscale_(self.optimizer)
                norm = clip_grad_norm_(self.model.parameters(), self.limit)
                applied = self._apply(torch.isfinite(norm) & torch.isfinite(nats))
            if applied and watch is not None:
                watch()
            self.optimizer.zero_grad(set_to_none=True)
            update = Update(nats, norm, self.healthy, targets, skipped, name)
            if applied:
                return update
        raise update.diverged(number, nats.item(), norm.item(), MAX_SKIPPED)

    def _apply(self, finite: torch.Tensor) -> bool:
        """Applies the gradients where they, and all before them, are `finite`; False: an fp16 overflow."""
        if self.scaler.is_enabled():
            if good := bool(finite):
                self.scaler.step(self.optimizer)
            self.scaler.update()
            return good
        self.healthy = self.healthy & finite
        if self.gated:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~self.healthy).float()  # type: ignore[attr-defined]
        if self.gated or bool(self.healthy):
            self.optimizer.step()
        return True


def is_memory_error(error: BaseException) -> bool:
    """Is it one of the ways in which torch says that memory is full?"""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


@contextlib.contextmanager
def memory_errors(rows: int, length: int) -> Iterator[None]:
    """Says what to do where micro-batches of `rows` x `length` do not fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        detail = next(line for line in str(error).splitlines() if line.strip())
        raise OutOfMemory(
            f"out of memory with micro-batches of {rows} rows x {length} tokens ({detail}); halve trainer.batch_size "
            "and double trainer.gradient_accumulation_steps for the same updates"
        ) from error
