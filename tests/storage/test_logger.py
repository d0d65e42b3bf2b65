"""The loggers mirror a run and must not change it. A server that hangs does so until the test is over."""

import contextlib
import gzip
import http.server
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from babylm_train.config import CONF
from babylm_train.logger import WandbLogger, choose_mode

START = {"name": "run", "group": "study", "variant": "optimizer=sgd", "config": {"lr": 0.1}, "run_id": None}
PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
REPLIES = {
    "RunResumeStatus": {"model": {**PROJECT, "bucket": None}},
    "UpsertBucket": {"upsertBucket": {"inserted": True, "bucket": {"id": "b", "name": "r", "project": PROJECT}}},
    "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)
    yield
    end_wandb()


def end_wandb() -> None:
    """Ends its service, which remembers the environment and writes its file to the end."""
    if "wandb" in sys.modules:
        with contextlib.suppress(ConnectionError):  # it was killed
            sys.modules["wandb"].teardown()


def wandb_logger(**changes) -> WandbLogger:
    return instantiate({**OmegaConf.load(CONF / "logger/wandb.yaml"), "timeout": 60, **changes}, _convert_="all")


def steps_and_artifacts(directory: Path) -> tuple[list[int], int]:
    """What W&B kept on disk, over all processes of the run: of small files, which have no second block."""
    from wandb.proto import wandb_internal_pb2 as pb

    end_wandb()
    steps, artifacts = [], 0
    for path in sorted(directory.glob("wandb/*run-*/*.wandb")):
        data, at = path.read_bytes(), 7
        assert len(data) < 2**15
        while at < len(data):  # checksum, size and type, then the record
            size = int.from_bytes(data[at + 4 : at + 6], "little")
            record = pb.Record.FromString(data[at + 7 : at + 7 + size])
            steps += [int(i.value_json) for i in record.history.item if "step" in (i.key, *i.nested_key)]
            artifacts += record.HasField("artifact")
            at += 7 + size
    return steps, artifacts


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as a run needs, until it breaks down: a black hole, or an address that refuses."""

    def __init__(self) -> None:
        self.hang, self.over, self.opened = threading.Event(), threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_) -> None:
        """Quiet: who asked may be gone."""

    def break_down(self, fault: str) -> None:
        if fault == "refused":
            self.shutdown()
            self.server_close()
        else:
            self.hang.set()


class Handler(http.server.BaseHTTPRequestHandler):
    log_message = Server.handle_error

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
        name = json.loads(body or "{}").get("operationName")
        if name == "CreateRunFiles":
            self.server.opened.set()
        if self.server.hang.is_set():
            self.server.over.wait()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"data": REPLIES.get(name, {})}).encode())

    do_GET = do_POST


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.over.set()
    server.break_down("refused")


def test_offline_by_default_goes_on_under_the_same_id_and_touches_no_generator(tmp_path, capfd):
    states, ids = (random.getstate(), torch.get_rng_state()), [None]
    (tmp_path / "checkpoint_best.pt").write_bytes(b"first")
    for first, last in ((1, 5), (3, 6)):  # steps come again
        logger = wandb_logger(tags=["hindi"], artifacts="best")
        ids.append(logger.start(tmp_path, **{**START, "run_id": ids[-1]}))
        for step in range(first, last):
            logger.log({"train/loss": 1.0 / step, "val/loss": math.inf}, step)
            logger.log_checkpoint(tmp_path / "checkpoint_best.pt", best=step == 4)
        logger.finish({"val/loss": 3.0, "status": "finished"}, exit_code=75)
        logger.finish({})
        logger.log({"train/loss": 2.0}, 99)
    assert ids[1] == ids[2]
    steps, artifacts = steps_and_artifacts(tmp_path)
    assert (sorted(steps), artifacts) == ([1, 2, 3, 3, 4, 4, 5], 2)
    file = next(tmp_path.glob(f"wandb/offline-run-*-{ids[1]}/*.wandb"))
    assert all(text in file.read_bytes() for text in (b"hindi", b"study", b"optimizer=sgd", b"train/loss", b"finished"))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert capfd.readouterr() == ("", "")


def children() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


FAULTS = [("refused", 0), ("black hole", 0), ("refused", 3), ("black hole", 3), ("killed", 3)]


@pytest.mark.parametrize(("fault", "update"), FAULTS)
def test_a_fault_changes_no_weight_no_metric_and_no_state(make_trainer, server, capfd, fault, update):
    """Whole runs: with a W&B that fails from the start or after an update, and with none."""
    plain = make_trainer("plain", save_every=4)
    plain.train()
    logger, before = wandb_logger(mode="online", timeout=6), children()
    trainer = make_trainer("mirrored", save_every=4, logger=logger)

    def fail() -> bool:
        if trainer.state.updates == update:
            assert update == 0 or server.opened.wait(60)
            if fault != "killed":
                server.break_down(fault)
            else:
                for pid in children() - before:
                    os.kill(pid, signal.SIGKILL)
        return False

    trainer.should_stop = fail
    fail()
    logger.start(trainer.record.directory, **START)
    trainer.train()
    logger.finish({"status": "finished"})
    assert trainer.record.metrics.read_bytes() == plain.record.metrics.read_bytes()
    assert all(map(torch.equal, trainer.model.state_dict().values(), plain.model.state_dict().values()))
    assert trainer.state == plain.state
    if fault != "killed":
        assert len(steps_and_artifacts(trainer.record.directory)[0]) == len(plain.record.lines())
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: logger: ")]
    assert "wandb sync" in line


SCRIPT = """
import pathlib, sys
from babylm_train.logger import WandbLogger
options = dict(project="p", entity=None, tags=[], job_type=None, mode="auto", artifacts="none", timeout=3)
logger = WandbLogger(**options)
logger.start(pathlib.Path("run"), name="n", group="g", config={}, run_id=None)
for step in range(50): logger.log({"train/loss": 1.0}, step)
if sys.argv[1] == "finish": logger.finish({}, exit_code=3)
sys.exit(3)
"""


@pytest.mark.parametrize("end", ["finish", "die"])
def test_the_process_ends_with_its_own_exit_code_whatever_the_server_does(server, monkeypatch, end):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    server.break_down("black hole")
    done = subprocess.run([sys.executable, "-c", SCRIPT, end], capture_output=True, text=True, timeout=200)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


SWITCHES = [
    ({"WANDB_DISABLED": "true"}, "disabled"),
    ({"WANDB_MODE": "dryrun"}, "offline"),
    ({"WANDB_API_KEY": "", "NETRC": "none"}, "offline"),
    ({"WANDB_API_KEY": ""}, "online"),  # the key of netrc
    ({"NETRC": "none"}, "online"),
]


@pytest.mark.parametrize(("variables", "expected"), SWITCHES)
def test_auto_follows_the_switches_of_wandb_itself(monkeypatch, server, variables, expected):
    Path("netrc").write_text(f"machine 127.0.0.1 login user password {'a' * 40}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    end_wandb()
    assert choose_mode("auto") == expected
    assert choose_mode("disabled") == "disabled"
