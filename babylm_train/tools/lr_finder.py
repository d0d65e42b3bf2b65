"""Which learning rates does a run bear? `python -m babylm_train.lr_finder [start_lr=1e-6] [end_lr=1] [num_iter=100]
[out=DIR] [overrides as for a run]`.

The range test of Smith 2017 (Cyclical learning rates for training neural networks, section 3.3), with the exponential
range, the smoothing and the stop of fastai. Updates are the run's own, so precision, accumulation and clipping count.
Writes lr_finder.png and lr_finder.csv, by default to multirun_outputs/lr_finder/, and nothing to a run's directory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm import tqdm

from babylm_train.command import CommandLine, start
from babylm_train.errors import DivergedError, InputError
from babylm_train.files import storage_errors
from babylm_train.state import RunState
from babylm_train.tools.plan import build_from, compose_one

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from babylm_train.trainer import Trainer

SMOOTHING = 0.9  # of the loss; fastai's 0.98 lags by 49 updates, half of 100: the minimum then sits a decade too high
STEEPEST, TENTH, DIVERGED = "steepest descent", "one tenth of the minimum's LR", "diverged"
LIMIT = 4.0  # times the best smoothed loss: it diverged
MIN_POINTS = 8  # with fewer a slope is chance
CHANCE = 6.0  # standard deviations of the smoothed loss: pure noise falls further in 1 of 100 tests


@dataclass(frozen=True)
class Options:
    """start_lr, end_lr: of the first parameter group, exponential in between. num_iter: updates. out: a folder."""

    start_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    end_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    num_iter: Annotated[int, Field(ge=10)] = 100
    out: Annotated[str, Field(min_length=1)] = "multirun_outputs/lr_finder"

    def __post_init__(self) -> None:
        if self.end_lr <= self.start_lr:
            raise InputError(f"end_lr must be greater than start_lr = {self.start_lr:g}, got {self.end_lr:g}")


@dataclass(frozen=True)
class LRFinding:
    """What a range test measured: one loss an update, in nats a target, before its update is applied; what it suggests.

    marks: learning rates by name: STEEPEST where the smoothed loss falls fastest over log LR, TENTH of the LR of the
    lowest smoothed loss, and where it DIVERGED. note: what to know before they are trusted.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    marks: dict[str, float]
    note: str

    def text(self) -> str:
        """The finding as it is printed."""
        lines = [f"  {name:<31}{rate:.2e}\n" for name, rate in self.marks.items()]
        return f"LR range test: {len(self.lrs)} updates\n{''.join(lines)}{self.note}"


def find_lr(trainer: Trainer, options: Options) -> LRFinding:
    """Range test with a trainer's own updates, on the rows of its first epoch, again and again if they are too few.

    The trainer is used up. Other parameter groups keep the ratio of their lr to the first group's.
    """
    from torch.optim.lr_scheduler import LambdaLR

    from babylm_train.data.packing import PackedRows
    from babylm_train.logger import NoLogger

    rates = np.geomspace(options.start_lr, options.end_lr, options.num_iter).tolist()
    groups = trainer.optimizer.param_groups
    base = [float(group.get("initial_lr", group["lr"])) for group in groups]
    for group, rate in zip(groups, base, strict=True):
        group["initial_lr"] = rate / base[0]
    # It steps after the last update too.
    trainer.scheduler = LambdaLR(trainer.optimizer, lambda update: rates[min(update, len(rates) - 1)])
    trainer.logger = NoLogger()
    trainer.model.train()
    part, rows_at_once = trainer.curriculum.prepare_epoch(0), trainer.options.batch_size
    rows, indices = PackedRows(trainer.train_split, part, trainer.max_length), itertools.cycle(range(part.updates))
    with tqdm(desc="LR range test", total=len(rates), unit="update", disable=None) as trainer.bar:

        def update() -> float:
            trainer.state = RunState(updates=(index := next(indices)))
            batches = rows.micro_batches(index, rows_at_once, trainer.options.gradient_accumulation_steps)
            return trainer.make_update(batches)[0]

        return range_test(update, rates)


