"""Which learning rates does a run bear? `python -m babylm_train.lr_finder [start_lr=1e-6] [end_lr=1] [num_iter=100]
[out=DIR] [overrides as for a run]`.

The range test of Smith 2017 (Cyclical learning rates for training neural networks, section 3.3), with the exponential
range, the smoothing and the stop of fastai. Updates are the run's own, so precision, accumulation and clipping count.
Writes lr_finder.png and lr_finder.csv, by default to multirun_outputs/lr_finder/, and nothing to a run's directory.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from tqdm import tqdm

from babylm_train.command import CommandLine, start
from babylm_train.errors import DivergedError, InputError
from babylm_train.state import RunState
from babylm_train.tools import compose_one

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from babylm_train.trainer import Trainer

DIVERGED = 4.0  # times the best smoothed loss
MIN_POINTS = 8  # with fewer a slope is chance
CHANCE = 6.0  # standard deviations of the smoothed loss: pure noise falls further in 1 of 100 tests


@dataclass(frozen=True)
class Options:
    """start_lr, end_lr: of the first parameter group, exponential in between. num_iter: updates. out: a folder.

    smoothing: decay of the moving average of the loss. fastai's 0.98 lags by 49 updates, which is half of 100: the
    minimum then sits a decade too high.
    """

    start_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    end_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    num_iter: Annotated[int, Field(ge=10)] = 100
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    out: Annotated[str, Field(min_length=1)] = "multirun_outputs/lr_finder"

    def __post_init__(self) -> None:
        if self.end_lr <= self.start_lr:
            raise InputError(f"end_lr must be greater than start_lr = {self.start_lr:g}, got {self.end_lr:g}")

    @property
    def rates(self) -> list[float]:
        """One an update."""
        return [float(rate) for rate in np.geomspace(self.start_lr, self.end_lr, self.num_iter)]


@dataclass(frozen=True)
class LRFinding:
    """What a range test measured and suggests; learning rates are those of the first parameter group.

    lrs, losses, smoothed: one an update, losses in nats a target. A loss is measured before its update is applied.
    steepest: where the smoothed loss falls fastest over log LR. tenth_of_minimum: a tenth of the LR of the lowest
    smoothed loss. Both are None where the curve does not show one. stopped_at: the LR at which the loss diverged, None
    where the range was walked to its end. notes: what to know before either number is trusted.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    tenth_of_minimum: float | None
    stopped_at: float | None
    notes: list[str]

    def marks(self) -> dict[str, float]:
        """The learning rates that are worth a line, by name."""
        marks = {
            "steepest descent": self.steepest,
            "one tenth of the minimum's LR": self.tenth_of_minimum,
            "diverged": self.stopped_at,
        }
        return {name: rate for name, rate in marks.items() if rate is not None}

    def text(self) -> str:
        """The finding as it is printed."""
        walked = f", learning rate {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else ""
        lines = [f"LR range test: {len(self.lrs)} updates{walked}"]
        lines += [f"  {name:<31}{rate:.2e}" for name, rate in self.marks().items()]
        return "\n".join(lines + [f"warning: {note}" for note in self.notes])


def find_lr(trainer: Trainer, options: Options) -> LRFinding:
    """Range test with a trainer's own updates, on the rows of its first epoch, again and again if they are too few.

    Nothing is written or logged, but the trainer is used up: its weights have been through every rate.

    Args:
        trainer: ready to train. Other parameter groups keep the ratio of their lr to the first group's.

    Raises:
        InputError: the first group's lr is 0. OutOfMemory: as in training. A loss that diverges ends the test only.
    """
    from torch.optim.lr_scheduler import LambdaLR

    from babylm_train.data.packing import PackedRows
    from babylm_train.logger import NoLogger

    groups, rates = trainer.optimizer.param_groups, options.rates
    base = [float(group.get("initial_lr", group["lr"])) for group in groups]
    if base[0] == 0:
        raise InputError("optimizer: the first parameter group has lr 0, so the others have no ratio to it")
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
            trainer.state = RunState()
            batches = rows.micro_batches(next(indices), rows_at_once, trainer.options.gradient_accumulation_steps)
            return trainer.make_update(batches)[0]

        return range_test(update, rates, options.smoothing)


