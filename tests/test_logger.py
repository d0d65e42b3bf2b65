"""The loggers mirror a run and must not change it: neither its time by more than `timeout`, nor its process."""

import http.server
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from babylm_train.errors import InputError
from babylm_train.logger import NoLogger, TensorBoardLogger, WandbLogger, gradient_norms

CONF = Path(__file__).resolve().parents[1] / "conf" / "logger"
START = {
    "name": "run",
    "group": "study",
    "arm": "optimizer=sgd",
    "config": {"optimizer": {"lr": 0.1}},
    "run_id": None,
    "step": 0,
}
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


def wandb_logger(**changes) -> WandbLogger:
    options = yaml.safe_load((CONF / "wandb.yaml").read_text(encoding="utf-8"))
    assert options.pop("_target_") == "babylm_train.logger.WandbLogger"
    return WandbLogger(**{**options, **changes})


def until_ready(logger: WandbLogger) -> int:
    """Wait for an open run; returns the id of the W&B process."""
    link = logger._link
    assert link is not None
    end = time.monotonic() + 30
    while not link._ready and time.monotonic() < end:
        link.exchange(wait=0.05)
    assert link._ready
    return link._process.pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def records(path: Path) -> list:
    """The records in a `.wandb` file: blocks of 32 KiB, each of fragments with a header of checksum, size and type."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, found, part, position = path.read_bytes(), [], b"", 7
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last fragment
            found.append(pb.Record.FromString(part))
            part = b""
    return found


def history(directory: Path) -> list[dict]:
    """The rows that W&B kept on disk, over all processes of the run."""
    rows = []
    for path in sorted(directory.glob("wandb/*run-*/*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as a run needs. `hang` makes it a black hole, `close()` an address that refuses."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.hang, self.bodies = threading.Event(), list[bytes]()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: Server

    def log_message(self, format, *args):
        """Quiet."""

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.bodies.append(body)
        name = json.loads(body or "{}").get("operationName")
        self.answer({"data": REPLIES.get(name, {})})

    def answer(self, content):
        if self.server.hang.is_set():
            time.sleep(30)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.hang.set()
    server.close()


def finish_timed(logger, **summary) -> float:
    began = time.monotonic()
    logger.finish(summary)
    return time.monotonic() - began


def test_offline_by_default_and_our_process_is_untouched(tmp_path, capfd):
    hooks = sys.excepthook, sys.exit, *(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    states, threads = (random.getstate(), torch.get_rng_state()), threading.active_count()
    logger = wandb_logger()
    began = time.monotonic()
    run_id = logger.start(tmp_path, **START)
    logger.log({"train/loss": 2.0, "train/learning_rate": 1e-3}, 1)
    logger.log({"val/loss": math.inf}, 1)
    assert time.monotonic() - began < 1.0
    until_ready(logger)
    logger.finish({"val/loss": 3.0, "status": "finished"})
    logger.finish({})
    logger.log({"train/loss": 2.0}, 2)
    assert [row["step"] for row in history(tmp_path)] == [1, 1]
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    content = file.read_bytes()
    assert all(text in content for text in (b"study", b"optimizer=sgd", b"train/learning_rate", b"finished"))
    assert hooks == (sys.excepthook, sys.exit, *(signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_resume_goes_on_under_the_same_id_with_steps_that_come_again(tmp_path, capfd):
    ids = []
    for first, last, run_id in ((1, 5, None), (3, 6, "first")):
        logger = wandb_logger()
        start = {**START, "run_id": run_id and ids[0], "step": first - 1}
        ids.append(logger.start(tmp_path, **start))
        for step in range(first, last):
            logger.log({"train/loss": 1.0 / step}, step)
        logger.finish({}, exit_code=75 if run_id is None else 0)
    assert ids[0] == ids[1]
    assert sorted(row["step"] for row in history(tmp_path)) == [1, 2, 3, 3, 4, 4, 5]
    assert capfd.readouterr().err == ""


def test_online_sends_metrics_config_group_and_tags(tmp_path, server, capfd):
    logger = wandb_logger(tags=["hindi"])
    logger.start(tmp_path, **START)
    until_ready(logger)
    logger.log({"train/loss": 2.5}, 7)
    assert finish_timed(logger, status="finished") < 5
    sent = b"".join(server.bodies)
    assert all(text in sent for text in (b"hindi", b"study", b"optimizer", b"train/loss", b"finished"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_unreachable_at_the_start(tmp_path, server, capfd, fault):
    server.close() if fault == "refused" else server.hang.set()
    logger = wandb_logger(timeout=6)
    began = time.monotonic()
    run_id = logger.start(tmp_path, **START)
    logger.log({"train/loss": 2.0}, 1)
    assert time.monotonic() - began < 1.0
    time.sleep(2.5)  # the run goes on while W&B waits for its server
    logger.log({"train/loss": 1.0}, 2)
    assert finish_timed(logger) < 6.5
    assert [row["step"] for row in history(tmp_path)] == [1, 2]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{run_id}"))
    (line,) = capfd.readouterr().err.splitlines()
    assert "offline" in line


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_unreachable_during_the_run(tmp_path, server, capfd, fault):
    logger = wandb_logger(timeout=3)
    logger.start(tmp_path, **START)
    process = until_ready(logger)
    (service,) = children(process)
    server.close() if fault == "refused" else server.hang.set()
    for step in range(100):
        logger.log({"train/loss": 2.0}, step)
    assert finish_timed(logger, status="finished") < 3.5
    assert len(history(tmp_path)) == 100
    (line,) = capfd.readouterr().err.splitlines()
    assert "wandb sync" in line
    assert_gone(process, service)


def assert_gone(*pids: int) -> None:
    end = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(running, pids))


@pytest.mark.parametrize("victim", ["service", "process", "process stops"])
def test_wandb_dies_during_the_run(tmp_path, capfd, victim):
    logger = wandb_logger(timeout=2)
    logger.start(tmp_path, **START)
    process = until_ready(logger)
    (service,) = children(process)
    number = signal.SIGSTOP if victim == "process stops" else signal.SIGKILL
    os.kill(service if victim == "service" else process, number)
    began = time.monotonic()
    for step in range(20_000):  # more than the pipe holds
        logger.log({"train/loss": 2.0}, step)
    assert time.monotonic() - began < 5
    assert finish_timed(logger) < 2.5
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: logger: wandb: ")
    assert "metrics.jsonl only" in line
    assert_gone(process, service)


def test_a_process_that_does_not_read_costs_bounded_memory(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("babylm_train.wandb_process.UNSENT_LIMIT", 10_000)
    logger = wandb_logger()
    logger.start(tmp_path, **START)
    os.kill(until_ready(logger), signal.SIGSTOP)
    for step in range(5_000):
        logger.log({"train/loss": 2.0}, step)
    assert logger._link is None
    assert "does not read" in capfd.readouterr().err


def test_killed_run_keeps_all_its_rows(tmp_path):
    script = """
