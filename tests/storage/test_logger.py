"""The loggers mirror a run and must not change it. A server that hangs, hangs until the test is over: none waits for it."""

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

import pydantic
import pytest
import torch
import yaml

from babylm_train.errors import InputError
from babylm_train.logger import TensorBoardLogger, WandbLogger, choose_mode, gradient_norms

CONF = Path(__file__).resolve().parents[2] / "conf" / "logger"
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
    monkeypatch.chdir(tmp_path)
    yield
    end_wandb()


def end_wandb() -> None:
    """Ends its service, which remembers the environment and writes its file to the end."""
    if "wandb" in sys.modules:
        with contextlib.suppress(ConnectionError):  # it was killed
            sys.modules["wandb"].teardown()


def wandb_logger(**changes) -> WandbLogger:
    options = yaml.safe_load((CONF / "wandb.yaml").read_text(encoding="utf-8"))
    assert options.pop("_target_") == "babylm_train.logger.WandbLogger"
    return WandbLogger(**{**options, "timeout": 60, **changes})


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
    end_wandb()
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
        self.hang, self.over, self.opened = threading.Event(), threading.Event(), threading.Event()
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_) -> None:
        """Quiet: who asked may be gone."""

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
        body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
        self.server.bodies.append(body)
        name = json.loads(body or "{}").get("operationName")
        if name == "CreateRunFiles":
            self.server.opened.set()
        self.answer({"data": REPLIES.get(name, {})})

    def answer(self, content):
        if self.server.hang.is_set():
            self.server.over.wait()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("PYTHONPATH", str(CONF.parents[1]))
    yield server
    server.over.set()
    server.close()


def break_down(server: Server, fault: str) -> None:
    server.close() if fault == "refused" else server.hang.set()


