"""A plan against the run it plans, and against arithmetic done by hand."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from tiny import LENGTH

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule, LinearSchedule, PerformanceSchedule, StepSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum, NoCurriculum
from babylm_train.optim import schedule
from babylm_train.throughput import Size, size_of
from babylm_train.tools.plan import count_exposures, list_rates, main, make_plan

SIZE = Size(parameters=1000, flops_per_token=7000, memory={"total": 32_000})


def plan_for(trainer):
    rates = list_rates(trainer.scheduler, trainer.curriculum.total_updates)
    return make_plan(trainer.curriculum, rates, trainer.train_split.word_starts, SIZE)


RUNS = {
    "none, linear": (NoCurriculum(), LinearSchedule(3), {}),
    "cosine": (LengthBasedCurriculum(), LinearSchedule(3), {"scheduler": partial(schedule, name="cosine")}),
    "fewer steps than epochs": (LengthBasedCurriculum(), LinearSchedule(3), {"max_steps": 2}),
    "single pass": (LengthBasedCurriculum(), LinearSchedule(3), {"pacing": "single_pass"}),
}
SLICE = ("threshold", *(f"curriculum/{name}" for name in ("documents", "words", "difficulty", "targets")))


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_what_the_run_then_does(make_trainer, name):
    strategy, schedule, changes = RUNS[name]
    trainer = make_trainer(strategy=strategy, schedule=schedule, log_every=1, **changes)
    plan = plan_for(trainer)
    state = trainer.train()

    lines = trainer.record.lines()
    epochs = [line for line in lines if "curriculum/documents" in line]
    updates = [line for line in lines if "learning_rate" in line]
    firsts = [next(line for line in updates if line["step"] > epoch["step"]) for epoch in epochs]
    ends = [*epochs[1:], updates[-1]]
    for row, epoch, first, end in zip(plan.rows, epochs, firsts, ends, strict=True):
        assert [row.threshold, row.documents, row.words, row.difficulty, row.tokens] == [epoch[key] for key in SLICE]
        spent = [end[key] - epoch[key] for key in ("tokens", "words", "step")]
        assert [row.tokens, row.words_seen, row.updates] == spent
        assert (row.learning_rate, row.assumed) == (first["learning_rate"], False)
    assert (plan.updates, plan.tokens, plan.words) == (state.updates, state.tokens, state.words)
    assert plan.planned_updates == trainer.curriculum.total_updates == plan.updates
    assert plan.peak_lr == max(line["learning_rate"] for line in updates)
    assert plan.final_lr == trainer.scheduler.get_last_lr()[0]
    assert plan.exposure == count_exposures(trainer.curriculum, state.updates)
    assert json.loads(json.dumps(plan.as_dict()))["flops"] == plan.tokens * SIZE.flops_per_token


@pytest.mark.parametrize("pacing", ["matched", "single_pass"])
def test_what_a_validation_can_move_is_marked(make_trainer, pacing):
    parts = {"strategy": LengthBasedCurriculum(), "schedule": PerformanceSchedule(5, 0.3, full_at=0.8)}
    slow = partial(torch.optim.AdamW, lr=1e-3)  # so that the validation loss falls
    trainer = make_trainer(**parts, pacing=pacing, epochs=5, eval_every=3, optimizer=slow)
    plan = plan_for(trainer)
    state = trainer.train()
    did = [record["threshold"] for record in trainer.curriculum.records]
    assert len(did) == len(plan.rows) == 5
    assert all(row.assumed or row.threshold == threshold for row, threshold in zip(plan.rows, did, strict=True))
    assert did != [row.threshold for row in plan.rows]  # the mark matters: something did move
    assert not plan.rows[0].assumed
    if pacing == "matched":
        assert (plan.updates, plan.tokens) == (state.updates, state.tokens)
    else:
        assert max(plan.updates, state.updates) <= plan.planned_updates


def test_making_a_plan_changes_nothing(make_trainer):
    trainer = make_trainer(strategy=DynamicCurriculum(LengthBasedCurriculum()), schedule=PerformanceSchedule(3))
    before = copy.deepcopy((trainer.curriculum.state_dict(), trainer.scheduler.state_dict(), torch.get_rng_state()))
    assert plan_for(trainer) == plan_for(trainer)
    after = trainer.curriculum.state_dict(), trainer.scheduler.state_dict(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert not trainer.optimizer.state


def test_single_pass_by_hand():
    """20 documents of 1, 2 ... 20 words, each a target beside the mark; 10 targets make an update."""
    words = np.arange(1, 21)
    starts = np.concatenate([[0, *[1] * n] for n in words])
    schedule = StepSchedule(2, 0.5, [1], [1.0])
    manager = CurriculumTrainingManager(LengthBasedCurriculum(), schedule, pacing="single_pass")
    manager.begin(words, words, words + 1, epochs=2, targets_per_update=10, max_length=5)
    plan = make_plan(manager, [1.0] * (manager.total_updates + 1), starts, SIZE)
    # .5 and 1 of 20 documents: 55 + 10 and 210 + 20 targets; each document once, the easier half twice
    assert [(r.documents, r.words, r.tokens, r.words_seen, r.updates, r.difficulty) for r in plan.rows] == [
        (10, 55, 65, 55, 7, 5.5),
        (20, 210, 230, 210, 23, 10.5),
    ]
    assert (plan.exposure.maximum, plan.exposure.median, plan.exposure.minimum) == (2, 1.5, 1)
    assert plan.exposure.deciles == (2.0,) * 5 + (1.0,) * 5
    assert (plan.updates, plan.tokens, plan.words) == (30, 295, 265)
    assert not any("smaller trainer.batch_size" in text for text in plan.warnings)
    manager.begin(words, words, words + 1, epochs=2, targets_per_update=50, max_length=5)  # 230 targets a pass
    assert any("4.6 updates" in text for text in make_plan(manager, [1.0] * 99, starts, SIZE).warnings)


@pytest.mark.parametrize(("updates", "expected"), [(0, (0, 0, 0)), (3, (1, 0, 0)), (15, (2, 1.5, 1))])
def test_exposures_of_a_run_that_ended_early(updates, expected):
    words = np.full(20, 10)  # two documents an update, ten updates an epoch
    manager = CurriculumTrainingManager(NoCurriculum(), FullSchedule())
    manager.begin(np.zeros(20), words, epochs=2, targets_per_update=20, max_length=10)
    for epoch in range(2 if updates > 10 else 1):
        manager.prepare_epoch(epoch)
    seen = count_exposures(manager, updates)
    assert (seen.maximum, seen.median, seen.minimum) == expected


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [(partial(torch.optim.AdamW, lr=1e-3, fused=True), 8), (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), 4)],
)
def test_size_of_a_model(make_trainer, optimizer, bytes_each):
    trainer = make_trainer(optimizer=optimizer)
    measure = partial(size_of, trainer.model, trainer.optimizer, context=LENGTH, rows=3, activation_bytes=4)
    # 2 layers of width 16: attention 16 x 48 + 48 + 16 x 16 + 16, MLP 16 x 64 + 64 + 64 x 16 + 16, two norms of 32;
    # the last norm, the tied embedding of 40 tokens, and 8 positions that are only looked up
    layer = 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16 + 64
    multiplied = 2 * layer + 32 + 40 * 16
    parameters = multiplied + 8 * 16
    activations = 3 * LENGTH * (2 * 24 * 16 * 4 + 40 * 8)
    parts = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": bytes_each * parameters}
    memory = {**parts, "activations": activations, "total": sum(parts.values()) + activations}
    assert measure() == Size(parameters, 6 * multiplied + 12 * 2 * 16 * LENGTH, memory)
    assert measure(checkpointing=True).memory["activations"] == 3 * LENGTH * ((2 * 16 + 24 * 16) * 4 + 40 * 8)
    assert measure(logits=100).memory["activations"] == 3 * LENGTH * 2 * 24 * 16 * 4 + 100 * 8


def test_the_command_prints_a_table_and_writes_no_run(tmp_path, monkeypatch, capsys):
    overrides = ["data.words=2000", "logger=none", "trainer.epochs=3", "curriculum/schedule=linear"]
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    monkeypatch.setattr("sys.argv", ["plan", *overrides, "curriculum/strategy=length", cache])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "training FLOPs" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
