"""What a run is going to do, before it does it: `python -m babylm_train.plan [overrides as for a run]`.

One row an epoch, and the totals; of a sweep, its first job and each change of one key. Nothing is trained. The code
that the run itself asks (curriculum, scheduler, packing's arithmetic) computes it, so the two cannot disagree. Only a
threshold that follows the validation loss has no known future: those rows are marked.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from babylm_train.command import CommandLine, start
from babylm_train.errors import show_table
from babylm_train.state import EpochSlice
from babylm_train.throughput import Size, size_of

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from babylm_train.build import Run
    from babylm_train.curriculum.sampler import CurriculumTrainingManager

MAX_EXPOSURES = 20  # more often than this a document is learnt by heart rather than learnt from
MIN_UPDATES = 5  # a pass: with fewer, little text teaches little
MAX_FINAL_LR = 0.2  # share of the peak: a decay that ends higher was sized for another number of updates


@dataclass(frozen=True)
class Row:
    """One epoch. `documents` and `words` are admitted, `tokens` and `words_seen` are trained on.

    difficulty: mean over the pool. learning_rate: of the first update. assumed: a validation may move the threshold.
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
    assumed: bool


@dataclass(frozen=True)
class Exposure:
    """How often documents were begun: over all of them, and the mean of each tenth of the ranking, easiest first.

    Tenths are None where there are fewer documents, or no ranking. `hardest_decile` is the last.
    """

    maximum: int
    median: float
    minimum: int
    deciles: tuple[float | None, ...]
    hardest_decile: float | None


@dataclass(frozen=True)
class Group:
    """Weights of one learning rate and decay. horizon: passes over the corpus in which the decay divides one by e."""

    weights: int
    matrices: bool
    learning_rate: float
    weight_decay: float
    horizon: float | None

    def __str__(self) -> str:
        passes = "" if self.horizon is None else f", a horizon of {self.horizon:.3g} passes over the corpus"
        kind = "matrices" if self.matrices else "other weights"
        return f"  {self.weights} {kind}: peak {self.learning_rate:.3g}, weight decay {self.weight_decay:.3g}{passes}"