def children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def warnings(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: logger: ")]


def test_offline_by_default_and_no_generator_is_touched(tmp_path, capfd):
    states = random.getstate(), torch.get_rng_state()
    logger = wandb_logger(tags=["hindi"])
    run_id = logger.start(tmp_path, **START)
    logger.log({"train/loss": 2.0, "train/learning_rate": 1e-3}, 1)
    logger.log({"val/loss": math.inf}, 1)
    logger.finish({"val/loss": 3.0, "status": "finished"})
    logger.finish({})
    logger.log({"train/loss": 2.0}, 2)
    assert [row["step"] for row in history(tmp_path)] == [1, 1]
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    assert all(text in file.read_bytes() for text in (b"study", b"optimizer=sgd", b"train/learning_rate", b"finished"))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
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
    logger.log({"train/loss": 2.5}, 7)
    logger.finish({"status": "finished"})
    sent = b"".join(server.bodies)
    assert all(text in sent for text in (b"hindi", b"study", b"optimizer", b"train/loss", b"finished"))
    assert warnings(capfd) == []


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_unreachable_at_the_start(tmp_path, server, capfd, fault):
    break_down(server, fault)
    logger = wandb_logger()
    run_id = logger.start(tmp_path, **START)
    logger.log({"train/loss": 2.0}, 1)
    logger.log({"train/loss": 1.0}, 2)
    logger.finish({})
    assert [row["step"] for row in history(tmp_path)] == [1, 2]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{run_id}"))
    assert len(warnings(capfd)) == 1


FAULTS = ["refused", "black hole", "killed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_weight_no_metric_and_no_state(make_trainer, tmp_path, server, capfd, fault):
    """Whole runs: with a W&B that fails after the third update, and with none."""
    plain = make_trainer("plain", save_every=4)
    torch.manual_seed(3)
    plain.train()
    logger = wandb_logger(mode="online", timeout=6)
    trainer = make_trainer("mirrored", save_every=4, logger=logger)

    def fail() -> bool:
        if trainer.state.updates == 3:
            server.opened.wait()
            if fault == "killed":
                for pid in set(children()) - before:
                    os.kill(pid, signal.SIGKILL)
            else:
                break_down(server, fault)
        return False

    trainer.should_stop, before = fail, set(children())
    logger.start(trainer.record.directory, **START)
    torch.manual_seed(3)
    trainer.train()
    logger.finish({"status": "finished"})
    assert trainer.record.metrics.read_bytes() == plain.record.metrics.read_bytes()
    assert all(map(torch.equal, trainer.model.state_dict().values(), plain.model.state_dict().values()))
    assert trainer.state == plain.state
    if fault != "killed":
        rows = history(trainer.record.directory)
        assert len(rows) == len(plain.record.lines())
        assert all(row.keys() >= {"step", "epoch", "tokens", "words"} for row in rows)
    (line,) = warnings(capfd)
    assert "wandb sync" in line


SCRIPT = """
import os, pathlib, sys, yaml
from babylm_train.logger import WandbLogger
options = yaml.safe_load(open(sys.argv[1])); del options["_target_"]
logger = WandbLogger(**{**options, "timeout": 3})
logger.start(pathlib.Path("run"), name="n", group="g", config={}, run_id=None, step=0)
for step in range(50): logger.log({"train/loss": 1.0}, step)
if sys.argv[2] == "finish": logger.finish({}, exit_code=3)
sys.exit(3)
"""


@pytest.mark.parametrize("end", ["finish", "die"])
def test_the_process_ends_with_its_own_exit_code_whatever_the_server_does(tmp_path, server, end):
    server.hang.set()
    command = [sys.executable, "-c", SCRIPT, str(CONF / "wandb.yaml"), end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_kept_for_the_upload_when_the_run_replaces_it(tmp_path):
    checkpoint = tmp_path / "checkpoint_best.pt"
    checkpoint.write_bytes(b"first")
    logger = wandb_logger(artifacts="best", mode="offline")
    logger.start(tmp_path, **START)
    logger.log_checkpoint(checkpoint, best=False)
    logger.log_checkpoint(checkpoint, best=True)
    logger.finish({})
    end_wandb()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert sum(record.WhichOneof("record_type") == "artifact" for record in records(file)) == 1


def say(word: str) -> None:
    """What `wandb offline` and `wandb disabled` do."""
    from click.testing import CliRunner
    from wandb.cli import cli

    CliRunner().invoke(getattr(cli, word), catch_exceptions=False)


def put(key: str, value: str):
    return lambda patch: patch.setenv(key, value)


SWITCHES = {
    "WANDB_MODE=disabled": (put("WANDB_MODE", "disabled"), "disabled"),
    "WANDB_MODE=offline": (put("WANDB_MODE", "offline"), "offline"),
    "WANDB_MODE=dryrun": (put("WANDB_MODE", "dryrun"), "offline"),
    "WANDB_DISABLED=true": (put("WANDB_DISABLED", "true"), "disabled"),
    "wandb offline": (lambda _: say("offline"), "offline"),
    "wandb disabled": (lambda _: say("disabled"), "disabled"),
    "no key": (lambda patch: patch.delenv("WANDB_API_KEY"), "offline"),
    "nothing": (lambda _: None, "online"),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_auto_follows_the_switches_of_wandb_itself(tmp_path, monkeypatch, server, switch):
    flip, expected = SWITCHES[switch]
    flip(monkeypatch)
    end_wandb()
    assert choose_mode("auto") == expected
    assert choose_mode("disabled") == "disabled"
    logger = wandb_logger()
    assert logger.start(tmp_path / "run", **START)
    logger.finish({})
    assert bool(server.bodies) == (expected == "online")
    assert bool(list(tmp_path.glob("run/wandb/offline-run-*"))) == (expected == "offline")


def test_a_key_in_netrc_means_online(tmp_path, monkeypatch, server):
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'a' * 40}\n")
    assert choose_mode("auto") == "online"


def test_a_mode_that_wandb_does_not_know_is_one_warning(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    logger = wandb_logger()
    assert logger.start(tmp_path, **START)
    logger.log({"train/loss": 1.0}, 1)
    logger.finish({})
    assert len(warnings(capfd)) == 1


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("mode", "sometimes"), ("artifacts", True), ("timeout", 0), ("timeout", math.inf)),
        *(("project", ""), ("project", "a/b"), ("tags", "one"), ("tags", [""])),
    ],
)
def test_a_wrong_option_names_its_key(key, value):
    with pytest.raises(pydantic.ValidationError) as caught:
        wandb_logger(**{key: value})
    assert caught.value.errors()[0]["loc"][0] == key


def test_import_is_light():
    code = "import sys, babylm_train.logger; assert not {'torch', 'wandb', 'tensorboard', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=CONF.parents[1], check=True)
