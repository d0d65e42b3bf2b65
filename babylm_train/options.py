"""What is set for the training loop and never changes while it runs."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from babylm_train.errors import InputError, arguments
from babylm_train.state import LOSS, OneProcess

WORLD = "WORLD_SIZE"  # as torchrun sets it
Count = Annotated[int, Field(ge=1, le=10**9)]


@arguments()
class EarlyStopping:
    """Stop after `patience` evaluations in a row whose loss is not `min_delta` below the best so far; None: never.

    Where trainer.metric is an accuracy, the loss is 1 - accuracy.
    """

    patience: Count | None = None
    min_delta: Annotated[float, Field(ge=0)] = 0.0


@arguments()
class Average:
    """A running mean of the weights, which is what is evaluated, exported and kept as best; both None: no mean.

    half_life: of an exponential mean, in epochs. last: share of the run, at its end, whose weights count alike.
    """

    half_life: Annotated[float, Field(gt=0)] | None = None
    last: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def check_kind(self) -> Average:
        """Is it one mean? Raises InputError."""
        if self.half_life is not None and self.last is not None:
            raise InputError("trainer.average.half_life and trainer.average.last are both given: set one to null")
        return self


@arguments()
class TrainerOptions:
    """How long and how to train; rows and updates are the units, `*_every` counts updates.

    epochs: slices of the budget; max_steps: updates in all (None: one pass over the corpus an epoch).
    batch_size: rows a micro-batch. export: `best` or `last`, the weights that are kept as the result.
    eval_pairs: a file of minimal pairs, scored at each validation; `corpus`: those that came with the corpus.
    metric: `val/loss`, or `pairs/all` or another accuracy of eval_pairs: decides `best` and early stopping.
    no_decay: kinds of parameters without weight decay.
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)]
    batch_size: Annotated[int, Field(ge=1, le=2**20)]
    max_steps: Count | None = None
    gradient_accumulation_steps: Count = 1
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    log_every: Count = 10
    eval_every: Count | None = None
    save_every: Count | None = None
    keep_last: Count = 2
    early_stopping: EarlyStopping = EarlyStopping()
    average: Average = Average()
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    device: str = "auto"
    export: Literal["best", "last"] = "best"
    eval_pairs: str | None = None
    metric: str = LOSS
    no_decay: list[Literal["norm", "bias", "embedding"]] = Field(default=["norm", "bias", "embedding"])

    @model_validator(mode="after")
    def check_metric(self) -> TrainerOptions:
        """Is the metric one that an evaluation gives? Raises InputError."""
        if self.metric != LOSS and not (self.eval_pairs and self.metric.startswith("pairs/")):
            raise InputError(f"trainer.metric must be {LOSS}, or with trainer.eval_pairs pairs/all, got {self.metric}")
        return self


class Alone(OneProcess):
    """A run in one process, as it has to be started."""

    def check(self) -> None:
        """Before anything is read: was the command started as this needs it? Raises InputError."""
        if int(os.environ.get(WORLD, 1)) > 1:
            raise InputError(f"{WORLD}={os.environ[WORLD]}: for several processes, as of torchrun, add distributed=ddp")