import os, sys, yaml, pathlib
from babylm_train.logger import WandbLogger
options = yaml.safe_load(open(sys.argv[1])); options.pop("_target_")
logger = WandbLogger(**options)
logger.start(pathlib.Path(sys.argv[2]), name="n", group="g", config={}, run_id=None, step=0)
for step in range(50): logger.log({"train/loss": 1.0}, step)
print(logger._link._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script, str(CONF / "wandb.yaml"), str(tmp_path)]
    began = time.monotonic()
    killed = subprocess.run(
        command, cwd=CONF.parents[1], capture_output=True, text=True, timeout=60
    )  # ends: no pipe held
    assert killed.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 15
    assert_gone(int(killed.stdout))
    assert len(history(tmp_path)) == 50


def test_checkpoint_is_kept_for_the_upload_when_the_run_replaces_it(tmp_path, capfd):
    checkpoint = tmp_path / "checkpoint_best.pt"
    checkpoint.write_bytes(b"first")
    logger = wandb_logger(artifacts="best", mode="offline")
    logger.start(tmp_path, **START)
    logger.log_checkpoint(checkpoint, best=False)
    logger.log_checkpoint(checkpoint, best=True)
    checkpoint.unlink()
    logger.log_checkpoint(checkpoint, best=True)
    logger.finish({})
    (kept,) = tmp_path.glob("wandb/uploads/*")
    assert kept.read_bytes() == b"first"
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert str(kept).encode() in file.read_bytes()
    (line,) = capfd.readouterr().err.splitlines()
    assert "checkpoint_best.pt is not uploaded" in line


def test_gradient_norms_of_each_layer():
    model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])})
    model["head"] = torch.nn.Linear(2, 1)
    assert gradient_norms(model) == {}
    for value, layer in zip((1.0, 2.0), model["h"], strict=True):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
    norms = gradient_norms(model)
    assert norms == pytest.approx({"gradients/h.0": 6**0.5, "gradients/h.1": 24**0.5, "gradients/global": 30**0.5})
    assert torch.equal(model["h"][0].weight.grad, torch.ones(2, 2))


