"""Several processes make the updates of one, whatever their number, also across resumes; one of them writes."""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import SMALL, Child, command, import_all
from tiny import masked, tiny_trainer

from babylm_train.checkpoint import Checkpoints, load
from babylm_train.curriculum.schedule import PerformanceSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum
from babylm_train.distributed import DataParallel
from babylm_train.errors import PreemptedError
from babylm_train.trainer import Trainer

WAYS = {
    "causal": {},
    "masked": {"objective": masked()},
    "adaptive": {"strategy": LengthBasedCurriculum(), "schedule": PerformanceSchedule(epochs=3, start_threshold=0.3)},
}


def places(world: int) -> list[dict[str, str]]:
    """The environment of each of `world` processes, as torchrun sets it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def slow_trainer(directory: Path, **changes) -> Trainer:
    """A tiny run without dropout; steps of Adam magnify rounding where a gradient is almost 0, so they are small."""
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return tiny_trainer(directory, dropout=0.0, log_every=1, optimizer=optimizer, **changes)


def train(directory: Path, stop_at: int | None, environment: dict[str, str], **changes) -> None:
    """A process of a tiny run, which goes on from what there is and stops after `stop_at` updates."""
    os.environ.update(environment)
    with DataParallel(timeout=600.0).join(False) as processes:
        trainer = slow_trainer(directory, processes=processes, **changes)
        found = Checkpoints(directory / "checkpoints", 2).newest() if processes.is_main else None
        if (content := processes.share(found and found[1])) is not None:
            trainer.load_checkpoint(content)
        trainer.should_stop = lambda: trainer.processes.is_main and trainer.state.updates == stop_at
        try:
            trainer.train()
        except PreemptedError:
            assert stop_at


def run_together(world: int, directory: Path, said: Path, stop_at: int | None = None, **changes) -> None:
    children = [
        Child(partial(train, directory, stop_at, place, **changes), said / f"{world}-{stop_at}-{place['RANK']}")
        for place in places(world)
    ]
    assert [child.wait() for child in children] == [0] * world, [child.err for child in children]


def record(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def differ(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """The largest difference of a loss, in lines that are alike in all that is counted."""
    losses = ("train/loss", "val/loss", "train/epoch_loss")
    counted = ("step", "tokens", "words", "threshold", "curriculum/documents", "curriculum/targets")
    assert [[line.get(k) for k in counted] for line in mine] == [[line.get(k) for k in counted] for line in theirs]
    return max(abs(a[k] - b[k]) for a, b in zip(mine, theirs, strict=True) for k in losses if k in a)


@pytest.mark.parametrize("way", WAYS)
def test_two_and_four_processes_make_the_updates_of_one(tmp_path, way):
    """3 rows a micro-batch, so ranks have 2 and 1, or one of four has none; a slice's last update has fewer yet."""
    slow_trainer(tmp_path / "1", **WAYS[way]).train()
    alone = record(tmp_path / "1")
    for world in (2, 4):
        run_together(world, tmp_path / str(world), tmp_path / "said", **WAYS[way])
        assert differ(record(tmp_path / str(world)), alone) < 1e-6
    assert alone[0]["tokens"] == 0
    assert alone[-1]["step"] > 10


@pytest.mark.parametrize(
    ("worlds", "stops"),
    [((2, 1, 4, 2), (3, 7, 10, None)), ((4, 2, 1), (9, 12, None)), ((2, 2, 2), (2, 9, None)), ((4, 4), (5, None))],
    ids=["2-1-4-2", "4-2-1", "2-2-2", "4-4"],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, worlds, stops):
    """Stopped within epochs and at their borders, under a threshold that follows the losses."""
    changes = WAYS["adaptive"]
    run_together(worlds[0], tmp_path / "whole", tmp_path / "said", **changes)
    for part, (world, stop_at) in enumerate(zip(worlds, stops, strict=True)):
        run_together(world, tmp_path / "parts", tmp_path / f"said-{part}", stop_at, **changes)
    whole, parts = record(tmp_path / "whole"), record(tmp_path / "parts")
    assert differ(parts, whole) < 1e-6
    if len(set(worlds)) == 1:
        assert parts == whole
        last = [load(Checkpoints(tmp_path / name / "checkpoints", 2).newest()[0]) for name in ("whole", "parts")]
        assert all(last[0]["model"][name].equal(last[1]["model"][name]) for name in last[0]["model"])


def start_two(tmp_path: Path, *arguments: str) -> list[Child]:
    import_all()
    line = [*SMALL, "distributed=ddp", "model.dropout=0.1", "data.words=3000", *arguments]
    return [command(line, tmp_path, tmp_path / f"said-{p['RANK']}", **p, OMP_NUM_THREADS="1") for p in places(2)]


def test_where_a_process_dies_the_others_save_and_end_and_all_go_on(tmp_path):
    """One of them writes. Once the run has finished, the same command says so."""
    arguments = ("trainer.max_steps=400", "trainer.log_every=1", "trainer.epochs=1", "trainer.batch_size=2")
    main, other = start_two(tmp_path, *arguments)
    log = tmp_path / "out/metrics.jsonl"
    main.wait_until(lambda: log.exists() and len(log.read_bytes().splitlines()) > 5)
    other.send(signal.SIGKILL)
    assert (main.wait(), other.wait()) == (75, -signal.SIGKILL), main.err
    saved = Checkpoints(tmp_path / "out/checkpoints", 2).newest()
    assert saved[1]["state"]["updates"] >= 4
    resumed = f"resumed at update {saved[1]['state']['updates']} of 400"
    for said in ([resumed, "bits_per_byte"], ["finished already"]):
        main, other = start_two(tmp_path, *arguments)
        assert (main.wait(), other.wait()) == (0, 0), (main.err, other.err)
        assert all(text in main.out for text in said)
        assert other.out == ""
        assert json.loads((tmp_path / "out/result.json").read_text())["updates"] == 400


def test_processes_that_were_not_asked_for_or_are_missing_are_refused(tmp_path):
    import_all()
    alone = command([*SMALL, "distributed=ddp"], tmp_path, tmp_path / "a")
    several = command([*SMALL], tmp_path, tmp_path / "b", **places(2)[0])
    assert (alone.wait(), several.wait()) == (2, 2)
    assert "torchrun" in alone.err
    assert "distributed=ddp" in several.err
    assert not (tmp_path / "out").exists()