@dataclass(frozen=True)
class Plan:
    """A run, epoch by epoch, and in all.

    planned_updates: what the LR schedule is sized for (more than `updates` only under single_pass with an adaptive
    threshold). peak_lr: the largest of any update; final_lr: after the last one.
    """

    rows: list[Row]
    updates: int
    planned_updates: int
    tokens: int
    words: int
    exposure: Exposure
    peak_lr: float
    final_lr: float
    size: Size
    groups: tuple[Group, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole run."""
        return self.tokens * self.size.flops_per_token

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        size = {"parameters": self.size.parameters, "memory": self.size.memory}
        return {**asdict(self), **size, "flops": self.flops}

    def table(self) -> str:
        """The plan as it is printed."""
        rows = [
            asdict(row)
            | {"threshold": round(row.threshold, 4), "difficulty": round(row.difficulty, 4)}
            | {"learning_rate": f"{row.learning_rate:.3e}", "assumed": "*" * row.assumed}
            for row in self.rows
        ]
        seen, memory = self.exposure, self.size.memory.items()
        deciles = " ".join("-" if decile is None else f"{decile:.1f}" for decile in seen.deciles)
        ranked = "" if seen.hardest_decile is None else f"; by decile, easiest first: {deciles}"
        lines = [
            f"{self.updates:,} updates (LR schedule: {self.planned_updates:,}), {self.tokens:,} tokens seen, "
            f"{self.words:,} words seen",
            f"learning rate: peak {self.peak_lr:.3g}, at the end {self.final_lr:.3g}",
            *map(str, self.groups),
            f"exposures of a document: max {seen.maximum}, median {seen.median:g}, min {seen.minimum}{ranked}",
            f"{self.size.parameters:,} parameters; {self.flops:.3g} training FLOPs",
            f"memory, estimated: {', '.join(f'{name} {size / 2**20:,.0f} MiB' for name, size in memory)}",
        ]
        return "\n".join([show_table(rows), "", *lines, *(f"warning: {text}" for text in self.warnings)])


def make_plan(
    curriculum: CurriculumTrainingManager, rates: Sequence[float], word_starts: np.ndarray, size: Size
) -> Plan:
    """The plan of a run that has not begun; changes nothing that it is given.

    Args:
        rates: after 0, 1 ... updates, as `list_rates` gives them.
        word_starts: words that begin in each token of the training split, shape (targets of all documents,).
    """
    run = copy.copy(curriculum)
    run.records = []
    adaptive = curriculum.schedule.adaptive or curriculum.strategy.adaptive
    rows: list[Row] = []
    updates = 0
    while len(rows) < run.epochs and updates < run.total_updates:
        part = run.prepare_epoch(len(rows))
        row = Row(
            epoch=len(rows) + 1,
            threshold=part.threshold,
            documents=len(part.pool),
            words=run.records[-1]["words"],
            difficulty=run.records[-1]["difficulty"],
            updates=part.updates,
            learning_rate=rates[updates],
            tokens=part.targets,
            words_seen=count_words(part, curriculum.targets, curriculum.words, word_starts),
            assumed=adaptive and part.epoch > 0,
        )
        rows.append(row)
        updates += part.updates
    seen, totals = count_exposures(run, updates), (sum(r.tokens for r in rows), sum(r.words_seen for r in rows))
    plan = Plan(rows, updates, run.total_updates, *totals, seen, max(rates[:updates]), rates[updates], size)
    passes = float(curriculum.targets.sum() / curriculum.targets_per_update)
    return replace(plan, warnings=tuple(_warnings(plan, curriculum.min_pool, passes)))


def count_words(part: EpochSlice, targets: np.ndarray, words: np.ndarray, word_starts: np.ndarray) -> int:
    """Words that begin in the targets of a slice.

    Args:
        targets, words: of each document, shape (N,). word_starts: of each token, shape (targets.sum(),).
    """
    begin = np.concatenate([[0], np.cumsum(targets[part.order])])
    offsets = np.append((np.cumsum(targets) - targets)[part.order], 0)

    def before(position: int) -> int:
        """Words that begin in the first `position` tokens of the slice's stream of documents."""
        whole = int(np.searchsorted(begin, position, side="right")) - 1
        inside = word_starts[offsets[whole] : offsets[whole] + position - begin[whole]]
        return int(words[part.order[:whole]].sum(dtype=np.int64) + inside.sum(dtype=np.int64))

    # Position i predicts position i + 1. The mark that closes the last document is no word.
    return before(min(part.start + part.targets + 1, int(begin[-1]))) - before(part.start + 1)


def count_exposures(curriculum: CurriculumTrainingManager, updates: int) -> Exposure:
    """How often documents were begun in the first `updates` updates of a run, from its own records."""
    seen = np.zeros(len(curriculum.targets), dtype=np.int64)
    for part in map(curriculum.prepare_epoch, range(len(curriculum.records))):
        begin = np.cumsum(curriculum.targets[part.order]) - curriculum.targets[part.order] - part.start
        inside = (begin >= 0) & (begin < min(part.targets, updates * curriculum.targets_per_update))
        seen += np.bincount(part.order[inside], minlength=len(seen))
        updates = max(updates - part.updates, 0)
    deciles: list[float | None] = [None] * 10
    if curriculum.strategy.ranks:
        tenths = [seen[curriculum.ranked[i * len(seen) // 10 : (i + 1) * len(seen) // 10]] for i in range(10)]
        deciles = [float(tenth.mean()) if len(tenth) else None for tenth in tenths]
    return Exposure(int(seen.max()), float(np.median(seen)), int(seen.min()), tuple(deciles), deciles[-1])


def _warnings(plan: Plan, min_pool: int, updates_per_pass: float) -> list[str]:
    peak, last, most = plan.peak_lr, plan.final_lr, plan.exposure.maximum
    unseen = ", ".join(str(i + 1) for i, mean in enumerate(plan.exposure.deciles) if mean == 0)
    few = updates_per_pass < MIN_UPDATES
    smallest = min_pool > 1 and any(row.documents == min_pool for row in plan.rows)
    found = [
        (last > MAX_FINAL_LR * peak, f"the learning rate ends at {last:.3g}, its peak is {peak:.3g}"),
        (unseen, f"never seen: deciles {unseen} of the ranking (10: hardest)"),
        (most > MAX_EXPOSURES, f"a document is seen {most} times (more than {MAX_EXPOSURES})"),
        (few, f"a pass over the corpus is {updates_per_pass:.1f} updates: with a smaller trainer.batch_size, more"),
        (smallest, f"the pool of an epoch is the smallest allowed, min_pool = {min_pool}"),
        (plan.rows[-1].assumed, "thresholds marked * follow the validation loss: given as if nothing moved them"),
    ]
    return [text for holds, text in found if holds]


def list_rates(scheduler: LRScheduler, updates: int) -> list[float]:
    """The LR of the first parameter group after 0, 1 ... `updates` steps of `scheduler`, which stays as it is."""
    import torch

    groups = [{**group, "params": [torch.zeros(1)]} for group in scheduler.optimizer.param_groups]
    clone = copy.deepcopy(scheduler, {id(scheduler.optimizer): torch.optim.SGD(copy.deepcopy(groups))})
    rates = [float(clone.get_last_lr()[0])]
    with warnings.catch_warnings(action="ignore"):  # the stand-in optimizer is never stepped
        for _ in range(updates):
            clone.step()
            rates.append(float(clone.get_last_lr()[0]))
    return rates


def list_groups(optimizer: Optimizer, updates_per_pass: float) -> tuple[Group, ...]:
    """The optimizer's groups of weights, with horizons where its decay is decoupled from the gradient."""
    found = []
    for group in optimizer.param_groups:
        rate, decay = group.get("initial_lr", group["lr"]), group.get("weight_decay", 0.0)
        decoupled = group.get("decoupled_weight_decay", False) and decay
        horizon = 1 / (rate * decay * updates_per_pass) if decoupled else None
        found.append(Group(len(group["params"]), group.get("matrix", False), rate, decay, horizon))
    return tuple(found)


def plan_run(run: Run) -> Plan:
    """The plan of a built run; call it before anything is restored or trained.

    Raises:
        InputError: the run breaks its track; with the figures.
    """
    trainer, options, split = run.trainer, run.trainer.options, run.trainer.train_split
    size = size_of(
        trainer.model,
        trainer.optimizer,
        context=trainer.max_length,
        rows=options.batch_size,
        activation_bytes=trainer.precision.inside.itemsize,
        checkpointing=options.gradient_checkpointing,
        logits=trainer.forward.logits_at_once(),
        draws=trainer.objective.draws,
    )
    rates = list_rates(trainer.scheduler, trainer.curriculum.total_updates)
    plan = make_plan(trainer.curriculum, rates, split.word_starts, size)
    run.parts.track.refuse(int(split.words.sum()), plan.words, plan.updates, run.outside)
    groups = list_groups(trainer.optimizer, trainer.curriculum.targets.sum() / trainer.curriculum.targets_per_update)
    return replace(plan, groups=groups, warnings=plan.warnings + run.parts.track.warnings(plan.words))


def compose_each(line: CommandLine) -> list[DictConfig]:
    """The configurations of a command that looks at runs, warnings shown. Raises InputError: as for a run."""
    from babylm_train.config import check_command_line

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    return check_command_line(line.overrides, line.config_name, line.config_dir)


def compose_one(line: CommandLine) -> DictConfig:
    """The same of a command that looks at one run. Raises InputError: also for a sweep."""
    from babylm_train import config

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    return config.compose_one(line.overrides, line.config_name, line.config_dir)


def build_from(config: DictConfig) -> Run:
    """The run of a configuration; nothing is written."""
    from babylm_train import build

    return build.build_run(config, Path(config.hydra.run.dir), build.build_parts(config), lambda: False)


def print_plans(line: CommandLine) -> None:
    """Prints the plan of every job, up to one that its track refuses."""
    for config in compose_each(line):
        print(f"\nplan of {Path(config.hydra.run.dir).name}\n{plan_run(build_from(config)).table()}\n", flush=True)


def main() -> None:
    """The command."""
    start(print_plans, __doc__ or "", overrides=True)
