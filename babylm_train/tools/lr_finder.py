"""Which learning rates does a run bear? `python -m babylm_train.lr_finder [start_lr=1e-6] [end_lr=1] [num_iter=100]
[out=DIR] [overrides as for a run]`.

The range test of Smith 2017 (Cyclical learning rates for training neural networks, section 3.3), with the exponential
range, the smoothing and the stop of fastai. Updates are the run's own, so precision, accumulation and clipping count.
Writes lr_finder.png and lr_finder.csv, by default to multirun_outputs/lr_finder/, and nothing to a run's directory.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from babylm_train.errors import DivergedError, InputError, RunError, StorageError, fail
from babylm_train.state import Batch, RunState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from babylm_train.build import Run
    from babylm_train.trainer import Trainer

OUT = Path("multirun_outputs/lr_finder")
SMOOTHING = 0.9  # fastai's 0.98 lags by 49 updates, which is half of 100: the minimum then sits a decade too high
DIVERGED = 4.0  # times the best smoothed loss
MIN_POINTS = 8  # with fewer a slope is chance
CHANCE = 6.0  # standard deviations of the smoothed loss: pure noise falls further in 1 of 100 tests


@dataclass(frozen=True)
class LRFinding:
    """What a range test measured and suggests; learning rates are those of the first parameter group.

    lrs, losses, smoothed: one an update, losses in nats a target. A loss is measured before its update is applied.
    steepest: where the smoothed loss falls fastest over log LR. tenth_of_minimum: a tenth of the LR of the lowest
    smoothed loss. Both are None where the curve does not show one. stopped_at: the LR at which the loss diverged, None
    where the range was walked to its end. notes: what to know before either number is trusted.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    tenth_of_minimum: float | None
    stopped_at: float | None
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The finding as it is printed."""
        walked = f", learning rate {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else ""
        ended = "" if self.stopped_at is None else f"; stopped at {self.stopped_at:.3g}, where the loss diverged"
        lines = [f"LR range test: {len(self.lrs)} updates{walked}{ended}"]
        lines += [f"  {name:<31}{rate:.2e}" for name, rate in self.suggestions().items()]
        return "\n".join(lines + [f"warning: {note}" for note in self.notes])

    def suggestions(self) -> dict[str, float]:
        """The suggestions there are, by name."""
        found = {"steepest descent": self.steepest, "one tenth of the minimum's LR": self.tenth_of_minimum}
        return {name: rate for name, rate in found.items() if rate is not None}


def find_lr(
    trainer: Trainer,
    start_lr: float = 1e-6,
    end_lr: float = 1.0,
    num_iter: int = 100,
    smoothing: float = SMOOTHING,
) -> LRFinding:
    """Range test with a trainer's own updates, on the rows of its first epoch, again and again if they are too few.

    Afterwards weights, buffers, optimizer, scheduler, loss scale, run state, curriculum and random generators are what
    they were, an exception included: training gives bitwise the same as without the test. Nothing is written or logged.

    Args:
        trainer: ready to train. Other parameter groups keep the ratio of their lr to the first group's.
        start_lr, end_lr: of the first parameter group, at the first and the last update, exponential in between.
        num_iter: updates. smoothing: decay of the moving average of the loss, in [0, 1).

    Raises:
        InputError: an argument is out of range. OutOfMemory: as in training. A loss that diverges ends the test only.
    """
    check_range(start_lr, end_lr, num_iter)
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be in [0, 1), got {smoothing}")
    rates = np.geomspace(start_lr, end_lr, num_iter).tolist()
    with untouched(trainer), tqdm(desc="LR range test", total=num_iter, unit="update", disable=None) as trainer.bar:
        batches = _batches(trainer)
        trainer.scheduler = _scheduler(trainer.optimizer, rates)
        trainer.model.train()

        def update() -> float:
            trainer.state = RunState()
            loss, _ = trainer.make_update(next(batches))
            return loss

        return range_test(update, rates, smoothing)


def check_range(start_lr: float, end_lr: float, num_iter: int) -> None:
    """Is this a range that can be walked?

    Raises:
        InputError: naming the option.
    """
    if not 0 < start_lr < math.inf:
        raise InputError(f"start_lr must be positive, got {start_lr:g}")
    if not start_lr < end_lr < math.inf:
        raise InputError(f"end_lr must be greater than start_lr = {start_lr:g}, got {end_lr:g}")
    if num_iter < 10:
        raise InputError(f"num_iter must be at least 10, got {num_iter}")


@contextlib.contextmanager
def untouched(trainer: Trainer) -> Iterator[None]:
    """Inside, `trainer.update` may be called at will; afterwards everything that it changes is as it was before.

    The trainer's state, scheduler, loss scaler, logger and bar are set aside for stand-ins, and put back.
    """
    import torch

    from babylm_train.checkpoint import rng_state, set_rng_state
    from babylm_train.logger import NoLogger

    model, optimizer = trainer.model, trainer.optimizer

    def tensors() -> dict[str, Any]:  # not state_dict: it leaves out buffers that are not persistent
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    aside = {name: getattr(trainer, name) for name in ("state", "scheduler", "scaler", "logger", "bar")}
    values = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors().items()}
    slots, modes, generators = copy.deepcopy(optimizer.state_dict()), [m.training for m in model.modules()], rng_state()
    trainer.logger, trainer.scaler = NoLogger(), copy.deepcopy(trainer.scaler)
    try:
        yield
    finally:
        for name, thing in aside.items():
            setattr(trainer, name, thing)
        with torch.no_grad():
            for name, tensor in tensors().items():
                tensor.copy_(values[name])
        model.zero_grad(set_to_none=True)  # an update that was cut off leaves gradients
        optimizer.load_state_dict(slots)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        set_rng_state(generators)


def _batches(trainer: Trainer) -> Iterator[list[Batch]]:
    """The micro-batches of each update of the first epoch, in the run's order, and round again."""
    from babylm_train.data.packing import PackedRows

    curriculum, options = copy.copy(trainer.curriculum), trainer.options
    curriculum.records = list(curriculum.records)  # prepare_epoch appends
    part = curriculum.prepare_epoch(0)
    rows = PackedRows(trainer.train_split, part, trainer.max_length)
    while True:
        for index in range(part.updates):
            yield rows.micro_batches(index, options.batch_size, options.gradient_accumulation_steps)


