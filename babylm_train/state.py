"""Plain data that passes between the rooms, and what the loop asks of others. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LOSS = "val/loss"  # nats a target: what best and early stopping follow, unless trainer.metric says otherwise
IGNORE = -100  # a target that is no target: padding of an incomplete row


class MinimalPair(NamedTuple):
    """Two sentences of which a speaker accepts only `good`."""

    good: str
    bad: str
    phenomenon: str


@dataclass
class Batch:
    """A micro-batch of packed rows.

    inputs, targets and position_ids are int64 of shape (rows, max_length); position_ids restart at 0 at each document,
    which is what isolates attention by document. `tokens` counts the valid targets, `words` the whitespace words that
    start in them. `epoch` and `first_row` name the rows, so that an objective can derive its masking from them;
    `update` (from 0) and `progress` (share of the budget spent) are the clock's. `both_ways`: attention is not causal.
    places: int64 (K,), the flattened positions that have a target, where these are few; None: not listed.
    """

    inputs: Tensor
    targets: Tensor
    position_ids: Tensor
    tokens: int
    words: int
    epoch: int = 0
    first_row: int = 0
    update: int = 0
    progress: float = 0.0
    both_ways: bool = False
    places: Tensor | None = None

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = {name: getattr(self, name) for name in ("inputs", "targets", "position_ids", "places")}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if getattr(device, "type", device) == "cuda":  # only from pinned memory is the copy asynchronous
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def take(self, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ...; where there are none, a row without targets: all have a part in an update."""
        if world == 1:
            return self
        rows = slice(rank, None, world) if rank < len(self.inputs) else slice(0, 1)
        taken = replace(
            self, inputs=self.inputs[rows], targets=self.targets[rows], position_ids=self.position_ids[rows]
        )
        if rank >= len(self.inputs):
            taken.targets = taken.targets.new_full(taken.targets.shape, IGNORE)
        if self.places is not None:
            taken.places = (taken.targets.flatten() != IGNORE).nonzero().squeeze(1)
        return taken


@dataclass
class RunState:
    """Everything the trainer itself changes while training; all of it is in every checkpoint.

    `updates` counts applied updates, `epoch` finished epochs, `epoch_update` the updates done in the current one.
    Losses are sums in nats beside the number of targets they are over: `window_*` since the last log line, `epoch_*`
    since the epoch began.
    """

    updates: int = 0
    epoch: int = 0
    epoch_update: int = 0
    tokens: int = 0
    words: int = 0
    skipped: int = 0
    window_nats: float = 0.0
    window_targets: int = 0
    epoch_nats: float = 0.0
    epoch_targets: int = 0
    epoch_loss: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    raw_bits_per_byte: float = math.inf  # the lowest of an evaluation's without trainer.average
    best_loss: float | None = None  # of trainer.metric: a validation loss, or 1 - an accuracy
    best_update: int = 0
    stop_loss: float | None = None  # what early stopping compares with
    bad_evaluations: int = 0
    stopped: bool = False
    evaluated: int = -1  # the update of the last evaluation
    run_id: str | None = None

    def count_update(self, nats: float, targets: int, tokens: int, words: int, skipped: int) -> None:
        """One more update was applied, on so many targets of as many tokens; `skipped` overflows came before it."""
        self.updates, self.epoch_update, self.skipped = self.updates + 1, self.epoch_update + 1, self.skipped + skipped
        self.tokens, self.words = self.tokens + tokens, self.words + words
        self.window_nats, self.window_targets = self.window_nats + nats, self.window_targets + targets
        self.epoch_nats, self.epoch_targets = self.epoch_nats + nats, self.epoch_targets + targets

    def is_due(self, every: int | None) -> bool:
        """Is it one of each `every` updates?"""
        return every is not None and self.updates % every == 0

    def place(self, updates: int, epochs: int) -> dict[str, float]:
        """Where a run of so many updates and epochs is, as every line of its record says."""
        epoch = round(self.updates / updates * epochs, 4)
        return {"step": self.updates, "epoch": epoch, "tokens": self.tokens, "words": self.words}

    def close_window(self) -> float:
        """The training loss since the last log line; the next window begins."""
        self.train_loss = self.window_nats / self.window_targets
        self.window_nats, self.window_targets = 0.0, 0
        return self.train_loss

    def close_epoch(self) -> None:
        """The next epoch begins."""
        self.epoch_loss = self.epoch_nats / self.epoch_targets
        self.epoch, self.epoch_update, self.epoch_nats, self.epoch_targets = self.epoch + 1, 0, 0.0, 0

    def describe_epoch(self, part: EpochSlice, epochs: int) -> str:
        """The epoch that has just ended, in one line."""
        pool = f"{len(part.pool):,} documents at threshold {part.threshold:.2f}"
        loss = f"loss {self.epoch_loss:.4f}, val loss {self.val_loss:.4f}, bits per byte {self.bits_per_byte:.4f}"
        done = f"{self.updates} updates, {self.words:,} words" + ", stopped early" * self.stopped
        return f"epoch {self.epoch}/{epochs}: {pool}; {loss}; {done}; checkpoint_epoch_{self.epoch}.pt"

    def note_evaluation(self, result: Evaluation, raw: Evaluation) -> None:
        """Takes in an evaluation's figures; `raw`: of the weights without trainer.average."""
        self.val_loss, self.perplexity, self.bits_per_byte = result.loss, result.perplexity, result.bits_per_byte
        self.raw_bits_per_byte = min(self.raw_bits_per_byte, raw.bits_per_byte)

    def judge(self, loss: float, patience: int | None, min_delta: float) -> bool:
        """Takes in an evaluation's loss: is it the best so far? Sets `stopped` after `patience` that are not better."""
        self.evaluated = self.updates
        if self.stop_loss is None or loss < self.stop_loss - min_delta:
            self.stop_loss, self.bad_evaluations = loss, 0
        else:
            self.bad_evaluations += 1
        self.stopped = patience is not None and self.bad_evaluations >= patience
        improved = self.best_loss is None or loss < self.best_loss
        if improved:
            self.best_loss, self.best_update = loss, self.updates
        return improved


