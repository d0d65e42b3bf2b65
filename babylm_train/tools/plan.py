"""What a run is going to do, before it does it: `python -m babylm_train.plan [overrides as for a run]`.

A plan is computed by the code that the run itself asks (the curriculum, the LR scheduler, the packing's arithmetic), so
the two cannot disagree. Only an adaptive threshold has no known future: those rows are marked as an assumption.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from babylm_train.curriculum.sampler import exposures
from babylm_train.errors import InputError, RunError, fail
from babylm_train.model.size import Size, size_of
from babylm_train.state import EpochSlice

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from babylm_train.build import Run
    from babylm_train.curriculum.sampler import CurriculumTrainingManager

MAX_EXPOSURES = 20  # more often than this a document is learnt by heart rather than learnt from
MAX_FINAL_LR = 0.2  # share of the peak: a decay that ends higher was sized for another number of updates


@dataclass(frozen=True)
class Row:
    """One epoch. `documents` and `words` are admitted, `tokens` and `words_seen` are trained on.

    learning_rate: of the epoch's first update. difficulty: mean over the pool. lowest, highest: the threshold if every
    validation before got worse, or better; where they differ, `assumed` is true and `threshold` is the one of a run
    whose validations move nothing.
    """

    epoch: int
    threshold: float
    documents: int
    words: int
    difficulty: float
    updates: int
    learning_rate: float
    tokens: int
    words_seen: int
    lowest: float
    highest: float
    assumed: bool


@dataclass(frozen=True)
class Exposure:
    """How often documents were begun: over all of them, and the mean of each tenth of the ranking, easiest first.

    Tenths are None where there are fewer documents, or no ranking. `hardest_decile` is the tenth that is ranked last
    (under `reverse: true` these are the easiest).
    """

    maximum: int
    median: float
    minimum: int
    deciles: tuple[float | None, ...]
    hardest_decile: float | None


@dataclass(frozen=True)
class Plan:
    """A run, epoch by epoch, and in all.

    updates: what the rows add up to; planned_updates: what the LR schedule is sized for (more only under single_pass
    with an adaptive threshold). updates_range: if every validation gets worse, or better. final_lr: after the last
    update; peak_lr: the largest of any update.
    """

    rows: tuple[Row, ...]
    updates: int
    planned_updates: int
    updates_range: tuple[int, int]
    tokens: int
    words: int
    exposure: Exposure
    peak_lr: float
    final_lr: float
    size: Size | None
    warnings: tuple[str, ...]

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the whole run; None where the size is not known."""
        return None if self.size is None else self.tokens * self.size.flops_per_token

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        values = asdict(self)
        if self.size:
            values |= {"parameters": self.size.parameters, "flops": self.flops}
            values |= {"memory": self.size.memory()}
        return values

    def table(self) -> str:
        """The plan as it is printed."""
        lines = [*_table(self.rows), "", *(f"  {name:<24}{value}" for name, value in self._totals())]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def _totals(self) -> list[tuple[str, str]]:
        seen, (least, most) = self.exposure, self.updates_range
        among = f" (between {least:,} and {most:,})" if least != most else ""
        sized = (
            f"; the LR schedule is sized for {self.planned_updates:,}" if self.planned_updates != self.updates else ""
        )
        totals = [
            ("updates", f"{self.updates:,}{among}{sized}"),
            ("tokens seen", f"{self.tokens:,}"),
            ("words seen", f"{self.words:,}"),
            ("exposures a document", f"max {seen.maximum}, median {seen.median:g}, min {seen.minimum}"),
        ]
        if seen.hardest_decile is not None:
            tenths = " ".join("-" if d is None else f"{d:.1f}" for d in seen.deciles)
            totals += [
                ("hardest decile", f"{seen.hardest_decile:.2f} exposures"),
                ("by decile", f"{tenths} (easiest first)"),
            ]
        totals.append(("learning rate", f"peak {self.peak_lr:.3g}, at the end {self.final_lr:.3g}"))
        if self.size:
            parts = {name: _bytes(size) for name, size in self.size.memory().items()}
            whole = parts.pop("total")
            totals += [
                ("parameters", f"{self.size.parameters:,}"),
                ("training FLOPs", f"{self.flops:.3g} (6 N D + 12 layers width context D)"),
                ("memory, estimated", f"{whole} ({', '.join(f'{name} {size}' for name, size in parts.items())})"),
            ]
        return totals