def _scheduler(optimizer: Any, rates: Sequence[float]) -> Any:
    """One of `rates` an update for the first group; the others in the ratio of their undecayed rates."""
    from torch.optim.lr_scheduler import LambdaLR

    groups = optimizer.param_groups
    base = [float(group.get("initial_lr", group["lr"])) for group in groups]
    if base[0] == 0 and any(base):
        raise InputError("optimizer: the first parameter group has lr 0, so the others have no ratio to it")
    for group, rate in zip(groups, base, strict=True):
        group["initial_lr"] = rate / base[0] if base[0] else 1.0
    return LambdaLR(optimizer, lambda update: rates[min(update, len(rates) - 1)])  # it steps after the last one too


def range_test(update: Callable[[], float], rates: Sequence[float], smoothing: float = SMOOTHING) -> LRFinding:
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
        if not math.isfinite(loss):
            stopped_at = rate
            break
        losses.append(loss)
        average = smoothing * average + (1 - smoothing) * loss
        smoothed.append(average / (1 - smoothing ** len(losses)))
        if smoothed[-1] > DIVERGED * min(smoothed):
            stopped_at = rate
            break
    lrs = tuple(rates[: len(losses)])
    chance = CHANCE * math.sqrt((1 - smoothing) / (1 + smoothing))  # an average's deviation by that of a loss
    steepest, tenth, notes = suggest(lrs, losses, smoothed, len(rates) // 10, stopped_at is not None, chance)
    return LRFinding(lrs, tuple(losses), tuple(smoothed), steepest, tenth, stopped_at, tuple(notes))


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
    last = lowest == len(smoothed) - 1
    fall = smoothed[skip] - smoothed[lowest]
    noise = float(np.std(np.diff(losses[: lowest + 1]))) / math.sqrt(2)  # of differences: a trend is no noise
    if fall <= chance * noise:
        flat = f"no suggestion: the loss falls by {fall:.3g}, which is chance where single losses vary by {noise:.3g}"
        return None, None, [f"{flat}; raise {'num_iter' if diverged else 'end_lr'}"]
    slope = np.gradient(smoothed, np.log(lrs))[skip : lowest + 1]
    notes = []
    if last and diverged:
        notes.append("the loss was lowest right before it diverged: a larger num_iter would show its minimum")
    elif last:
        notes.append(f"the loss is lowest at {lrs[-1]:.3g}, where the range ends: widen it with a higher end_lr")
    return lrs[skip + int(np.argmin(slope))], lrs[lowest] / 10, notes


def draw(finding: LRFinding) -> Figure:
    """Raw and smoothed loss over LR, suggestions marked, as a figure of 1000 x 600 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    axis: Any = figure.subplots()
    axis.set(xlabel="learning rate", ylabel="loss (nats a token)", xscale="log", title="LR range test")
    axis.grid(alpha=0.3)
    if not finding.lrs:
        axis.text(0.5, 0.5, "the loss diverged at the first update", ha="center", transform=axis.transAxes)
        return figure
    axis.plot(finding.lrs, finding.losses, label="loss of each update", linewidth=1, alpha=0.4)
    axis.plot(finding.lrs, finding.smoothed, label="smoothed", linewidth=2, color="tab:blue")
    styles = (("tab:green", "--"), ("tab:orange", "-."))
    for (name, rate), (colour, style) in zip(finding.suggestions().items(), styles, strict=False):
        axis.axvline(rate, color=colour, linestyle=style, label=f"{name}: {rate:.2e}")
    if finding.stopped_at is not None:
        axis.axvline(finding.stopped_at, color="tab:red", linestyle=":", label=f"diverged: {finding.stopped_at:.2e}")
    best = min(finding.smoothed)
    low, high = min(finding.losses), min(max(finding.smoothed), DIVERGED * best)  # not the height of a divergence
    room = 0.05 * (high - low) or 0.1
    axis.set_ylim(low - room, high + room)
    axis.legend()
    return figure


def write(directory: Path, finding: LRFinding) -> tuple[Path, Path]:
    """Writes lr_finder.png and lr_finder.csv.

    Raises:
        StorageError: the directory is not writable or full.
    """
    picture, table = directory / "lr_finder.png", directory / "lr_finder.csv"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draw(finding).savefig(picture)
        with table.open("w", encoding="utf8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["update", "learning_rate", "loss", "smoothed_loss"])
            columns = zip(finding.lrs, finding.losses, finding.smoothed, strict=True)
            lines.writerows([update, *values] for update, values in enumerate(columns, 1))
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from error
    return picture, table


@dataclass
class Options:
    """The finder's own arguments; the rest of the command line are overrides."""

    start_lr: float = 1e-6
    end_lr: float = 1.0
    num_iter: int = 100
    out: Path = OUT
    overrides: list[str] = field(default_factory=list)


def own_options(arguments: Sequence[str]) -> Options:
    """Takes the finder's own `key=value` from the arguments.

    Raises:
        InputError: one of them is no number, out of range, or empty.
    """
    found = Options()
    kinds = {"start_lr": (float, "a number"), "end_lr": (float, "a number"), "num_iter": (int, "a whole number")}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in kinds:
            kind, wanted = kinds[key]
            try:
                setattr(found, key, kind(value))
            except ValueError as error:
                raise InputError(f"{key} must be {wanted}, got {value!r}") from error
        elif equals and key == "out":
            if not value:
                raise InputError("out= needs a directory")
            found.out = Path(value)
        else:
            found.overrides.append(argument)
    check_range(found.start_lr, found.end_lr, found.num_iter)
    return found


def run_of(overrides: Sequence[str], config_name: str = "config", config_dir: str | None = None) -> Run:
    """The run that the overrides compose, built.

    Raises:
        InputError: as for a run; or it asks for a sweep.
    """
    from babylm_train import build, config

    configs = config.check_command_line(overrides, config_name, config_dir)
    if len(configs) > 1:
        raise InputError("babylm_train.lr_finder tests one configuration, not a sweep")
    directory = Path(configs[0].hydra.run.dir)  # where training would write; the finder does not
    return build.build(configs[0], directory, build.parts(configs[0]), lambda: False)


def main() -> None:
    """Makes a range test of the run that the command line composes, prints its finding and writes the two files."""
    parser = argparse.ArgumentParser(
        prog="python -m babylm_train.lr_finder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="start_lr, end_lr, num_iter, out, and overrides as for a run")
    parser.add_argument("--config-dir", "-cd", help="a folder with fragments of your own")
    parser.add_argument("--config-name", "-cn", default="config")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    args = parser.parse_intermixed_args()
    try:
        options = own_options(args.overrides)
        run = run_of(options.overrides, args.config_name, args.config_dir)
        finding = find_lr(run.trainer, options.start_lr, options.end_lr, options.num_iter)
        print(f"\n{finding.text()}", flush=True)
        for path in write(options.out, finding):
            print(path)
    except RunError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
