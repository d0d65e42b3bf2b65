"""Mirrors of a run's metrics: Weights & Biases, TensorBoard, none. The record, `metrics.jsonl`, is written elsewhere.

Nothing here may change a run: not its weights, exit code or signals, and at most some seconds of its time.
W&B lives in a process of its own, see wandb_process.py.
"""

import importlib.util
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylm_train.errors import InputError
from babylm_train.wandb_process import Link, logged_in

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

MODES = ("auto", "online", "offline", "disabled")
ARTIFACTS = ("none", "best", "all")
NAME_LIMIT = 128  # characters of a run name or a group that the W&B server takes


def warn(message: str) -> None:
    """Write one line to standard error; control characters (a server's reply may hold some) are dropped."""
    line = "".join(character if character.isprintable() else " " for character in message)
    print(f"warning: logger: {line}", file=sys.stderr, flush=True)


def gradient_norms(model: "nn.Module") -> dict[str, float]:
    """L2 norms of the gradients as they are now: `gradients/global`, and `gradients/<layer>` for each block or module.

    Call it after unscaling, before or after clipping as the caller prefers. Parameters without a gradient are left out.
    """
    import torch

    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squared = torch.linalg.vector_norm(parameter.grad.detach(), dtype=torch.float32).square()
            layers.setdefault(_layer(name), []).append(squared)
    if not layers:
        return {}
    per_layer = torch.stack([torch.stack(squares).sum() for squares in layers.values()])
    values = torch.cat([per_layer.sum()[None], per_layer]).sqrt().tolist()  # one transfer from the device
    return dict(zip(["gradients/global", *(f"gradients/{layer}" for layer in layers)], values, strict=True))


def _layer(parameter: str) -> str:
    """`transformer.h.3.attn.c_attn.weight` -> `transformer.h.3`; without a number, the module of the parameter."""
    parts = parameter.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or parameter


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"logger.{key}: {value!r} is not one of {', '.join(choices)}")


def _check_bool(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"logger.{key}: {value!r} is not true or false")


def _check_seconds(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"logger.{key}: {value!r} is not a positive number of seconds")


def _check_text(key: str, value: object, forbidden: str = "") -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value or any(character in value for character in forbidden):
        rule = f" without any of {forbidden}" if forbidden else ""
        raise InputError(f"logger.{key}: {value!r} is not null or a text{rule}")


class NoLogger:
    """Mirrors nothing; also the base of the other loggers, so that each has every call of the trainer."""

    gradients: bool = False
    """Whether `log_gradients` does anything. The trainer need not call it where this is false."""

    def start(
        self, directory: Path, *, name: str, group: str, config: dict, run_id: str | None, step: int, arm: str = ""
    ) -> str:
        """Begin, or go on with, the mirror of the run in `directory`; returns the id to pass when the run is resumed.

        `config` is a plain dict; `step` is the update that a resumed run goes on from, 0 for a fresh one; `arm` is what
        the runs of a study have in common that differ in their seeds alone.
        """
        return run_id or ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirror metrics of update `step`, which may come twice: training and validation, or again after a resume."""

    def log_gradients(self, model: "nn.Module", step: int) -> None:
        """Mirror `gradient_norms(model)` where the option `gradients` is on."""
        if self.gradients:
            self.log(gradient_norms(model), step)

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """Upload a complete checkpoint file where the option `artifacts` says so. Returns before the upload ends."""

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """End the mirror with the run's final numbers and the exit code of the command. Later calls do nothing."""


class TensorBoardLogger(NoLogger):
    """Event files in `<run directory>/tensorboard`, for `tensorboard --logdir multirun_outputs`."""

    def __init__(self, *, gradients: bool) -> None:
        """Raises InputError for a wrong option, or where tensorboard is not installed."""
        _check_bool("gradients", gradients)
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError("logger: tensorboard is not installed: `pip install tensorboard`, or choose logger=none")
        self.gradients = gradients
        self._writer: SummaryWriter | None = None
        self._step = 0

    def start(
        self, directory: Path, *, name: str, group: str, config: dict, run_id: str | None, step: int, arm: str = ""
    ) -> str:
        """See `NoLogger.start`. Points past `step` that an interrupted run had written are purged."""
        from torch.utils.tensorboard import SummaryWriter

        self._step = step
        try:
            # A fresh run purges step 0 too: one that died before its first checkpoint may have left events.
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else 0)
            text = json.dumps({"name": name, "group": group, **config}, indent=2, ensure_ascii=False, default=str)
            self._writer.add_text("config", f"```json\n{text}\n```", step)
        except OSError as error:
            self._give_up(error)
        return run_id or ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """See `NoLogger.log`."""
        if self._writer is None:
            return
        self._step = step
        try:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._give_up(error)

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """See `NoLogger.finish`."""
        if self._writer is None:
            return
        try:
            text = json.dumps({**summary, "exit_code": exit_code}, indent=2, ensure_ascii=False)
            self._writer.add_text("summary", f"```json\n{text}\n```", self._step)
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        warn(f"tensorboard: {error}; the run goes on with metrics.jsonl only")
        self._writer = None


