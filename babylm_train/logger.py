"""Mirrors of a run's metrics: Weights & Biases, or none. The record, `metrics.jsonl`, is written elsewhere.

Nothing here may change a run: not its weights nor its exit code, and at most some seconds of its time.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from babylm_train.errors import arguments, one_line

SYNC = "`wandb sync` can send what is kept in wandb/"


def warn(message: str) -> None:
    """Writes one line to standard error."""
    print(f"warning: logger: wandb: {message}", file=sys.stderr, flush=True)


class NoLogger:
    """Mirrors nothing; also the base of the other loggers, so that each has every call of the trainer."""

    def start(
        self, directory: Path, *, name: str, group: str, config: dict[str, Any], run_id: str | None, variant: str = ""
    ) -> str:
        """Begins, or goes on with, the mirror of the run in `directory`; returns the id to pass when it is resumed.

        `variant` is what the runs of a study have in common that differ in their seeds alone.
        """
        return run_id or ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirrors metrics of update `step`, which may come twice: training and validation, or again after a resume."""

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """Uploads a complete checkpoint file where the option `artifacts` says so. Returns before the upload ends."""

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """Ends the mirror with the run's final numbers and the exit code of the command. Later calls do nothing."""


@arguments(frozen=False)
class WandbLogger(NoLogger):
    """Weights & Biases. Its calls are made in a thread, so that only `finish` waits for a server that does not answer.

    The step is a metric and the x axis of all others, not W&B's own counter, which would refuse a step that comes
    again after a resume. Options: conf/logger/wandb.yaml.
    """

    project: Annotated[str, Field(pattern=r"^[^/\\#?%:]+$")]
    entity: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    job_type: str | None
    mode: Literal["auto", "online", "offline", "disabled"]
    artifacts: Literal["none", "best", "all"]
    timeout: PositiveFloat

    def __post_init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._run: Any = None
        self._failed = False

    def start(
        self, directory: Path, *, name: str, group: str, config: dict[str, Any], run_id: str | None, variant: str = ""
    ) -> str:
        run_id = run_id or secrets.token_hex(4)  # not `random`: its state belongs to the run
        self._thread = ThreadPoolExecutor(1)
        run = {
            "id": run_id,
            "project": self.project,
            "entity": self.entity,
            "tags": self.tags,
            "name": name[:128],  # no longer ones does the server take
            "group": group[:128],
            "job_type": self.job_type or variant[:64] or None,  # W&B groups and averages by it
            "config": config,
            "dir": str(directory.resolve()),
            "resume": "allow",
        }
        self._call(lambda: self._open(run))
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
            warn(f"{one_line(error)[:200]}; it goes on offline, `wandb sync` can send it later")
            wandb.teardown()  # its service holds on to the run's id
            self._run = wandb.init(**run, settings=settings, mode="offline")
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._call(lambda: self._run.log({**metrics, "step": step}))

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """W&B takes a copy; raise `timeout` where the upload takes longer."""
        if self.artifacts == "all" or (self.artifacts == "best" and best):
            aliases = ["best"] if best else []
            self._call(lambda: self._run.log_artifact(str(path), f"{self._run.id}-checkpoint", "model", aliases))

    def finish(self, summary: dict[str, float | int | str], *, exit_code: int = 0) -> None:
        """Waits up to `timeout` seconds."""
        self._call(lambda: self._run.summary.update(summary))
        last = self._call(lambda: self._run.finish(exit_code=exit_code))
        if self._thread is not None and last is not None:
            finished = last in wait([last], self.timeout).done
            if not finished:
                warn(f"not finished after {self.timeout:g} s; {SYNC}")
            self._thread.shutdown(wait=finished, cancel_futures=True)  # its last warning included
            self._thread = None

    def _call(self, call: Callable[[], object]) -> Future[None] | None:
        """Calls in the thread, after all that was called before; whatever W&B raises there ends the mirror alone."""
        if self._thread is None:
            return None
        future = self._thread.submit(self._try, call)
        future.add_done_callback(self._warn_if_failed)
        return future

    def _try(self, call: Callable[[], object]) -> None:
        if not self._failed:
            self._failed = True  # until it has not
            call()
            self._failed = False

    def _warn_if_failed(self, future: Future[None]) -> None:
        if self._thread is not None and not future.cancelled() and (error := future.exception()) is not None:
            warn(f"{type(error).__name__}: {one_line(error)[:200]}; {SYNC}")


def choose_mode(option: str) -> Literal["online", "offline", "disabled"]:
    """`auto` follows W&B's own switches: WANDB_DISABLED, WANDB_MODE, `wandb offline`, `wandb disabled`.

    Online is only possible with an API key; without one it is offline. Asks no server.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own telemetry waits for its server at exit
    import wandb
    from requests.utils import get_netrc_auth  # which W&B depends on

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")  # as transformers reads it
    mode = ("disabled" if off else settings.mode) if option == "auto" else option
    if mode in ("disabled", "offline", "dryrun"):
        return "disabled" if mode == "disabled" else "offline"
    if settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url):
        return "online"
    if option == "online":
        warn("there is no API key, see `wandb login`; it goes on offline")
    return "offline"
