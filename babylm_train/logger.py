"""Mirrors of a run's metrics: Weights & Biases, TensorBoard, none. The record, `metrics.jsonl`, is written elsewhere.

Nothing here may change a run: not its weights nor its exit code, and at most some seconds of its time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from babylm_train.errors import InputError, arguments, printable
from babylm_train.files import storage_errors

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

Mode = Literal["auto", "online", "offline", "disabled"]
NAME_LIMIT = 128  # characters of a run's name or group that the W&B server takes


def warn(message: object) -> None:
    """Writes one line to standard error; a server's reply may hold anything."""
    print(f"warning: logger: {printable(message)}", file=sys.stderr, flush=True)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """L2 norms of the gradients as they are now: `gradients/global`, and `gradients/<layer>` for each block or module.

    `transformer.h.3.attn.weight` is of `transformer.h.3`; without a number, a parameter is of its module. Parameters
    without a gradient are left out.
    """
    import torch

    layers: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            layer = re.match(r".*?\.\d+(?=\.)|.*(?=\.)|.*", name)
            layers.setdefault(layer.group(), []).append(parameter.grad)  # type: ignore[union-attr]
    if not layers:
        return {}
    norms = torch.stack([torch.nn.utils.get_total_norm(gradients) for gradients in layers.values()])
    values = torch.cat([torch.linalg.vector_norm(norms)[None], norms]).tolist()  # one transfer from the device
    return dict(zip(["gradients/global", *(f"gradients/{layer}" for layer in layers)], values, strict=True))


class NoLogger:
    """Mirrors nothing; also the base of the other loggers, so that each has every call of the trainer."""

    def start(
        self,
        directory: Path,
        *,
        name: str,
        group: str,
        config: dict[str, Any],
        run_id: str | None,
        step: int,
        arm: str = "",
    ) -> str:
        """Begins, or goes on with, the mirror of the run in `directory`; returns the id to pass when it is resumed.

        `config` is a plain dict; `step` is the update that a resumed run goes on from, 0 for a fresh one; `arm` is what
        the runs of a study have in common that differ in their seeds alone.
        """
        return run_id or ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirrors metrics of update `step`, which may come twice: training and validation, or again after a resume."""

    def log_gradients(self, model: nn.Module, step: int) -> None:
        """Mirrors `gradient_norms(model)` where the option `gradients` is on."""

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """Uploads a complete checkpoint file where the option `artifacts` says so. Returns before the upload ends."""

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """Ends the mirror with the run's final numbers and the exit code of the command. Later calls do nothing."""


@arguments(frozen=False)
class TensorBoardLogger(NoLogger):
    """Event files in `<run directory>/tensorboard`, for `tensorboard --logdir multirun_outputs`.

    Args:
        gradients: also the gradient norm of each layer.
    """

    gradients: bool

    def __post_init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError("logger: tensorboard is not installed: `pip install tensorboard`, or choose logger=none")
        self._writer: SummaryWriter | None = None

    def start(self, directory: Path, *, run_id: str | None, step: int, **about: Any) -> str:
        """See `NoLogger.start`. Points past `step` that an interrupted run had written are purged."""
        from torch.utils.tensorboard import SummaryWriter

        with storage_errors(directory):
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else 0)
            self._writer.add_text("config", _as_text(about))
        return run_id or ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """See `NoLogger.log`."""
        if self._writer is not None:
            with storage_errors(self._writer.log_dir):
                for key, value in metrics.items():
                    self._writer.add_scalar(key, value, step)

    def log_gradients(self, model: nn.Module, step: int) -> None:
        """See `NoLogger.log_gradients`."""
        if self.gradients:
            self.log(gradient_norms(model), step)

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """See `NoLogger.finish`."""
        if self._writer is not None:
            with storage_errors(self._writer.log_dir):
                self._writer.add_text("summary", _as_text({**summary, "exit_code": exit_code}))
                self._writer.close()
            self._writer = None