def test_gradients_only_where_asked(tmp_path):
    model = torch.nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    for wanted in (True, False):
        logger = TensorBoardLogger(gradients=wanted)
        logger.start(tmp_path / str(wanted), **START)
        logger.log_gradients(model, 1)
        logger.finish({})
        assert ("gradients/global" in scalars(tmp_path / str(wanted))) == wanted


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_purges_what_comes_again(tmp_path):
    for first, last, value in ((0, 5, 1.0), (3, 6, 2.0)):
        logger = TensorBoardLogger(gradients=False)
        assert logger.start(tmp_path, **{**START, "run_id": "id", "step": max(first - 1, 0)}) == "id"
        for step in range(first, last):
            logger.log({"train/loss": value}, step)
        logger.finish({"val/loss": 1.0, "status": "finished"})
        logger.finish({})
    assert scalars(tmp_path)["train/loss"] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_tensorboard_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        TensorBoardLogger(gradients=False)


def test_no_logger_takes_every_call(tmp_path):
    logger = NoLogger()
    assert logger.start(tmp_path, **{**START, "run_id": "id"}) == "id"
    logger.log({"train/loss": 1.0}, 1)
    logger.log_gradients(torch.nn.Linear(1, 1), 1)
    logger.log_checkpoint(tmp_path / "missing", best=True)
    logger.finish({})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "sometimes"), ("artifacts", True), ("gradients", 1), ("timeout", 0), ("timeout", math.inf),
        ("upload_timeout", "long"), ("project", ""), ("project", "a/b"), ("entity", 3), ("tags", "one"), ("tags", [""]),
    ],
)  # fmt: skip
def test_wrong_option_names_its_key(key, value):
    with pytest.raises(InputError, match=re.escape(f"logger.{key}")):
        wandb_logger(**{key: value})


@pytest.mark.parametrize("variable", ["disabled", "offline", "dryrun", "nonsense"])
def test_wandb_mode(tmp_path, monkeypatch, server, variable):
    monkeypatch.setenv("WANDB_MODE", variable)
    if variable == "nonsense":
        with pytest.raises(InputError, match="WANDB_MODE"):
            wandb_logger()
        return
    logger = wandb_logger()
    assert logger.start(tmp_path, **START)
    logger.finish({})
    assert not server.bodies
    assert bool(list(tmp_path.glob("wandb/offline-run-*"))) == (variable != "disabled")


def test_key_in_netrc_means_online(tmp_path, monkeypatch, server):
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{server.server_port} login user password {'a' * 40}\n")
    logger = wandb_logger()
    logger.start(tmp_path, **START)
    logger.finish({})
    assert server.bodies


def test_import_is_light():
    code = "import sys, babylm_train.logger; assert not {'torch', 'wandb', 'tensorboard', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=CONF.parents[1], check=True)


def test_start_failure_is_one_line(tmp_path, capfd):
    (tmp_path / "wandb").write_text("a file where the directory should be")
    logger = wandb_logger()
    assert logger.start(tmp_path, **START)
    logger.log({"train/loss": 1.0}, 1)
    logger.finish({})
    (line,) = capfd.readouterr().err.splitlines()
    assert "did not start" in line


@pytest.mark.parametrize("fault", ["refused", "black hole", "killed", "killed service"])
def test_a_fault_changes_no_weight_no_metric_and_no_exit_code(make_trainer, server, capfd, fault):
    """Whole runs: with a W&B that fails in the middle, and with none."""
    plain = make_trainer("plain", save_every=4)
    torch.manual_seed(3)
    plain.train()
    if fault == "refused":
        server.close()
    elif fault == "black hole":
        server.hang.set()
    logger = wandb_logger(mode="online", timeout=2)
    trainer = make_trainer("mirrored", save_every=4, logger=logger)
    began = time.monotonic()
    logger.start(trainer.record.directory, **START)
    if fault.startswith("killed"):
        process = until_ready(logger)
        began = time.monotonic()
        trainer.should_stop = lambda: trainer.state.updates == 5 and os.kill(victims[fault](process), signal.SIGKILL)
    victims = {"killed": lambda pid: pid, "killed service": lambda pid: children(pid)[0]}
    torch.manual_seed(3)
    trainer.train()
    logger.finish({"status": "finished"})
    assert time.monotonic() - began < 10
    assert trainer.record.metrics.read_bytes() == plain.record.metrics.read_bytes()
    assert all(map(torch.equal, trainer.model.state_dict().values(), plain.model.state_dict().values()))
    assert trainer.state == plain.state
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: logger: wandb: ")]
    assert len(warnings) in (1, 2)  # gone on offline, and what could not be sent