def make_plan(
    curriculum: CurriculumTrainingManager,
    learning_rate: Callable[[int], float],
    word_starts: np.ndarray,
    *,
    eval_every: int | None = None,
    size: Size | None = None,
    word_budget: int | None = None,
) -> Plan:
    """The plan of a run that has not begun; changes nothing that it is given.

    Args:
        curriculum: a manager whose `begin` was called.
        learning_rate: of the update after so many applied ones, defined from 0 to the planned total.
        word_starts: words that begin in each token of the training split, shape (targets of all documents,).
        eval_every: updates between validations, beside those at each epoch's end; matters to adaptive thresholds only.
        size: of the model; None leaves FLOPs and memory out.
        word_budget: words that the run may see in all, repetitions counted; None: no limit.
    """
    parts = _preview(curriculum)
    worse, better = parts, parts
    if curriculum.schedule.adaptive or curriculum.strategy.adaptive:
        worse = _preview(curriculum, lambda validation: float(validation), eval_every)
        better = _preview(curriculum, lambda validation: -float(validation), eval_every)
    *starts, updates = accumulate((part.updates for part in parts), initial=0)
    rates = [learning_rate(update) for update in range(updates)]
    futures = zip_longest(parts, worse[: len(parts)], better[: len(parts)])
    rows = [_row(curriculum, *future, rates[at], word_starts) for at, future in zip(starts, futures, strict=True)]
    plan = Plan(
        rows=tuple(rows),
        updates=updates,
        planned_updates=curriculum.total_updates,
        updates_range=_range(sum(part.updates for part in future) for future in (worse, parts, better)),
        tokens=sum(row.tokens for row in rows),
        words=sum(row.words_seen for row in rows),
        exposure=_exposure(curriculum, parts),
        peak_lr=max(rates),
        final_lr=learning_rate(updates),
        size=size,
        warnings=(),
    )
    return replace(plan, warnings=tuple(_warnings(plan, curriculum.min_pool, word_budget)))


def _row(
    curriculum: CurriculumTrainingManager,
    part: EpochSlice,
    worse: EpochSlice | None,
    better: EpochSlice | None,
    learning_rate: float,
    word_starts: np.ndarray,
) -> Row:
    thresholds = [part.threshold, *(other.threshold for other in (worse, better) if other)]
    admitted = len(part.pool)
    return Row(
        epoch=part.epoch + 1,
        threshold=part.threshold,
        documents=admitted,
        words=int(curriculum.cumulative_words[admitted - 1]),
        difficulty=float(curriculum.scores[part.pool].mean()),
        updates=part.updates,
        learning_rate=learning_rate,
        tokens=part.targets,
        words_seen=count_words(part, curriculum.targets, curriculum.words, word_starts),
        lowest=min(thresholds),
        highest=max(thresholds),
        assumed=len(set(thresholds)) > 1,
    )


def _preview(
    curriculum: CurriculumTrainingManager,
    loss: Callable[[int], float] | None = None,
    eval_every: int | None = None,
) -> list[EpochSlice]:
    """The slices of a run whose n-th validation gives loss(n), from 1; None: of one whose validations move nothing."""
    run = copy.copy(curriculum)
    run.records, run.history, run.strategy = [], [], copy.deepcopy(curriculum.strategy)
    run.admitted = partial(curriculum.admitted, quiet=True)  # type: ignore[method-assign]  # the run itself will warn
    parts: list[EpochSlice] = []
    done = validations = 0
    while len(parts) < run.epochs and done < run.total_updates:
        part = run.prepare_epoch(len(parts))
        parts.append(part)
        for update in range(1, part.updates + 1):
            if loss and (update == part.updates or (eval_every and (done + update) % eval_every == 0)):
                validations += 1
                at = (len(parts), 0) if update == part.updates else (part.epoch, update)
                run.report_performance(loss(validations), run.progress_at(*at))
        done += part.updates
    return parts