def range_test(update: Callable[[], float], rates: Sequence[float], smoothing: float) -> LRFinding:
    """Walks `rates` until the loss diverges: it, or its moving average, is not finite or is over 4 x the best average.

    The average is s_i = v_i / (1 - smoothing^i) with v_i = smoothing v_(i-1) + (1 - smoothing) loss_i and v_0 = 0, the
    bias correction of Kingma and Ba 2015.

    Args:
        update: makes the update of the next rate and returns its loss; a DivergedError ends the test.
        rates: rising, at even distances of their logarithms.
    """
    losses: list[float] = []
    smoothed: list[float] = []
    stopped_at, average = None, 0.0
    for rate in rates:
        try:
            loss = update()
        except DivergedError:
            loss = math.nan
        if math.isfinite(loss):
            losses.append(loss)
            average = smoothing * average + (1 - smoothing) * loss
            smoothed.append(average / (1 - smoothing ** len(losses)))
        if not math.isfinite(loss) or smoothed[-1] > DIVERGED * min(smoothed):
            stopped_at = rate
            break
    lrs = list(rates[: len(losses)])
    chance = CHANCE * math.sqrt((1 - smoothing) / (1 + smoothing))  # an average's deviation by that of a loss
    found = suggest(lrs, losses, smoothed, len(rates) // 10, stopped_at is not None, chance)
    return LRFinding(lrs, losses, smoothed, found[0], found[1], stopped_at, found[2])


def suggest(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    skip: int = 0,
    diverged: bool = False,
    chance: float = 0.0,
) -> tuple[float | None, float | None, list[str]]:
    """The LR of steepest descent, a tenth of the LR of the minimum, and what speaks against them.

    Args:
        lrs, losses, smoothed: one an update. skip: first points left out; their average is over too few losses.
        diverged: the range was not walked to its end.
        chance: a fall of the average by so many standard deviations of the losses, or less, means nothing.
    """
    if len(smoothed) - skip < MIN_POINTS:
        few = f"no suggestion: {len(smoothed)} updates before the loss diverged, {skip + MIN_POINTS} are needed"
        return None, None, [f"{few}; lower start_lr"]
    lowest = skip + int(np.argmin(smoothed[skip:]))
    if lowest == skip:
        return None, None, [f"no suggestion: the loss is lowest at {lrs[lowest]:.3g}, where it begins; lower start_lr"]
    fall = smoothed[skip] - smoothed[lowest]
    noise = float(np.std(np.diff(losses[: lowest + 1]))) / math.sqrt(2)  # of differences: a trend is no noise
    if fall <= chance * noise:
        flat = f"no suggestion: the loss falls by {fall:.3g}, which is chance where single losses vary by {noise:.3g}"
        return None, None, [f"{flat}; raise {'num_iter' if diverged else 'end_lr'}"]
    slope = np.gradient(smoothed, np.log(lrs))[skip : lowest + 1]
    notes = []
    if lowest == len(smoothed) - 1:
        before = "the loss was lowest right before it diverged: a larger num_iter would show its minimum"
        ends = f"the loss is lowest at {lrs[-1]:.3g}, where the range ends: widen it with a higher end_lr"
        notes.append(before if diverged else ends)
    return lrs[skip + int(np.argmin(slope))], lrs[lowest] / 10, notes


def draw(finding: LRFinding) -> Figure:
    """Raw and smoothed loss over LR, suggestions marked, as a figure of 1000 x 600 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    axis: Any = figure.subplots()
    axis.set(xlabel="learning rate", ylabel="loss (nats a token)", xscale="log", title="LR range test")
    axis.plot(finding.lrs, finding.losses, label="loss of each update", alpha=0.4)
    axis.plot(finding.lrs, finding.smoothed, label="smoothed", linewidth=2)
    for number, (name, rate) in enumerate(finding.marks().items()):
        axis.axvline(rate, color=f"C{number + 2}", linestyle="--", label=f"{name}: {rate:.2e}")
    if finding.lrs:  # the height of what is looked for, not that of a divergence
        low, high = min(finding.losses), min(max(finding.smoothed), DIVERGED * min(finding.smoothed))
        axis.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01)
    axis.legend()
    return figure


def write(directory: Path, finding: LRFinding) -> list[Path]:
    """Writes lr_finder.png and lr_finder.csv. Raises StorageError: the directory is not writable or full."""
    import pandas as pd

    from babylm_train.files import storage_errors

    columns = {"learning_rate": finding.lrs, "loss": finding.losses, "smoothed_loss": finding.smoothed}
    paths = [directory / "lr_finder.png", directory / "lr_finder.csv"]
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        draw(finding).savefig(paths[0])
        pd.DataFrame(columns, index=pd.RangeIndex(1, len(finding.lrs) + 1, name="update")).to_csv(paths[1])
    return paths


def print_finding(line: CommandLine) -> None:
    """Makes a range test of the run that the command line composes, prints its finding and writes the two files."""
    from babylm_train import build

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    config = compose_one(line)
    run = build.build_run(config, Path(config.hydra.run.dir), build.build_parts(config), lambda: False)
    finding = find_lr(run.trainer, line.options)
    print(f"\n{finding.text()}", *write(Path(line.options.out), finding), sep="\n", flush=True)


def main() -> None:
    """The command."""
    start(print_finding, __doc__ or "", Options, overrides=True)
