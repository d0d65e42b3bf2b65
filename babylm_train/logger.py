"""Mirrors of a run's metrics: Weights & Biases, TensorBoard, none. The record, `metrics.jsonl`, is written elsewhere.

Nothing here may change a run: not its weights, exit code or signals, and at most some seconds of its time.
W&B therefore lives in a process of its own (`serve_wandb`). In ours it would replace `sys.exit` and `sys.excepthook`,
block a log call on a stuck service, and wait at exit, without a bound, for a server that does not answer.
"""

import contextlib
import importlib.util
import json
import netrc
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from babylm_train.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

MODES = ("auto", "online", "offline", "disabled")
ARTIFACTS = ("none", "best", "all")
UNSENT_LIMIT = 16 * 2**20  # bytes kept for a W&B process that does not read; about 100 000 log calls
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
        self._link: _Link | None = None

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
            self._link = _Link(self._directory / "console.log", {**self._order, "mode": mode}, kept)
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


class _Link:
    """Our end of the two pipes to the W&B process. No method blocks, but for the `wait` of `exchange`."""

    def __init__(self, console: Path, order: dict[str, Any], kept: bytes) -> None:
        """Start the process; its own output and its traceback go to the file `console`. Raises OSError.

        `order` says which run to open; `kept` is what was queued for a process that could not open it.
        """
        package_root = str(Path(__file__).resolve().parents[1])
        code = "import sys; sys.path.insert(0, sys.argv[1]); from babylm_train.logger import serve_wandb; serve_wandb()"
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        environment.setdefault("WANDB_ERROR_REPORTING", "false")
        self._console = console
        with console.open("ab") as output:
            # -P: a directory `wandb` in the working directory must not be imported. A new session: Ctrl-C is the
            # run's; the W&B process ends when the run says so or its pipe closes.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, package_root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        os.set_blocking(self._from.fileno(), False)
        self._unsent = bytearray(json.dumps(order, default=str).encode() + b"\n" + kept)
        self.kept = bytearray(kept)  # until the run is open: another process may have to open it
        self._received = b""
        self._ready = self.closed = self.done = False
        self.refused = ""  # why the server did not take the run
        self.exchange()

    @property
    def overfull(self) -> bool:
        return max(len(self._unsent), len(self.kept)) > UNSENT_LIMIT

    def queue(self, kind: str, body: dict[str, Any]) -> None:
        line = json.dumps([kind, body], default=str).encode() + b"\n"
        self._unsent += line
        if not self._ready:
            self.kept += line

    def exchange(self, wait: float = 0.0) -> bool:
        """Write what the pipe takes, read what it holds, at most `wait` seconds later; true if there was an answer."""
        if wait:
            with selectors.DefaultSelector() as selector:
                selector.register(self._from, selectors.EVENT_READ)
                selector.select(wait)
        try:
            while self._unsent:
                del self._unsent[: os.write(self._to.fileno(), self._unsent[: 2**16])]
        except BlockingIOError:
            pass  # full: the rest goes with the next call
        except OSError:
            self.closed = True  # an answer, or the end of file, may still be there to read
        received = b""
        try:
            while chunk := os.read(self._from.fileno(), 2**16):
                received += chunk
            self.closed = True
        except BlockingIOError:
            pass
        *lines, self._received = (self._received + received).split(b"\n")
        for kind, text in map(json.loads, lines):
            if kind == "ready":
                self._ready = True
                self.kept.clear()
            self.done = self.done or kind == "done"
            self.refused = text if kind == "refused" else self.refused
        return bool(lines)

    def last_words(self) -> str:
        """The last line of the process's own output: the message of its exception, as a rule."""
        try:
            lines = self._console.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"{lines[-1][:200] if lines else 'without a word'}; see wandb/{self._console.name}"

    def end(self) -> None:
        """End the process; the service that it started follows by itself."""
        if not self.done:
            self._process.kill()
        self._to.close()
        self._from.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()


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
    return mode == "online" or (mode == "auto" and _logged_in(wandb.setup().settings))


# The rest runs in the W&B process. An exception that nobody expected ends it, which the run reports as one line.


def serve_wandb() -> None:
    """Main function of the W&B process: a JSON line on standard input per call of the logger, answers on output."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a scheduler may signal every process of a job; the run decides
        # The service inherits descriptors 0 to 2; it must hold none of the pipes, or their ends are not seen.
        orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        _serve(map(json.loads, orders), answers)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)  # W&B's exit hooks would wait for the server


def _serve(orders: Iterator[Any], answers: IO[bytes]) -> None:
    order = next(orders)
    run = _open_run(order, answers)
    if run is None:
        return
    _answer(answers, "ready", "")
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    end: dict[str, Any] = {"summary": {}, "exit_code": 1}  # the run was killed if its pipe closes without a word
    for kind, body in orders:
        if kind == "log":
            run.log(body)
        elif kind == "checkpoint":
            _upload(run, Path(body["path"]), body["name"], best=body["best"])
        elif kind == "finish":
            end = body
            break
    run.summary.update(end["summary"])
    url = None if run.offline else run.settings.base_url
    threading.Thread(target=_bound, args=(url, order, answers), daemon=True).start()
    run.finish(exit_code=end["exit_code"])
    _answer(answers, "done", "")


def _answer(answers: IO[bytes], kind: str, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the run is gone; what is kept on disk is still worth finishing
        answers.write(json.dumps([kind, text]).encode() + b"\n")


def _open_run(order: dict[str, Any], answers: IO[bytes]) -> Any:
    """The W&B run, or None where the server does not take it within half of the timeout."""
    import wandb

    sys.argv = ["babylm_train"]  # what W&B shows as the program
    settings = wandb.Settings(
        init_timeout=order["timeout"] / 2,
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        x_stats_pid=order["pid"],
        x_transaction_log_flush_interval=2.0,  # a kill of the machine loses two seconds, not the last 32 KiB
    )
    mode = order["mode"]
    if mode == "auto":
        mode = "online" if _logged_in(wandb.setup().settings) else "offline"
    try:
        return wandb.init(**order["run"], mode=mode, resume="allow", settings=settings)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        # This process cannot open it again: the service holds on to the id. The run starts another one.
        _answer(answers, "refused", str(error).splitlines()[0][:200])
        return None


def _logged_in(settings: Any) -> bool:
    """Whether there is a key for the server: in the environment, W&B's settings or netrc. Asks nobody."""
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(settings.base_url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _upload(run: Any, path: Path, name: str, *, best: bool) -> None:
    import wandb

    artifact = wandb.Artifact(f"{run.id}-checkpoint", type="model")
    artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)  # no copies: the file may be large
    logged = run.log_artifact(artifact, aliases=["best"] if best else [])
    if not run.offline:  # offline, the file stays where `wandb sync` will look for it
        threading.Thread(target=_remove_after, args=(logged, path), daemon=True).start()


def _remove_after(artifact: Any, path: Path) -> None:
    artifact.wait()
    path.unlink(missing_ok=True)


def _bound(url: str | None, order: dict[str, Any], answers: IO[bytes]) -> None:
    """End this process `timeout` seconds after the server's last sign of life; tell the run about each sign."""
    started = last_sign = time.monotonic()
    while time.monotonic() < min(last_sign + order["timeout"], started + order["upload_timeout"]):
        time.sleep(1.0)
        if url and _answering(url, order["timeout"] / 4):
            last_sign = time.monotonic()
            _answer(answers, "alive", "")
    os._exit(1)


def _answering(url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True  # an error page is an answer
    except OSError:
        return False