def range_test(update: Callable[[], float], rates: Sequence[float], smoothing: float = SMOOTHING) -> LRFinding:
    """Walks `rates` until the loss is not finite, or its moving average is over 4 x the best average.

    `update` makes the update of the next rate and returns its loss. The average is s_i = v_i / (1 - smoothing^i) with
    v_i = smoothing v_(i-1) + (1 - smoothing) loss_i and v_0 = 0, the bias correction of Kingma and Ba 2015.
    """
    losses: list[float] = []
    smoothed: list[float] = []
    average, diverged = 0.0, dict[str, float]()
    for rate in rates:
        try:
            loss = update()
        except DivergedError:
            loss = math.nan
        if math.isfinite(loss):
            losses.append(loss)
            average = smoothing * average + (1 - smoothing) * loss
            smoothed.append(average / (1 - smoothing ** len(losses)))
        if not math.isfinite(loss) or smoothed[-1] > LIMIT * min(smoothed):
            diverged = {DIVERGED: rate}
            break
    lrs = list(rates[: len(losses)])
    chance = CHANCE * math.sqrt((1 - smoothing) / (1 + smoothing))  # an average's deviation by that of a loss
    marks, note = suggest(lrs, losses, smoothed, len(rates) // 10, bool(diverged), chance)
    return LRFinding(lrs, losses, smoothed, marks | diverged, note)


def suggest(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], skip: int, diverged: bool, chance: float
) -> tuple[dict[str, float], str]:
    """What a curve suggests, and what speaks against it.

    Args:
        skip: first points left out; their average is over too few losses. chance: a fall of the average by so many
            standard deviations of the losses means nothing.
    """
    if len(smoothed) - skip < MIN_POINTS:
        return {}, f"warning: no suggestion: it diverged after {len(smoothed)} updates; lower start_lr"
    lowest, more = skip + int(np.argmin(smoothed[skip:])), "num_iter" if diverged else "end_lr"
    fall = smoothed[skip] - smoothed[lowest]
    noise = float(np.std(np.diff(losses[: max(lowest, 1) + 1]))) / math.sqrt(2)  # of differences: a trend is no noise
    if fall <= chance * noise or lowest == skip:
        flat = f"warning: no suggestion: the loss falls by {fall:.3g} where single losses vary by {noise:.3g}"
        return {}, f"{flat}; lower start_lr or raise {more}"
    last = f"warning: the loss is lowest at the last rate, {lrs[-1]:.3g}: raise {more} to see its minimum"
    slope = np.gradient(smoothed, np.log(lrs))[skip : lowest + 1]
    marks = {STEEPEST: lrs[skip + int(np.argmin(slope))], TENTH: lrs[lowest] / 10}
    return marks, last if lowest == len(smoothed) - 1 else ""


def draw(finding: LRFinding) -> Figure:
    """Raw and smoothed loss over LR, suggestions marked, as a figure of 1000 x 600 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    axis: Any = figure.subplots()
    axis.set(xlabel="learning rate", ylabel="loss (nats a token)", xscale="log", title="LR range test")
    axis.plot(finding.lrs, finding.losses, label="loss of each update", alpha=0.4)
    axis.plot(finding.lrs, finding.smoothed, label="smoothed", linewidth=2)
    for number, (name, rate) in enumerate(finding.marks.items()):
        axis.axvline(rate, color=f"C{number + 2}", linestyle="--", label=f"{name}: {rate:.2e}")
    if finding.lrs:  # the height of what is looked for, not that of a divergence
        low, high = min(finding.losses), min(max(finding.smoothed), LIMIT * min(finding.smoothed))
        axis.set_ylim(low - 0.1, high + 0.1)
    axis.legend()
    return figure


def print_finding(line: CommandLine) -> None:
    """Makes a range test of the run that the command line composes, prints its finding and writes the two files."""
    finding, folder = find_lr(build_from(compose_one(line)).trainer, line.options), Path(line.options.out)
    columns = {"learning_rate": finding.lrs, "loss": finding.losses, "smoothed_loss": finding.smoothed}
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draw(finding).savefig(folder / "lr_finder.png")
        updates = pd.RangeIndex(1, len(finding.lrs) + 1, name="update")
        pd.DataFrame(columns, index=updates).to_csv(folder / "lr_finder.csv")
    print(f"\n{finding.text()}", folder / "lr_finder.png", folder / "lr_finder.csv", sep="\n", flush=True)


def main() -> None:
    """The command."""
    start(print_finding, __doc__ or "", Options, overrides=True)