class WandbLogger(NoLogger):
    """Weights & Biases in a process of its own. No call waits for it, except `finish`: up to `timeout` seconds.

    The step is a metric and the x axis of all others, not W&B's own counter, which would refuse a step that comes
    again after a resume. Training and validation metrics of one step are two rows.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        tags: list[str],
        job_type: str | None,
        mode: str,
        artifacts: str,
        gradients: bool,
        timeout: float,
        upload_timeout: float,
    ) -> None:
        """Check the options (conf/logger/wandb.yaml explains them). Raises InputError naming the key of a wrong one."""
        _check_choice("mode", mode, MODES)
        _check_choice("artifacts", artifacts, ARTIFACTS)
        _check_bool("gradients", gradients)
        _check_seconds("timeout", timeout)
        _check_seconds("upload_timeout", upload_timeout)
        if not project:
            raise InputError("logger.project: a name is needed")
        _check_text("project", project, forbidden="/\\#?%:")
        _check_text("entity", entity)
        _check_text("job_type", job_type)
        if not isinstance(tags, list) or not all(isinstance(tag, str) and 1 <= len(tag) <= 64 for tag in tags):
            raise InputError(f"logger.tags: {tags!r} is not a list of texts of 1 to 64 characters")
        self.gradients = gradients
        self._artifacts = artifacts
        self._mode = _wanted_mode(mode)
        self._seconds = {"timeout": timeout, "upload_timeout": upload_timeout}
        self._run = {"project": project, "entity": entity, "tags": tags, "job_type": job_type}
        self._directory = Path()
        self._order: dict[str, Any] = {}
        self._link: Link | None = None

    def start(
        self, directory: Path, *, name: str, group: str, config: dict, run_id: str | None, step: int, arm: str = ""
    ) -> str:
        """See `NoLogger.start`. Returns at once; an unreachable server costs nothing here."""
        run_id = run_id or secrets.token_hex(4)  # not `random`: its state belongs to the run
        if self._mode == "disabled":
            return run_id
        self._directory = directory.resolve() / "wandb"
        run = {"id": run_id, "name": name[:NAME_LIMIT], "group": group[:NAME_LIMIT], "dir": str(directory.resolve())}
        kind = self._run["job_type"] or arm[:64] or None  # W&B groups and averages by it
        self._order = {
            "run": {**self._run, **run, "job_type": kind, "config": config},
            "pid": os.getpid(),
            **self._seconds,
        }
        self._open(self._mode, b"")
        return run_id

    def _open(self, mode: str, kept: bytes) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._link = Link(self._directory / "console.log", {**self._order, "mode": mode}, kept)
        except OSError as error:
            self._give_up(f"its process did not start: {error}")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """See `NoLogger.log`."""
        self._send("log", {**metrics, "step": step})

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """See `NoLogger.log_checkpoint`. A hard link keeps the file when the run prunes or replaces it."""
        if self._link is None or self._artifacts == "none" or (self._artifacts == "best" and not best):
            return
        kept = self._directory / "uploads" / f"{secrets.token_hex(4)}_{path.name}"
        try:
            kept.parent.mkdir(exist_ok=True)
            os.link(path, kept)
        except OSError as error:
            warn(f"wandb: {path.name} is not uploaded: {error}")
            return
        self._send("checkpoint", {"path": str(kept), "name": path.name, "best": best})

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """See `NoLogger.finish`. Waits up to `timeout` seconds, and up to `upload_timeout` while the server answers."""
        self._send("finish", {"summary": summary, "exit_code": exit_code})
        timeout = self._seconds["timeout"]
        patience = timeout - min(0.5, timeout / 4)  # the rest is for ending the process: `timeout` is all that is lost
        started = last_sign = time.monotonic()
        while self._link is not None and not self._link.done:
            now = time.monotonic()
            if now > min(last_sign + patience, started + max(self._seconds.values())):
                self._give_up(f"not finished after {now - started:.0f} s; `wandb sync` can send what is kept here")
            elif self._link.exchange(wait=0.1):
                last_sign = time.monotonic()
            self._report()
        if self._link is not None:
            self._link.end()
            self._link = None

    def _send(self, kind: str, body: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.queue(kind, body)
            self._link.exchange()
            self._report()

    def _report(self) -> None:
        """Go on offline where the server refused the run, and without W&B where its process is gone."""
        if self._link is None:
            return
        if self._link.refused:
            warn(f"wandb: {self._link.refused}; the run goes on offline, `wandb sync` can send it later")
            self._link.end()
            self._open("offline", bytes(self._link.kept))
        elif self._link.overfull:
            self._give_up("its process does not read")
        elif self._link.closed and not self._link.done:
            self._give_up(f"its process ended ({self._link.last_words()})")

    def _give_up(self, reason: str) -> None:
        warn(f"wandb: {reason}; the run goes on with metrics.jsonl only")
        if self._link is not None:
            self._link.end()
        self._link = None


def _wanted_mode(option: str) -> str:
    """An explicit option wins, then WANDB_MODE; `auto` is left for the W&B process, which can look for an API key."""
    if option != "auto":
        return option
    value = os.environ.get("WANDB_MODE", "auto")
    mode = {"run": "online", "shared": "online", "dryrun": "offline"}.get(value, value)
    if mode not in MODES:
        raise InputError(f"WANDB_MODE: {value!r} is not one of {', '.join(MODES[1:])}")
    return mode


def online() -> bool:
    """Whether `mode: auto` means online: WANDB_MODE says so, or there is an API key. Asks no server."""
    import wandb

    mode = _wanted_mode("auto")
    return mode == "online" or (mode == "auto" and logged_in(wandb.setup().settings))