def count_words(part: EpochSlice, targets: np.ndarray, words: np.ndarray, word_starts: np.ndarray) -> int:
    """Words that begin in the targets of a slice.

    Args:
        targets, words: of each document, shape (N,). word_starts: of each token, shape (targets.sum(),).
    """
    offsets = np.concatenate([[0], np.cumsum(targets)])
    begin = np.concatenate([[0], np.cumsum(targets[part.order])])

    def before(position: int) -> int:
        """Words that begin in the first `position` tokens of the slice's stream of documents."""
        whole = int(np.searchsorted(begin, position, side="right")) - 1
        counted = int(words[part.order[:whole]].sum(dtype=np.int64))
        if position > begin[whole]:
            start = offsets[part.order[whole]]
            counted += int(word_starts[start : start + position - begin[whole]].sum(dtype=np.int64))
        return counted

    # Position i predicts position i + 1. The mark that closes the last document is no word.
    end = min(part.start + part.targets + 1, int(begin[-1]))
    return before(end) - before(part.start + 1)


def exposure_so_far(curriculum: CurriculumTrainingManager, updates: int) -> Exposure:
    """How often documents were begun in the first `updates` updates of a run, from its own records."""
    parts: list[EpochSlice] = []
    for epoch in range(len(curriculum.records)):
        part = curriculum.prepare_epoch(epoch)
        targets = min(part.targets, updates * curriculum.targets_per_update)
        parts.append(replace(part, targets=targets))
        updates = max(updates - part.updates, 0)
    return _exposure(curriculum, parts)


