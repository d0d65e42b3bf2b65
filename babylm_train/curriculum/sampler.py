"""Threshold -> pool -> order: which documents an epoch trains on, as a pure function of (seed, epoch, thresholds).

An epoch is one slice of the run's update budget. With `matched` pacing every slice has the budget of one full pass (or
its share of `max_steps`) whatever the pool: the pool is drawn without replacement, reshuffled and drawn again until the
slice's targets are spent, and a draw that is not finished goes on in the next slice as long as the pool stays the same.
With `single_pass` a slice is one pass over its pool. The total is fixed before step 0, so the LR schedule can trust it.
"""

from __future__ import annotations

import logging
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

    Args:
        strategy, schedule: how documents are ranked, and which share of them is admitted when.
        pacing: `matched` (same updates and targets for every arm) or `single_pass` (an epoch is a pass over its pool).
        threshold_on: what the threshold is a share of: `rank` (documents), `words`, or the min-max normalised `score`.
        min_pool: documents that are admitted at least.
        seed: of the shuffles and of the tie-break between equal scores.
    """

    strategy: Any  # a Curriculum
    schedule: Any  # a Schedule
    pacing: Literal["matched", "single_pass"] = "matched"
    threshold_on: Literal["rank", "words", "score"] = "rank"
    min_pool: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0

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

        Args:
            scores: difficulty a document, shape (N,). words: whitespace words a document, shape (N,).
            targets: training targets a document (its tokens and closing mark), shape (N,); default its words.
            epochs: slices of the budget. max_steps: updates in all; None: one pass over everything an epoch.
            targets_per_update: rows an update x max_length. max_length: targets a row.
        """
        self.scores, self.words = np.asarray(scores, dtype=np.float64), np.asarray(words, dtype=np.int64)
        self.targets = self.words if targets is None else np.asarray(targets, dtype=np.int64)
        if not len(self.scores):
            raise InputError("the training split has no document")
        for bad in np.flatnonzero(~np.isfinite(self.scores)):
            raise InputError(f"curriculum.strategy: document {bad} has the score {self.scores[bad]}")
        self.ranked = np.lexsort((_hash(len(self.scores), self.seed), self.scores))
        self.cumulative_targets = np.cumsum(self.targets[self.ranked])
        self.cumulative_words = np.cumsum(self.words[self.ranked])
        self.targets_per_update, self.max_length = targets_per_update, max_length
        self.planned_epochs, self.epochs = epochs, min(epochs, max_steps or epochs)
        self._fix_budget(max_steps)
        self._warn()
        return self

    def _warn(self) -> None:
        adaptive = self.schedule.adaptive or self.strategy.adaptive
        if not self.strategy.ranks and self.schedule.threshold(0.0) < 1.0:
            log.warning("curriculum/strategy=none ranks nothing, so its schedule admits everything throughout")
        if self.strategy.ranks and len(self.scores) > 1 and self.scores.min() == self.scores.max():
            log.warning("every document has the difficulty %g: their order is random", self.scores[0])
        if self.strategy.ranks and not adaptive and all(self.threshold(epoch) >= 1.0 for epoch in range(self.epochs)):
            log.warning(
                "curriculum/strategy=%s ranks, but curriculum/schedule admits everything in every epoch: take "
                "curriculum/schedule=linear, say, and more than one epoch",
                self.strategy.name,
            )
        if self.pacing == "single_pass" and adaptive:
            log.warning("single_pass with an adaptive threshold: the LR is sized for the largest pool possible")

    def _fix_budget(self, max_steps: int | None) -> None:
        if self.pacing == "single_pass" and max_steps:
            raise InputError("curriculum.pacing=single_pass is sized by trainer.epochs: trainer.max_steps must be null")
        per_epoch = [int(self.cumulative_targets[-1])] * self.epochs
        if self.pacing == "single_pass":
            at = [self.progress(epoch) for epoch in range(self.epochs)]
            own = self.strategy.max_threshold if self.strategy.adaptive else 1.0
            bounds = [min(self.schedule.upper_bound(p), own) for p in at]
            per_epoch = [int(self.cumulative_targets[self.admitted(c, quiet=True) - 1]) for c in bounds]
        updates = [self._updates(n) for n in per_epoch]
        if self.pacing == "matched" and max_steps:
            bounds_at = [epoch * max_steps // self.epochs for epoch in range(self.epochs + 1)]
            updates = [b - a for a, b in pairwise(bounds_at)]
            per_epoch = [n * self.targets_per_update for n in updates]
        self.slice_targets, self.total_updates = per_epoch, sum(updates)

    def _updates(self, targets: int) -> int:
        rows = -(-targets // self.max_length)
        return -(-rows * self.max_length // self.targets_per_update)

    def admitted(self, threshold: float, quiet: bool = False) -> int:
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
        floor = min(self.min_pool, documents)
        if count < floor and not quiet:
            log.warning("threshold %.3f admits %d documents: the pool grows to min_pool = %d", threshold, count, floor)
        return min(max(count, floor), documents)

    def threshold(self, epoch: int) -> float:
        """The share admitted from `epoch` on: the schedule's, bounded by the strategy's own where it has one."""
        if not self.strategy.ranks:
            return 1.0
        own = self.strategy.threshold if self.strategy.adaptive else 1.0
        return min(self.schedule.threshold(self.progress(epoch), self.history), own)

    def progress(self, epoch: int) -> float:
        """Share of the budget spent when `epoch` begins; where max_steps < epochs, when a slice's last epoch begins."""
        if self.epochs == self.planned_epochs:
            return epoch / self.epochs
        return (epoch + 1) / self.epochs - 1 / self.planned_epochs

    def prepare_epoch(self, epoch: int) -> EpochSlice:
        """The pool of `epoch` and its order; the same again for an epoch that had begun before a resume."""
        self._check_begun()
        if epoch == len(self.records):
            self.records.append(self._record(epoch))
        record = self.records[epoch]
        pool, targets = self.ranked[: record["admitted"]], record["targets"]
        need, drawn = record["position"] + targets, 0
        order: list[np.ndarray] = []
        while drawn < need:
            rng = np.random.default_rng([self.seed, SHUFFLE, record["draw"] + len(order)])
            order.append(rng.permutation(np.sort(pool)))
            drawn += record["pool_targets"]
        drawn_order, start, updates = np.concatenate(order), record["position"], self._updates(targets)
        return EpochSlice(epoch, record["threshold"], pool, drawn_order, start, targets, updates)

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

    def progress_at(self, epoch: int, update: int) -> float:
        """Share of the run when `update` updates of `epoch` are done: the clock that thresholds are read from."""
        inside = update / self._updates(self.records[epoch]["targets"]) if update else 0.0
        return (epoch + inside) / self.epochs

    def report_performance(self, val_loss: float, progress: float | None = None) -> None:
        """Tells the adaptive parts a validation loss, at a share of the run (default: the end of the current epoch)."""
        self._check_begun()
        progress = len(self.records) / self.epochs if progress is None else progress
        self.history.append((float(progress), float(val_loss)))
        if self.strategy.adaptive:
            self.strategy.update_difficulty_threshold(float(val_loss))

    def state_dict(self) -> dict[str, Any]:
        """Plain types only: what prepare_epoch needs beside the constructor's arguments."""
        return {
            "records": [dict(r) for r in self.records],
            "history": [list(pair) for pair in self.history],
            "strategy": self.strategy.state_dict() if self.strategy.adaptive else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records = [dict(r) for r in state["records"]]
        self.history = [(p, v) for p, v in state["history"]]
        if self.strategy.adaptive:
            self.strategy.load_state_dict(state["strategy"])


def _hash(count: int, seed: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) of document ids and the seed, shape (count,): the tie-break of equal scores."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed % 2**32 * 2**32 + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
