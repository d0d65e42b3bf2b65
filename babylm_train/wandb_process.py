"""Weights & Biases in a process of its own: `Link` is the run's end of the pipes to it, `serve` its main function.

In the run's own process it would replace `sys.exit` and `sys.excepthook`, block a log call on a stuck service, and wait
at exit, without a bound, for a server that does not answer.
"""

import contextlib
import json
import netrc
import os
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
from typing import IO, Any
from urllib.parse import urlsplit

UNSENT_LIMIT = 16 * 2**20  # bytes kept for a W&B process that does not read; about 100 000 log calls


class Link:
    """Our end of the two pipes to the W&B process. No method blocks, but for the `wait` of `exchange`."""

    def __init__(self, console: Path, order: dict[str, Any], kept: bytes) -> None:
        """Start the process; its own output and its traceback go to the file `console`. Raises OSError.

        `order` says which run to open; `kept` is what was queued for a process that could not open it.
        """
        package_root = str(Path(__file__).resolve().parents[1])
        code = "import sys; sys.path.insert(0, sys.argv[1]); from babylm_train.wandb_process import serve; serve()"
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


# The rest runs in the W&B process. An exception that nobody expected ends it, which the run reports as one line.


def serve() -> None:
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
        mode = "online" if logged_in(wandb.setup().settings) else "offline"
    try:
        return wandb.init(**order["run"], mode=mode, resume="allow", settings=settings)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        # This process cannot open it again: the service holds on to the id. The run starts another one.
        _answer(answers, "refused", str(error).splitlines()[0][:200])
        return None


def logged_in(settings: Any) -> bool:
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