@dataclass(frozen=True)
class Evaluation:
    """Exact result over a text: `loss` is nats per target, every target counted once.

    pseudo: of hidden tokens, each predicted from both sides; not comparable with a causal model's. unknown: tokens that
    are the unknown one, whose text no loss counts.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    word_perplexity: float
    tokens: int
    words: int
    bytes: int
    pseudo: bool = False
    unknown: int = 0

    def figures(self) -> dict[str, float]:
        """The loss and what derives from it, under names that keep pseudo-likelihoods apart."""
        names = ("perplexity", "bits_per_byte", "word_perplexity")
        return {"loss": self.loss, **{f"{'pseudo_' * self.pseudo}{n}": getattr(self, n) for n in names}}


@dataclass(frozen=True)
class EpochSlice:
    """What an epoch trains on: one slice of the update budget.

    order: document ids in training order, drawn again where the pool is smaller than the slice, shape (M,).
    start: targets of the first document that an earlier slice already used.
    targets: valid targets in the slice; updates: optimizer steps in the slice. parts: that each row is cut into.
    """

    epoch: int
    threshold: float
    pool: np.ndarray
    order: np.ndarray
    start: int
    targets: int
    updates: int
    parts: int = 1


class Callback:
    """Something of one's own to do at moments of a run; see examples/ablation.py."""

    def at_start(self, trainer: Any) -> None:
        """Before the first update, or the first one after a resume."""

    def after_update(self, trainer: Any) -> None:
        """After each update, before anything is logged, evaluated or saved; `trainer.state` counts it."""

    def after_evaluation(self, trainer: Any, values: dict[str, float]) -> None:
        """After each validation; `values` are what was logged of it: val/loss, pairs/all, ..."""

    def at_end(self, trainer: Any) -> None:
        """After the last update, before the best weights are exported."""

    def adopt(self, directory: Path, words: int) -> None:
        """Before that, where the run goes on from another run's `directory`, at so many words."""


class OneProcess:
    """A run in one process: nothing to share, nobody to agree with.

    rank: the process's number of `world`; local: its number on this machine, which is that of its GPU.
    """

    rank = 0
    world = 1
    local: int | None = None

    @contextlib.contextmanager
    def join(self, cuda: bool) -> Iterator[OneProcess]:
        """Inside, the processes of the run know each other; `cuda`: they train on GPUs."""
        yield self

    @property
    def is_main(self) -> bool:
        """Is it the one that writes?"""
        return self.rank == 0

    def first_on_machine(self) -> AbstractContextManager[None]:
        """One process of each machine is inside before the others: what it caches they read."""
        return contextlib.nullcontext()

    def share(self, value: Any = None) -> Any:
        """The main process's `value`, to all."""
        return value

    def agree(self, flag: bool) -> bool:
        """Does any process say so?"""
        return flag

    def add(self, *tensors: Tensor | None) -> None:
        """Each tensor becomes its sum over processes; None stays."""

    def begin(self, model: Any) -> None:
        """Before the first update: all have the same weights."""

    def deal(self, batches: list[Batch], update: int) -> list[Batch]:
        """This process's rows of the micro-batches of an update, before which each seeds what it draws."""
        return batches

    def survive(self, save: Callable[[str], object]) -> AbstractContextManager[None]:
        """Where another process is gone, `save` is called with what happened."""
        return contextlib.nullcontext()

    def leave(self) -> OneProcess:
        """The processes part; what is left to do is one's own."""
        return self


ALONE = OneProcess()
