"""Threshold -> pool -> order: which documents an epoch trains on, as a pure function of (seed, epoch, thresholds)."""

from __future__ import annotations

import logging
from dataclasses import field
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from babylm_train.errors import InputError, arguments
from babylm_train.state import EpochSlice

log = logging.getLogger(__name__)
SHUFFLE = 0x5EED  # keeps the shuffling stream apart from other uses of the seed


@arguments(frozen=False)
class CurriculumTrainingManager:
    """Decides what each epoch trains on: `begin` once, then `prepare_epoch` and, as losses come, `report_performance`.

    An epoch is a slice of the run's updates, which are fixed before step 0, as the LR schedule needs it. With `matched`
    pacing it has the targets of a full pass, or its share of `max_steps`: the pool is drawn without replacement, again
    and again until they are spent, and a draw that is not finished goes on in the next slice while the pool stays the
    same. With `single_pass` it is one pass over its pool. The threshold is a share of the documents (`rank`), of their
    words, or of the range of the scores; `min_pool` documents are admitted at least. `lengths`: targets a row in equal
    shares of the run, before the last share has rows of full length; an update has as many targets throughout.
    """

    strategy: Any  # a Curriculum
    schedule: Any  # a Schedule
    pacing: Literal["matched", "single_pass"] = "matched"
    threshold_on: Literal["rank", "words", "score"] = "rank"
    min_pool: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    lengths: list[Annotated[int, Field(ge=2)]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history: list[tuple[float, float]] = []
        self.records: list[dict[str, Any]] = []  # one an epoch that has begun

    def begin(
        self,
        scores: np.ndarray,
        words: np.ndarray,
        targets: np.ndarray | None = None,
        *,
        epochs: int = 1,
        max_steps: int | None = None,
        targets_per_update: int = 1,
        max_length: int = 1,
    ) -> CurriculumTrainingManager:
        """Fixes ranking and budget before step 0.

        `scores`, `words` and `targets` (tokens and the closing mark; default: the words) are of each document, shape
        (N,). An update has `targets_per_update`, a row of it `max_length`. `max_steps` None: an epoch is a full pass.
        """
        self.scores, self.words = np.asarray(scores, dtype=np.float64), np.asarray(words, dtype=np.int64)
        self.targets = self.words if targets is None else np.asarray(targets, dtype=np.int64)
        if self.scores.shape != self.words.shape:
            raise InputError(f"curriculum.strategy: {self.scores.shape} scores for {self.words.shape} documents")
        for bad in np.flatnonzero(~np.isfinite(self.scores)):
            raise InputError(f"curriculum.strategy: document {bad} has the score {self.scores[bad]}")
        self.ranked = np.lexsort((_hash(len(self.scores), self.seed), self.scores))
        self.cumulative_targets, self.cumulative_words = (np.cumsum(n[self.ranked]) for n in (self.targets, self.words))
        self.targets_per_update, self.max_length = targets_per_update, max_length
        if any(max_length % length for length in self.lengths):
            raise InputError(f"curriculum.lengths={self.lengths}: data.max_length={max_length} is no multiple of each")
        self._count_epochs(epochs, max_steps)
        if len(self.lengths) >= self.epochs:
            raise InputError(f"curriculum.lengths={self.lengths}: full rows come last, which {self.epochs} epochs lack")
        self.slice_targets = self._divide_budget(max_steps)
        self.total_updates = sum(map(self._updates, self.slice_targets))
        self._warn()
        return self

    def _count_epochs(self, epochs: int, max_steps: int | None) -> None:
        self.planned_epochs, self.epochs = epochs, min(epochs, max_steps or epochs)

    def warn_of_full(self, epochs: int, max_steps: int | None) -> None:
        """Warns where a strategy ranks in vain, because every epoch admits everything."""
        self._count_epochs(epochs, max_steps)
        if self.strategy.ranks and all(self.threshold(epoch) >= 1.0 for epoch in range(self.epochs)):
            log.warning(
                "%s changes nothing: every epoch admits everything; it takes a curriculum/schedule that grows, as "
                "linear does, and more than one epoch",
                type(self.strategy).__name__,
            )

    def _divide_budget(self, max_steps: int | None) -> list[int]:
        """Targets of each epoch; under `single_pass` the most that a threshold which follows the losses can admit."""
        if self.pacing == "single_pass":
            if max_steps:
                raise InputError("curriculum.pacing=single_pass is sized by trainer.epochs: set trainer.max_steps=null")
            own = self.strategy.max_threshold if self.strategy.adaptive else 1.0
            bounds = [min(self.schedule.upper_bound(self.progress(epoch)), own) for epoch in range(self.epochs)]
            return [int(self.cumulative_targets[self.admitted(bound) - 1]) for bound in bounds]
        if max_steps:
            ends = [epoch * max_steps // self.epochs for epoch in range(self.epochs + 1)]
            return [(end - begin) * self.targets_per_update for begin, end in pairwise(ends)]
        return [int(self.cumulative_targets[-1])] * self.epochs

    def _warn(self) -> None:
        strategy, schedule = self.strategy, self.schedule
        if strategy.ranks and len(self.scores) > 1 and self.scores.min() == self.scores.max():
            log.warning("every document has the difficulty %g: their order is random", self.scores[0])
        if self.pacing == "single_pass" and (schedule.adaptive or strategy.adaptive):
            log.warning("single_pass with an adaptive threshold: the LR is sized for the largest pool possible")

    def _updates(self, targets: int) -> int:
        rows = -(-targets // self.max_length)
        return -(-rows * self.max_length // self.targets_per_update)

    def admitted(self, threshold: float) -> int:
        """How many of the easiest documents `threshold` admits; at least min_pool."""
        documents = len(self.scores)
        if not self.strategy.ranks:
            return documents
        if self.threshold_on == "rank":
            count = int(np.ceil(threshold * documents - 1e-9))
        elif self.threshold_on == "words":
            count = int(np.searchsorted(self.cumulative_words, threshold * self.cumulative_words[-1] - 1e-9)) + 1
        else:
            low, high = self.scores.min(), self.scores.max()
            count = int(np.count_nonzero((self.scores - low) <= threshold * (high - low)))
        return min(max(count, self.min_pool), documents)

    def threshold(self, epoch: int) -> float:
        """The share admitted from `epoch` on: the schedule's, bounded by the strategy's own where it has one."""
        if not self.strategy.ranks:
            return 1.0
        own = self.strategy.threshold if self.strategy.adaptive else 1.0
        return min(self.schedule.threshold(self.progress(epoch), self.history), own)

    def progress(self, epoch: int) -> float:
        """Share of the budget spent when `epoch` begins; where max_steps < epochs, when a slice's last epoch begins."""
        return (epoch + 1 - self.epochs / self.planned_epochs) / self.epochs

    def prepare_epoch(self, epoch: int) -> EpochSlice:
        """The pool of `epoch` and its order; the same again for an epoch that had begun before a resume."""
        self._check_begun()
        if epoch == len(self.records):
            self.records.append(self._record(epoch))
        record = self.records[epoch]
        pool, start, targets = self.ranked[: record["admitted"]], record["position"], record["targets"]
        draws = range(record["draw"], record["draw"] - (-(start + targets) // record["pool_targets"]))
        rngs = (np.random.default_rng([self.seed, SHUFFLE, draw]) for draw in draws)
        order = np.concatenate([rng.permutation(np.sort(pool)) for rng in rngs])
        lengths = [*self.lengths, self.max_length]
        parts = self.max_length // lengths[epoch * len(lengths) // self.epochs]
        return EpochSlice(epoch, record["threshold"], pool, order, start, targets, self._updates(targets), parts)

    def _check_begun(self) -> None:
        if not hasattr(self, "scores"):
            raise InputError("CurriculumTrainingManager: call begin(scores, words, epochs=...) first")

    def _record(self, epoch: int) -> dict[str, Any]:
        threshold = self.threshold(epoch)
        admitted = self.admitted(threshold)
        pool_targets = int(self.cumulative_targets[admitted - 1])
        draw = position = 0
        if epoch:
            last = self.records[epoch - 1]
            finished, position = divmod(last["position"] + last["targets"], last["pool_targets"])
            draw = last["draw"] + finished
            if position and admitted != last["admitted"]:
                draw, position = draw + 1, 0
        return {
            "threshold": float(threshold),
            "admitted": admitted,
            "words": int(self.cumulative_words[admitted - 1]),
            "difficulty": float(self.scores[self.ranked[:admitted]].mean()),
            "pool_targets": pool_targets,
            "draw": draw,
            "position": position,
            "targets": pool_targets if self.pacing == "single_pass" else self.slice_targets[epoch],
        }

    def figures(self, epoch: int) -> dict[str, float]:
        """What is logged of an epoch that has begun."""
        record = self.records[epoch]
        names = {"documents": "admitted", "words": "words", "difficulty": "difficulty", "targets": "targets"}
        return {"threshold": record["threshold"], **{f"curriculum/{k}": record[name] for k, name in names.items()}}

    def report_performance(self, val_loss: float, epoch: int | None = None, updates: int = 0) -> None:
        """Tells the adaptive parts a validation loss after `updates` of `epoch` (default: the latest is over)."""
        self._check_begun()
        epoch = len(self.records) if epoch is None else epoch
        inside = updates / self._updates(self.records[epoch]["targets"]) if updates else 0.0
        self.history.append(((epoch + inside) / self.epochs, val_loss))
        if self.strategy.adaptive:
            self.strategy.update_difficulty_threshold(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """What prepare_epoch needs beside the arguments, in plain types."""
        return {"records": list(self.records), "history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records, self.history = list(state["records"]), list(state["history"])
        if self.strategy.adaptive:
            self.strategy.losses = [loss for _, loss in self.history]


def _hash(count: int, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of document ids and the seed, shape (count,): the tie-break of equal scores."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(seed % 2**32 * 2**32 + 1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
