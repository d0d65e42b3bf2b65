"""The training loop: one clock (applied updates), one state (RunState), the same path for every choice in conf/."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from babylm_train import checkpoint
from babylm_train.checkpoint import BEST, Checkpoints, NoCheckpoints
from babylm_train.data.packing import EvaluationRows, PackedRows
from babylm_train.errors import DivergedError, InputError, PreemptedError
from babylm_train.evaluation.loss import evaluate
from babylm_train.metrics import NoRecord, Record
from babylm_train.model.forward import Forward
from babylm_train.optim import RunningAverage, check_state, set_mode
from babylm_train.state import ALONE, LOSS, Batch, Callback, Evaluation, OneProcess, RunState
from babylm_train.throughput import Meter, keep_pages

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from babylm_train.curriculum.sampler import CurriculumTrainingManager
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.logger import NoLogger
    from babylm_train.objective import Objective
    from babylm_train.optim import Precision
    from babylm_train.options import TrainerOptions

STATEFUL = ("model", "optimizer", "scheduler", "scaler", "curriculum", "average")
MAX_SKIPPED = 20  # overflows of fp16 in a row before the run counts as diverged


@dataclass
class Trainer:
    """Trains one model on one curriculum.

    Args:
        model, objective, optimizer, scheduler, precision: what is trained, and how; the scheduler steps once an update.
        curriculum: a CurriculumTrainingManager whose `begin` was called.
        train_split, validation_split: tokens. max_length: targets a row.
        options: how long, how much at a time, what is kept.
        directory: of the run: its record and checkpoints. logger: mirrors the record elsewhere.
        identity: plain dict of what must be equal on resume (hashes of config, corpus, tokenizer), plus `config`.
        should_stop: asked after each update; True saves the state and raises PreemptedError.
        callbacks: told of each moment of the run. measures: what else is measured at each validation, as it is logged.
        processes: that train this run; each has a trainer, and one of them writes.
    """

    model: Any
    objective: Objective
    optimizer: Optimizer
    scheduler: LRScheduler
    precision: Precision
    curriculum: CurriculumTrainingManager
    train_split: TokenizedSplit
    validation_split: TokenizedSplit
    max_length: int
    options: TrainerOptions
    directory: Path
    logger: NoLogger
    identity: dict[str, Any] = field(default_factory=dict)
    should_stop: Callable[[], bool] = lambda: False
    callbacks: Sequence[Callback] = ()
    measures: Callable[[], dict[str, float]] = dict
    processes: OneProcess = ALONE

    def __post_init__(self) -> None:
        model, options, world = self.model, self.options, self.processes.world
        self.device = next(model.parameters()).device
        self.validation = EvaluationRows(self.validation_split, self.max_length)
        record, saved = (Record, Checkpoints) if self.processes.is_main else (NoRecord, NoCheckpoints)
        self.record, self.checkpoints = record(self.directory), saved(self.directory / "checkpoints", options.keep_last)
        self.scaler = self.precision.scaler(self.device)
        self.forward, self.eager = Forward(model, options.compile, -(-options.batch_size // world)), Forward(model)
        self.processes.begin(model)
        self.state, self.saved_at, self.bar = RunState(), -1, tqdm(disable=True)
        self.seconds_before, self.began = 0.0, time.perf_counter()
        self.average = RunningAverage(model, options.average, self.curriculum.total_updates, self.curriculum.epochs)
        self.meter = Meter(model, self.max_length, self.precision.inside, self.device, world, self.objective.draws)
        keep_pages(self.device)

    def train(self) -> RunState:
        """Trains to the end of the budget, or until early stopping; goes on from the state that was loaded.

        Raises DivergedError, PreemptedError (the state is saved), StorageError (a file could not be written).
        """
        state, total, quiet = self.state, self.curriculum.total_updates, self.processes.rank > 0 or None
        if state.updates == 0:
            self.record.start()
        self.began = time.perf_counter()
        self._tell("at_start")
        self.meter.start(state.tokens)
        with tqdm(desc="training", total=total, initial=state.updates, unit="update", disable=quiet) as self.bar:
            while state.epoch < self.curriculum.epochs and state.updates < total and not state.stopped:
                self.train_epoch()
        self._tell("at_end")
        return state

    def train_epoch(self) -> None:
        """Trains what is left of the epoch, a slice of the budget."""
        state, options = self.state, self.options
        part = self.curriculum.prepare_epoch(state.epoch)
        rows = PackedRows(self.train_split, part, self.max_length)
        if state.epoch_update == 0:
            self._log(self.curriculum.figures(state.epoch))
        self.model.train()
        set_mode(self.optimizer, "train")
        updates = rows.updates(state.epoch_update, options.batch_size, options.gradient_accumulation_steps)
        for index, batches in enumerate(self.meter.wait_for(updates), state.epoch_update):
            rate = float(self.scheduler.get_last_lr()[0])
            with self.processes.survive(self._save_and_stop):
                _, norm = self.make_update(batches)
            self._tell("after_update")
            last = index + 1 == part.updates or state.updates == self.curriculum.total_updates
            if last or state.is_due(options.log_every):
                self._log_update(part.threshold, rate, norm)
            if last:
                state.close_epoch()
            improved = (last or state.is_due(options.eval_every)) and self._validate()
            names = [f"checkpoint_epoch_{state.epoch}.pt"] if last else []
            if state.is_due(options.save_every) or ((improved or state.stopped) and not last):
                names.append(f"checkpoint_step_{state.updates}.pt")
            if names:
                self.save_checkpoint(names + [BEST] * improved)
            if last:
                tqdm.write(state.describe_epoch(part, self.curriculum.epochs))
            with self.processes.survive(self._save_and_stop):
                stop = self.processes.agree(self.should_stop())
            if stop and state.updates < self.curriculum.total_updates:
                self._save_and_stop("preempted")
            if state.stopped or last:
                break

    def make_update(self, batches: list[Batch]) -> tuple[float, float]:
        """One optimizer step on the gradient of the mean loss over all valid targets of `batches`.

        The micro-batches' summed losses are divided by the update's targets, so accumulation is exact however they are
        spread. An fp16 overflow changes nothing but the loss scale, and the same batches are tried again.

        Returns the loss in nats a target and the gradient's norm before clipping. Raises DivergedError: one of them is
        not finite, or fp16 overflowed 20 times in a row; nothing was applied.
        """
        state, progress = self.state, self.state.updates / self.curriculum.total_updates
        tokens = sum(batch.tokens for batch in batches)
        batches = [self.objective.prepare(replace(b, update=state.updates, progress=progress)) for b in batches]
        targets, limit = sum(b.tokens for b in batches) or 1, self.options.max_grad_norm or math.inf  # 1: none to hide
        own = self.processes.deal(batches, state.updates)
        for tries in range(1, MAX_SKIPPED + 1):  # noqa: B007
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for batch in own:
                with self.precision.autocast(self.device):
                    loss = self.objective(self.forward, batch.to(self.device))
                self.scaler.scale(loss / targets).backward()
                total += loss.detach()
            self.processes.add(total, *(p.grad for p in self.model.parameters()))
            self.scaler.unscale_(self.optimizer)
            gradient = clip_grad_norm_(self.model.parameters(), limit)
            nats, norm = torch.stack([total, gradient.double()]).tolist()  # the only wait for the device
            if finite := math.isfinite(nats) and math.isfinite(norm):
                self.optimizer.step()
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if finite or not self.scaler.is_enabled():
                break
        if not finite:
            rows, first = sum(len(batch.inputs) for batch in batches), batches[0]
            what = f"loss {nats / targets:g}, gradient norm {norm:g}" + f", {tries} overflows in a row" * (tries > 1)
            where = f"epoch {first.epoch + 1}, {rows} rows from {first.first_row}"
            raise DivergedError(f"update {state.updates + 1} ({where}): {what}; it was not applied")
        self.scheduler.step()
        state.count_update(nats, targets, tokens, sum(batch.words for batch in batches), tries - 1)
        self.average.update(state.updates)
        self.bar.update()
        return nats / targets, norm

    def evaluate(self) -> Evaluation:
        """Exact loss of the model's weights over the validation split, in float32."""
        with self.meter.spend("aside"):
            size = self.options.batch_size
            return evaluate(self.model, self.objective, self.validation, size, self.eager, self.processes)

    def save_checkpoint(self, names: list[str]) -> Path:
        """Everything an exact resume needs, under each of `names`. Raises DivergedError: the weights are not finite."""
        if not all(torch.isfinite(weights).all() for weights in self.model.parameters()):
            raise DivergedError(f"update {self.state.updates} left weights that are not finite; they were not saved")
        content = {
            "state": asdict(self.state),
            **{name: getattr(self, name).state_dict() for name in STATEFUL},
            "rng": checkpoint.rng_state(),
            "metrics_bytes": self.record.offset(),
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            **self.identity,
        }
        with self.meter.spend("aside"):
            path = self.checkpoints.save(content, names)
        self.saved_at = self.state.updates
        self.logger.log_checkpoint(path, best=BEST in names)
        return path

    def load_checkpoint(self, source: Path | dict[str, Any]) -> None:
        """Continues from a checkpoint (a path, or its content). Raises InputError: it is damaged, or of another run."""
        content = source if isinstance(source, dict) else checkpoint.load(Path(source))
        for why in self.check_compatible(content):
            checkpoint.log.warning("the checkpoint was made with %s: same updates, not bitwise", why)
        self.state = RunState(**content["state"])
        with checkpoint.refuse_misfits():
            for name in STATEFUL:
                getattr(self, name).load_state_dict(content[name])
            check_state(self.optimizer)
            checkpoint.set_rng_state(content["rng"])
        if self.state.updates != self.scheduler.last_epoch or self.state.updates > self.curriculum.total_updates:
            raise InputError(f"the checkpoint does not fit this run: state.updates is {self.state.updates}")
        self.record.start(content["metrics_bytes"])
        self.seconds_before, self.saved_at = content["seconds"], self.state.updates

    def check_compatible(self, content: dict[str, Any]) -> list[str]:
        """Why the run will not go on bitwise from this checkpoint. Raises InputError: it is another run's."""
        return checkpoint.refuse_other_run(self.identity, content, torch.get_num_threads(), self.processes.world)

    def _save_and_stop(self, why: str) -> NoReturn:
        if self.saved_at != self.state.updates:
            self.save_checkpoint([f"checkpoint_step_{self.state.updates}.pt"])
        raise PreemptedError(f"{why} at update {self.state.updates}: saved; the same command continues")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, evaluation and saving, over all resumes."""
        return self.seconds_before + time.perf_counter() - self.began

    def _log_update(self, threshold: float, rate: float, norm: float) -> None:
        values = {"train/loss": self.state.close_window(), "learning_rate": rate, "grad_norm": norm}
        self._log({**values, "threshold": threshold, "skipped": self.state.skipped})
        speed = self.meter.read(self.state.tokens)
        self.record.time(step=self.state.updates, **speed, seconds=round(self.seconds, 3))
        shown = {"loss": f"{values['train/loss']:.3f}", "lr": f"{rate:.1e}"}
        self.bar.set_postfix({**shown, "tokens_per_s": f"{speed['tokens_per_second']:,.0f}"})

    def _validate(self) -> bool:
        """Evaluates, logs, tells the curriculum and early stopping; True where the loss is the best so far."""
        state, stopping = self.state, self.options.early_stopping
        if state.evaluated == state.updates:
            return False
        raw = self.evaluate() if self.average.count else None
        with self.average.applied(self.optimizer):
            result, more = self.evaluate(), self.processes.share(self.processes.is_main and self.measures())
        if not math.isfinite(result.loss):
            raise DivergedError(f"validation loss {result.loss} at update {state.updates}")
        values = {f"val/{name}": value for name, value in result.figures().items()} | more
        values |= {f"val/raw_{name}": value for name, value in raw.figures().items()} if raw else {}
        if (metric := self.options.metric) not in values:
            raise InputError(f"trainer.metric must be one of {', '.join(values)}, got {metric}")
        watched = values[metric] if metric == LOSS else 1 - values[metric]
        self._log(values | ({"train/epoch_loss": state.epoch_loss} if state.epoch_update == 0 else {}))
        self.curriculum.report_performance(result.loss, state.epoch, state.epoch_update)
        state.note_evaluation(result, raw or result)
        improved = state.judge(watched, stopping.patience, stopping.min_delta)
        self._tell("after_evaluation", values)
        return improved

    def _tell(self, moment: str, *more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *more)

    def _log(self, values: dict[str, Any]) -> None:
        """One line of the record, mirrored by the logger: where the run is, and `values`."""
        values = self.state.place(self.curriculum.total_updates, self.curriculum.epochs) | values
        self.record.log(**values)
        self.logger.log(values, self.state.updates)
