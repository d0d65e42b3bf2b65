"""What passes between the parts: plain data and the protocols the parts fulfil. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

IGNORE = -100  # a target that is no target: padding of an incomplete row


class Document(NamedTuple):
    """One training text, the unit a curriculum scores, and where it came from."""

    text: str
    source: str = ""


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

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = {name: getattr(self, name) for name in ("inputs", "targets", "position_ids")}
        if getattr(device, "type", device) == "cuda":  # only from pinned memory is the copy asynchronous
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


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
    best_loss: float | None = None  # of trainer.metric: a validation loss, or 1 - an accuracy
    best_update: int = 0
    stop_loss: float | None = None  # what early stopping compares with
    bad_evaluations: int = 0
    stopped: bool = False
    evaluated: int = -1  # the update of the last evaluation
    run_id: str | None = None


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
    targets: valid targets in the slice; updates: optimizer steps in the slice.
    """

    epoch: int
    threshold: float
    pool: np.ndarray
    order: np.ndarray
    start: int
    targets: int
    updates: int


class Strategy(Protocol):
    """Ranks documents by difficulty; see CURRICULUM semantics in the README."""

    name: str
    ranks: bool
    adaptive: bool

    def compute_difficulty(self, documents: Sequence[str]) -> np.ndarray:
        """One finite float64 a document, shape (N,); larger is admitted later."""
        ...

    @property
    def threshold(self) -> float | None:
        """The strategy's own threshold, or None where only the schedule decides."""
        ...

    def upper_bound(self, progress: float) -> float:
        """The largest threshold of its own that is possible, 1.0 where it has none."""
        ...

    def update_difficulty_threshold(self, val_loss: float) -> float: ...

    def identity(self) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Schedule(Protocol):
    """Says which share of the training data is admitted."""

    adaptive: bool

    def threshold(self, progress: float, history: Sequence[tuple[float, float]] = ()) -> float:
        """Share in (0, 1] at `progress` in [0, 1]; `history` holds (progress, validation loss) of each validation."""
        ...

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible at `progress`, whatever the history."""
        ...


class Objective(Protocol):
    """From a batch to its summed loss.

    likelihood: `causal`, or `pseudo` where the validation loss is that of hidden tokens. encoder: trains encoders, not
    decoders. backends: how the BabyLM evaluation can read the model (causal, mlm, mntp).
    """

    likelihood: str
    encoder: bool
    backends: tuple[str, ...]

    def begin(self, tokenizer: Any) -> Objective: ...

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The batches to add up for an exact evaluation of `batch`."""
        ...

    def prepare(self, batch: Batch) -> Batch: ...

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss over the batch's targets, in nats, float32 scalar."""
        ...


class Precision(Protocol):
    """Autocast and loss scaling, one code path whatever the precision."""

    @property
    def inside(self) -> Any:
        """The dtype of matrix products."""
        ...

    def scaler(self, device: Any) -> Any: ...

    def autocast(self, device: Any) -> Any: ...


class Logger(Protocol):
    """Mirrors the record elsewhere; nothing it does may change or stop the run."""

    def start(
        self, directory: Path, *, name: str, group: str, config: dict[str, Any], run_id: str | None, step: int, arm: str
    ) -> str: ...

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def log_gradients(self, model: nn.Module, step: int) -> None: ...

    def log_checkpoint(self, path: Path, *, best: bool) -> None: ...

    def finish(self, summary: dict[str, Any], *, exit_code: int = 0) -> None: ...


class Source(Protocol):
    """Where a corpus comes from; cheap to build, `load` reads."""

    max_length: int
    cache_dir: str

    def load(self) -> Any: ...
