"""The training loop: one clock (applied updates), one state (RunState), the same path for every choice in conf/."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from babylm_train.babylm.milestones import Milestones
from babylm_train.checkpoint import BEST, Checkpoints, load, refuse_other, rng_state, set_rng_state
from babylm_train.data.packing import EvaluationRows, PackedRows
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.errors import DivergedError, InputError, PreemptedError
from babylm_train.evaluation.loss import evaluate
from babylm_train.metrics import Record
from babylm_train.model.forward import Forward
from babylm_train.model.size import flops_per_token
from babylm_train.state import Batch, Evaluation, Logger, Objective, Precision, RunState
from babylm_train.step import Step, Update, memory_errors
from babylm_train.throughput import Meter, keep_pages, peak_flops, profiler, shown

log = logging.getLogger(__name__)

LOSS = "val/loss"


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` evaluations in a row whose loss is not `min_delta` below the best so far; None: never.

    Where trainer.metric is an accuracy, the loss is 1 - accuracy.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check("early_stopping.patience", self.patience is None or self.patience >= 1, "at least 1", self.patience)
        _check("early_stopping.min_delta", self.min_delta >= 0, "at least 0", self.min_delta)


@dataclass(frozen=True)
class TrainerOptions:
    """How long and how to train; rows and updates are the units, `*_every` counts updates.

    epochs: slices of the budget; max_steps: updates in all (None: one pass over the corpus an epoch).
    batch_size: rows a micro-batch. export: `best` or `last`, the weights that are kept as the result.
    eval_pairs: a file of minimal pairs, scored at each validation; `corpus`: those that came with the corpus.
    metric: `val/loss`, or `pairs/all` or another accuracy of eval_pairs: decides `best` and early stopping.
    """

    epochs: int
    batch_size: int
    max_steps: int | None = None
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    log_every: int = 10
    eval_every: int | None = None
    save_every: int | None = None
    keep_last: int = 2
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    gradient_checkpointing: bool = False
    compile: bool = False
    profile: bool = False
    deterministic: bool = False
    device: str = "auto"
    export: str = "best"
    eval_pairs: str | None = None
    metric: str = "val/loss"
    no_decay: tuple[str, ...] | list[str] = ("norm", "bias", "embedding")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "log_every", "keep_last"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("max_steps", "eval_every", "save_every"):
            value = getattr(self, name)
            _check(name, value is None or value >= 1, "at least 1, or null", value)
        _check("max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "positive", self.max_grad_norm)
        _check("export", self.export in ("best", "last"), "best or last", self.export)
        known = self.metric == LOSS or (self.eval_pairs and self.metric.startswith("pairs/"))
        _check("metric", bool(known), f"{LOSS}, or with trainer.eval_pairs pairs/all", self.metric)


class Trainer:
    """Trains one model on one curriculum.

    Args:
        model, objective, optimizer, scheduler, precision: what is trained, and how; the scheduler steps once an update.
        curriculum: a CurriculumTrainingManager whose `begin` was called.
        train, validation: tokens of the two splits. max_length: targets a row.
        options: how long, how much at a time, what is kept.
        directory: of the run: its record and checkpoints. logger: mirrors the record elsewhere.
        identity: plain dict of what must be equal on resume (hashes of config, corpus, tokenizer), plus `config`.
        should_stop: asked after each update; True saves the state and raises PreemptedError.
        milestones: told after each update, before anything is saved. pairs: accuracies of minimal pairs by name, asked
            at each validation.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        precision: Precision,
        curriculum: Any,
        train: TokenizedSplit,
        validation: TokenizedSplit,
        max_length: int,
        options: TrainerOptions,
        directory: Path,
        logger: Logger,
        identity: dict[str, Any] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        milestones: Milestones | None = None,
        pairs: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.model, self.objective, self.optimizer, self.scheduler = model, objective, optimizer, scheduler
        self.curriculum, self.options, self.logger = curriculum, options, logger
        self.train_split, self.validation, self.max_length = train, EvaluationRows(validation, max_length), max_length
        self.record = Record(directory)
        self.checkpoints = Checkpoints(self.record.directory / "checkpoints", options.keep_last)
        self.identity, self.should_stop, self.pairs = identity or {}, should_stop, pairs
        self.milestones = milestones or Milestones(directory / "milestones", [], model, None, (), self.evaluate)
        self.device = next(model.parameters()).device
        self.precision, self.scaler = precision, precision.scaler(self.device)
        self.forward, self.eager = Forward(model, options.compile, options.batch_size), Forward(model)
        self.step = Step(model, optimizer, self.scaler, options.max_grad_norm)
        self.pending: list[Update] = []
        self.state, self.tick = RunState(), lambda: None
        self.saved_at = -1
        self.bar = tqdm(disable=True)
        self.seconds_before, self.began = 0.0, time.perf_counter()
        peak = peak_flops(self.device, precision.inside, torch.get_float32_matmul_precision())
        self.meter = Meter(flops_per_token(model, max_length), peak, self.device)
        if self.device.type == "cpu":
            keep_pages()

    def train(self) -> RunState:
        """Trains to the end of the budget, or until early stopping; goes on from the state that was loaded.

        Raises:
            DivergedError: a loss is not finite, or fp16 overflowed 20 times in a row.
            PreemptedError: `should_stop` asked for it; the state is saved.
            StorageError, OutOfMemory: as they say.
        """
        state, total = self.state, self.curriculum.total_updates
        if state.updates == 0:
            self.record.start()
        self.began = time.perf_counter()
        self.meter.start(state.tokens)
        with (
            tqdm(desc="training", total=total, initial=state.updates, unit="update", disable=None) as self.bar,
            profiler(self.options.profile, self.record.directory / "profile.json") as self.tick,
        ):
            while state.epoch < self.curriculum.epochs and state.updates < total and not state.stopped:
                self.train_epoch()
        return state

    def train_epoch(self) -> None:
        """Trains what is left of the current epoch: one slice of the budget."""
        state, options = self.state, self.options
        part = self.curriculum.prepare_epoch(state.epoch)
        rows = PackedRows(self.train_split, part, self.max_length)
        if state.epoch_update == 0:
            self._log_epoch(part.threshold)
        self.model.train()
        for index in range(state.epoch_update, part.updates):
            with self.meter.waiting():
                batches = rows.micro_batches(index, options.batch_size, options.gradient_accumulation_steps)
            lr = float(self.scheduler.get_last_lr()[0])
            words, norm = state.words, self.make_update(batches)
            self.tick()
            if self.milestones.reached(words, state.words):
                self.settle()  # what is exported has to be good
                self.milestones.passed(words, state)
            last = index + 1 == part.updates or state.updates == self.curriculum.total_updates
            if last or state.updates % options.log_every == 0:
                self._log_update(part.threshold, lr, norm)
            if last:
                self._close_epoch()
            improved = (last or _due(state.updates, options.eval_every)) and self._validate()
            names = [f"checkpoint_epoch_{state.epoch}.pt"] if last else []
            if _due(state.updates, options.save_every) or ((improved or state.stopped) and not last):
                names.append(f"checkpoint_step_{state.updates}.pt")
            if names:
                self.save_checkpoint(names + [BEST] * improved)
            if last:
                self._summarise_epoch()
            if self.should_stop() and state.updates < self.curriculum.total_updates:
                if self.saved_at != state.updates:
                    self.save_checkpoint([f"checkpoint_step_{state.updates}.pt"])
                raise PreemptedError(f"preempted at update {state.updates}: saved; the same command continues")
            if state.stopped or last:
                break

    def make_update(self, batches: list[Batch]) -> torch.Tensor:
        """One optimizer step on the mean loss over all valid targets of `batches`; see Step.

        A loss or gradient that is not finite is never applied, nor is any update after it; `settle` reports it.

        Returns:
            The gradient norm before clipping, on the device.
        """
        state = self.state
        number, progress = state.updates + 1, state.updates / self.curriculum.total_updates
        prepared = [self.objective.prepare(replace(b, update=state.updates, progress=progress)) for b in batches]
        watched = partial(self.logger.log_gradients, self.model, number)
        update = self.step(number, prepared, self._loss, watched if _due(number, self.options.log_every) else None)
        self.scheduler.step()
        state.updates, state.epoch_update, state.skipped = (
            number,
            state.epoch_update + 1,
            state.skipped + update.skipped,
        )
        state.tokens += sum(batch.tokens for batch in batches)
        state.words += sum(batch.words for batch in batches)
        self.pending.append(update)
        self.bar.update()
        return update.norm

    def _loss(self, batch: Batch) -> torch.Tensor:
        with self.precision.autocast(self.device):
            return self.objective(self.forward, batch.to(self.device))

    def settle(self) -> None:
        """Reads what the updates since the last call left on the device: the only wait for it beside evaluation.

        Raises:
            DivergedError: one of them, and so all after it, was not applied.
        """
        pending, self.pending, state = self.pending, [], self.state
        if not pending:
            return
        values = torch.stack([torch.stack([p.nats, p.norm.double(), p.good.double()]) for p in pending]).tolist()
        for place, (update, (nats, norm, good)) in enumerate(zip(pending, values, strict=True)):
            if not good:
                state.updates -= len(pending) - place
                raise update.diverged(state.updates + 1, nats, norm)
            state.window_nats, state.window_targets = state.window_nats + nats, state.window_targets + update.targets
            state.epoch_nats, state.epoch_targets = state.epoch_nats + nats, state.epoch_targets + update.targets

    def evaluate(self) -> Evaluation:
        """Exact loss over the validation split, in float32."""
        self.settle()
        with memory_errors(self.options.batch_size, self.max_length), self.meter.aside():
            return evaluate(self.model, self.objective, self.validation, self.options.batch_size, self.eager)

    def save_checkpoint(self, names: list[str]) -> Path:
        """Everything an exact resume needs, under each of `names`.

        Raises:
            DivergedError: an update has left weights that are no numbers; the last checkpoint has good ones.
        """
        self.settle()
        if not all(torch.isfinite(weights).all() for weights in self.model.parameters()):
            raise DivergedError(
                f"update {self.state.updates} left weights that are not finite; the last one saved is good"
            )
        content = {
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "rng": rng_state(),
            "metrics_bytes": self.record.offset(),
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            **self.identity,
        }
        with self.meter.aside():
            path = self.checkpoints.save(content, names)
        self.saved_at = self.state.updates
        self.logger.log_checkpoint(path, best=BEST in names)
        return path

    def load_checkpoint(self, source: Path | dict[str, Any]) -> None:
        """Continues from a checkpoint (a path, or its content): weights, state, generators, and the record's length.

        Raises:
            InputError: the file is damaged, or of another config, corpus or tokenizer; the message names what differs.
        """
        content = source if isinstance(source, dict) else load(Path(source))
        self.check_compatible(content)
        self.state = RunState(**content["state"])
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        self.curriculum.load_state_dict(content["curriculum"])
        self.record.start(content["metrics_bytes"])
        self.seconds_before, self.saved_at = content["seconds"], self.state.updates
        set_rng_state(content["rng"])

    def check_compatible(self, content: dict[str, Any]) -> None:
        """Is this checkpoint one of this run?

        Raises:
            InputError: naming what differs.
        """
        for name, mine in self.identity.get("hashes", {}).items():
            if (theirs := content.get("hashes", {}).get(name)) != mine:
                raise InputError(f"the checkpoint is of another {name}: its hash is {theirs} there, {mine} here")
        refuse_other(self.identity.get("config", {}), content.get("config", {}), "the checkpoint")
        if content["threads"] != torch.get_num_threads():
            warn = "the checkpoint was made with %d threads, now there are %d: same updates, not bitwise"
            log.warning(warn, content["threads"], torch.get_num_threads())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, evaluation and saving, over all resumes."""
        return self.seconds_before + time.perf_counter() - self.began

    def _log_epoch(self, threshold: float) -> None:
        record = self.curriculum.records[self.state.epoch]
        self.record.log(
            **self._clock(),
            threshold=threshold,
            **{"curriculum/documents": record["admitted"], "curriculum/words": record["words"]},
            **{"curriculum/difficulty": record["difficulty"], "curriculum/targets": record["targets"]},
        )

    def _log_update(self, threshold: float, lr: float, norm: torch.Tensor) -> None:
        self.settle()
        state = self.state
        state.train_loss = state.window_nats / state.window_targets
        state.window_nats, state.window_targets = 0.0, 0
        values = {"train/loss": state.train_loss, "learning_rate": lr, "grad_norm": norm.item(), "threshold": threshold}
        self.record.log(**self._clock(), **values, skipped=state.skipped)
        self.logger.log({k if "/" in k else f"train/{k}": v for k, v in values.items()}, state.updates)
        speed = self.meter.read(state.tokens)
        self.record.time(step=state.updates, **speed, seconds=round(self.seconds, 3))
        self.bar.set_postfix({"loss": f"{state.train_loss:.3f}", "lr": f"{lr:.1e}", **shown(speed)})

    def _validate(self) -> bool:
        """Evaluates, logs, tells the curriculum and early stopping; True where the loss is the best so far."""
        state, stopping = self.state, self.options.early_stopping
        if state.evaluated == state.updates:
            return False
        result = self.evaluate()
        if not math.isfinite(result.loss):
            raise DivergedError(f"validation loss {result.loss} at update {state.updates}")
        accuracies = {f"pairs/{name}": value for name, value in self.pairs().items()}
        allowed = (LOSS, *accuracies)
        _check("metric", self.options.metric in allowed, f"one of {', '.join(allowed)}", self.options.metric)
        values = {f"val/{name}": value for name, value in result.figures().items()} | accuracies
        watched = values[self.options.metric] if self.options.metric == LOSS else 1 - values[self.options.metric]
        self.record.log(**self._clock(), **values)
        self.logger.log(values, state.updates)
        self.curriculum.report_performance(result.loss, self.curriculum.progress_at(state.epoch, state.epoch_update))
        state.evaluated, state.val_loss = state.updates, result.loss
        state.perplexity, state.bits_per_byte = result.perplexity, result.bits_per_byte
        if state.stop_loss is None or watched < state.stop_loss - stopping.min_delta:
            state.stop_loss, state.bad_evaluations = watched, 0
        else:
            state.bad_evaluations += 1
        state.stopped = stopping.patience is not None and state.bad_evaluations >= stopping.patience
        improved = state.best_loss is None or watched < state.best_loss
        if improved:
            state.best_loss, state.best_update = watched, state.updates
        return improved

    def _clock(self) -> dict[str, Any]:
        state = self.state
        epoch = state.updates / self.curriculum.total_updates * self.curriculum.epochs
        return {"step": state.updates, "epoch": round(epoch, 4), "tokens": state.tokens, "words": state.words}

    def _close_epoch(self) -> None:
        state = self.state
        state.epoch_loss = state.epoch_nats / state.epoch_targets
        state.epoch, state.epoch_update, state.epoch_nats, state.epoch_targets = state.epoch + 1, 0, 0.0, 0

    def _summarise_epoch(self) -> None:
        state = self.state
        tqdm.write(
            f"epoch {state.epoch}/{self.curriculum.epochs}: train loss {state.epoch_loss:.4f}, "
            f"val loss {state.val_loss:.4f}, {self.objective.likelihood} perplexity {state.perplexity:.2f}, "
            f"bits per byte {state.bits_per_byte:.4f}, {state.updates} updates, {state.words:,} words seen, "
            f"{self.checkpoints.directory / f'checkpoint_epoch_{state.epoch}.pt'}"
            + (", stopped early" if state.stopped else "")
        )


def _due(update: int, every: int | None) -> bool:
    return every is not None and update % every == 0


def _check(name: str, ok: bool, wanted: str, value: Any) -> None:
    if not ok:
        raise InputError(f"trainer.{name} must be {wanted}, got {value}")