def _as_text(values: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=2, ensure_ascii=False, default=str)}\n```"


@arguments(frozen=False)
class WandbLogger(NoLogger):
    """Weights & Biases. Its calls are made in a thread, so that only `finish` waits for a server that does not answer.

    The step is a metric and the x axis of all others, not W&B's own counter, which would refuse a step that comes
    again after a resume. Training and validation metrics of one step are two rows.

    Args: as conf/logger/wandb.yaml explains them.
    """

    project: Annotated[str, Field(pattern=r"^[^/\\#?%:]+$")]
    entity: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    job_type: str | None
    mode: Mode
    artifacts: Literal["none", "best", "all"]
    gradients: bool
    timeout: PositiveFloat

    def __post_init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._run: Any = None

    def start(self, directory: Path, *, run_id: str | None, name: str, group: str, arm: str = "", **about: Any) -> str:
        """See `NoLogger.start`. Returns at once."""
        run_id = run_id or secrets.token_hex(4)  # not `random`: its state belongs to the run
        self._thread = ThreadPoolExecutor(1)
        run = {
            "id": run_id,
            "project": self.project,
            "entity": self.entity,
            "tags": self.tags,
            "name": name[:NAME_LIMIT],
            "group": group[:NAME_LIMIT],
            "job_type": self.job_type or arm[:64] or None,  # W&B groups and averages by it
            "config": about["config"],
            "dir": str(directory.resolve()),
            "resume": "allow",
        }
        self._call(self._open, run)
        return run_id

    def _open(self, run: dict[str, Any]) -> None:
        mode = choose_mode(self.mode)
        import wandb

        settings = wandb.Settings(
            init_timeout=min(self.timeout, 10) / 2,
            finish_timeout=self.timeout / 2,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_transaction_log_flush_interval=2.0,  # a kill of the machine loses two seconds
        )
        try:
            self._run = wandb.init(**run, settings=settings, mode=mode)
        except wandb.Error as error:
            if mode != "online":
                raise
            warn(f"wandb: {_first_line(error)}; it goes on offline, `wandb sync` can send it later")
            wandb.teardown()  # its service holds on to the run's id
            self._run = wandb.init(**run, settings=settings, mode="offline")
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """See `NoLogger.log`."""
        self._call(lambda: self._run.log({**metrics, "step": step}))

    def log_gradients(self, model: nn.Module, step: int) -> None:
        """See `NoLogger.log_gradients`."""
        if self.gradients:
            self.log(gradient_norms(model), step)

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """See `NoLogger.log_checkpoint`. W&B takes a copy; raise `timeout` where the upload takes longer."""
        if self.artifacts == "all" or (self.artifacts == "best" and best):
            aliases = ["best"] if best else []
            self._call(lambda: self._run.log_artifact(str(path), f"{self._run.id}-checkpoint", "model", aliases))

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """See `NoLogger.finish`. Waits up to `timeout` seconds."""
        self._call(lambda: self._run.summary.update(summary))
        last = self._call(lambda: self._run.finish(exit_code=exit_code))
        try:
            if last is not None:
                last.exception(self.timeout)  # its own has been said
        except TimeoutError:
            self._end(f"not finished after {self.timeout:g} s")
        except CancelledError:
            pass  # after a call that failed
        self._end()

    def _call(self, call: Callable[..., object], *given: object) -> Future[object] | None:
        """Calls in the thread, after all that was called before; whatever W&B raises there ends the mirror alone."""
        if self._thread is None:
            return None
        future: Future[object] = self._thread.submit(call, *given)
        future.add_done_callback(self._end_if_failed)
        return future

    def _end_if_failed(self, future: Future[object]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._end(f"{type(error).__name__}: {_first_line(error)}")

    def _end(self, why: str = "") -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if why:
            warn(f"wandb: {why}; `wandb sync` can send what is kept in wandb/")
        thread.shutdown(wait=False, cancel_futures=True)


def choose_mode(option: Mode) -> Literal["online", "offline", "disabled"]:
    """`auto` follows W&B's own switches: WANDB_DISABLED, WANDB_MODE, `wandb offline`, `wandb disabled`.

    Online is only possible with an API key; without one it is offline. Asks no server.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own telemetry waits for its server at exit
    if option in ("offline", "disabled"):
        return option
    import wandb
    from requests.utils import get_netrc_auth  # which W&B depends on

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if option == "auto":
        if settings.mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
            return "disabled"
        if settings.mode in ("offline", "dryrun"):
            return "offline"
    if settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url):
        return "online"
    if option == "online":
        warn("wandb: there is no API key, see `wandb login`; it goes on offline")
    return "offline"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:200]