def _exposure(curriculum: CurriculumTrainingManager, parts: Sequence[EpochSlice]) -> Exposure:
    seen = exposures(parts, curriculum.targets)
    deciles: list[float | None] = [None] * 10
    if curriculum.strategy.ranks:
        bounds = [tenth * len(seen) // 10 for tenth in range(11)]
        tenths = [seen[curriculum.ranked[bounds[i] : bounds[i + 1]]] for i in range(10)]
        deciles = [float(tenth.mean()) if len(tenth) else None for tenth in tenths]
    return Exposure(int(seen.max()), float(np.median(seen)), int(seen.min()), tuple(deciles), deciles[-1])


def _warnings(plan: Plan, min_pool: int, word_budget: int | None) -> list[str]:
    found = []
    if plan.peak_lr > 0 and plan.final_lr > MAX_FINAL_LR * plan.peak_lr:
        share = plan.final_lr / plan.peak_lr
        found.append(f"the learning rate ends at {share:.0%} of its peak ({plan.final_lr:.3g} of {plan.peak_lr:.3g})")
    unseen = [str(i + 1) for i, mean in enumerate(plan.exposure.deciles) if mean == 0]
    if unseen:
        found.append(f"never seen: decile{'s' * (len(unseen) > 1)} {', '.join(unseen)} of the ranking (10: hardest)")
    if plan.exposure.maximum > MAX_EXPOSURES:
        found.append(f"a document is seen {plan.exposure.maximum} times (more than {MAX_EXPOSURES})")
    if word_budget is not None and plan.words > word_budget:
        found.append(f"{plan.words:,} words are seen, more than the budget of {word_budget:,}")
    if min_pool > 1 and any(row.documents == min_pool for row in plan.rows):
        found.append(f"the pool of an epoch is the smallest allowed, min_pool = {min_pool}")
    assumed = sum(row.assumed for row in plan.rows)
    if assumed:
        found.append(
            f"the threshold of {assumed} epoch{'s' * (assumed > 1)} (marked *) follows the validation loss and is not "
            "known yet: those rows, and all totals but the matched budget, assume that no validation moves it"
        )
    return found


def _range(values: Any) -> tuple[int, int]:
    found = list(values)
    return min(found), max(found)


def _table(rows: Sequence[Row]) -> list[str]:
    assumed = any(row.assumed for row in rows)
    head = [
        "epoch",
        "threshold",
        "documents",
        "words",
        "difficulty",
        "updates",
        "LR at start",
        "tokens seen",
        "words seen",
    ]
    cells = [
        [
            f"{row.epoch}{'*' * row.assumed}",
            f"{row.threshold:.4f}",
            f"{row.documents:,}",
            f"{row.words:,}",
            f"{row.difficulty:.4f}",
            f"{row.updates:,}",
            f"{row.learning_rate:.3e}",
            f"{row.tokens:,}",
            f"{row.words_seen:,}",
        ]
        for row in rows
    ]
    if assumed:
        head.insert(2, "possible")
        for row, line in zip(rows, cells, strict=True):
            line.insert(2, f"{row.lowest:.2f}..{row.highest:.2f}" if row.assumed else "")
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *cells]]


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def learning_rates(scheduler: LRScheduler, updates: int) -> list[float]:
    """The LR of the first parameter group after 0, 1 ... `updates` steps of `scheduler`, which stays as it is.

    Any LRScheduler will do: a copy of it drives a stand-in for the optimizer, without its weights.
    """
    import torch

    optimizer = scheduler.optimizer
    groups = [
        {**copy.deepcopy({k: v for k, v in group.items() if k != "params"}), "params": [torch.zeros(1)]}
        for group in optimizer.param_groups
    ]
    clone = copy.deepcopy(scheduler, {id(optimizer): torch.optim.SGD(groups, lr=0.0)})
    rates = [float(clone.get_last_lr()[0])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stand-in is never stepped
        for _ in range(updates):
            clone.step()
            rates.append(float(clone.get_last_lr()[0]))
    return rates


def plan_of(run: Run, word_budget: int | None = None) -> Plan:
    """The plan of a built run; call it before anything is restored or trained.

    Raises:
        InputError: the run breaks its track; with the figures.
    """
    trainer, options = run.trainer, run.trainer.options
    context = trainer.max_length
    size = size_of(
        trainer.model,
        trainer.optimizer,
        context=context,
        rows=options.batch_size,
        activation_bytes=4 if getattr(trainer.precision, "dtype", "float32") == "float32" else 2,
        checkpointing=options.gradient_checkpointing,
    )
    plan = make_plan(
        trainer.curriculum,
        learning_rates(trainer.scheduler, trainer.curriculum.total_updates).__getitem__,
        trainer.train_split.word_starts,
        eval_every=options.eval_every,
        size=size,
        word_budget=word_budget,
    )
    run.track.refuse(int(trainer.train_split.words.sum()), plan.words, plan.updates, run.outside)
    return replace(plan, warnings=plan.warnings + run.track.warnings(plan.words))


def main() -> None:
    """Prints the plan of a run, or of a sweep's first job and each change of one key; trains nothing, fills the cache.

    A job that its track refuses is said to be, and the others are planned all the same.
    """
    from hydra._internal.utils import get_args_parser

    from babylm_train import build
    from babylm_train.config import check_command_line

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    refused: list[InputError] = []
    try:
        args = get_args_parser().parse_args()
        for config in check_command_line(args.overrides, args.config_name or "config", args.config_dir):
            directory = Path(config.hydra.run.dir)
            run = build.build(config, directory, build.parts(config), lambda: False)
            try:
                text = plan_of(run).table()
            except InputError as error:
                refused.append(error)
                text = f"refused: {error}"
            print(f"\nplan of {directory.name}\n{text}\n", flush=True)
    except RunError as error:
        fail(error)
    if refused:
        fail(refused[0])


if __name__ == "__main__":
    main()
