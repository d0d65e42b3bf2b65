"""From threshold to pool to order, and the budget that every arm gets."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule, LinearSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum, NoCurriculum, RandomCurriculum
from babylm_train.errors import InputError


def linear(epochs: int, start: float = 0.2) -> LinearSchedule:
    return LinearSchedule(start_threshold=start, end_threshold=1.0, warmup_epochs=0, epochs=epochs)


def manager(schedule, scores, words=None, strategy=None, *, begin=None, **options) -> CurriculumTrainingManager:
    built = CurriculumTrainingManager(strategy or LengthBasedCurriculum(), schedule, **options)
    words = np.ones(len(scores), dtype=int) if words is None else np.array(words)
    return built.begin(np.array(scores, dtype=float), words, **(begin or {}))


def test_ten_thresholds_over_ten_thousand_documents():
    run = manager(linear(10), np.arange(10_000), begin={"epochs": 10})
    parts = [run.prepare_epoch(epoch) for epoch in range(10)]
    assert [round(p.threshold, 2) for p in parts] == [0.20, 0.29, 0.38, 0.47, 0.56, 0.64, 0.73, 0.82, 0.91, 1.00]
    assert len(parts[0].pool) == 2000
    assert set(parts[0].pool) == set(range(2000))
    assert len(parts[-1].pool) == 10_000


@pytest.mark.parametrize(
    ("on", "expected"),
    [("rank", 2), ("words", 3), ("score", 4)],  # of 5 documents: ceil(.3 x 5); 1+1+1 of 10 words >= 3; scores <= .3
)
def test_what_the_threshold_is_a_share_of(on, expected):
    run = manager(linear(10, 0.3), [0, 0.1, 0.2, 0.25, 1.0], [1, 1, 1, 3, 4], threshold_on=on, begin={"epochs": 10})
    assert run.admitted(0.3) == expected


def test_scores_that_admit_nothing_grow_to_min_pool_with_one_warning(caplog):
    scores = [0.0, *[0.9] * 8, 1.0]
    run = manager(linear(4, 0.3), scores, threshold_on="score", min_pool=5, begin={"epochs": 4})
    with caplog.at_level(logging.WARNING):
        assert len(run.prepare_epoch(0).pool) == 5
    assert sum("min_pool" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("strategy", "schedule", "epochs", "warns"),
    [
        (LengthBasedCurriculum(), FullSchedule(), 3, True),
        (LengthBasedCurriculum(), LinearSchedule(1), 1, True),
        (LengthBasedCurriculum(), LinearSchedule(3), 3, False),
        (NoCurriculum(), FullSchedule(), 3, False),
    ],
)
def test_a_ranking_that_no_schedule_uses_is_said(caplog, strategy, schedule, epochs, warns):
    with caplog.at_level(logging.WARNING):
        CurriculumTrainingManager(strategy, schedule).begin(np.arange(9.0), np.full(9, 5), epochs=epochs)
    assert any("admits everything in every epoch" in r.message for r in caplog.records) is warns


def test_equal_scores_rank_by_the_seed_and_warn(caplog):
    with caplog.at_level(logging.WARNING):
        pools = [
            set(manager(linear(4), [1.0] * 100, seed=s, begin={"epochs": 4}).prepare_epoch(0).pool) for s in (1, 2)
        ]
    assert all(len(p) == 20 for p in pools)
    assert pools[0] != pools[1]
    assert sum("every document has the difficulty" in r.message for r in caplog.records) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_names_its_document(bad):
    with pytest.raises(InputError, match="document 1 "):
        manager(FullSchedule(), [0.0, bad])


BEGIN = {"epochs": 4, "targets_per_update": 20, "max_length": 5}


@settings(max_examples=40, deadline=None)
@given(
    targets=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    max_steps=st.none() | st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_matched_pacing_gives_every_arm_the_same_budget(targets, max_steps, seed):
    sizes = np.array(targets)
    begin = {**BEGIN, "max_steps": max_steps, "targets": sizes}
    budgets = set()
    for strategy, schedule in (
        (NoCurriculum(), FullSchedule()),
        (RandomCurriculum(), linear(4)),
        (None, linear(4, 0.5)),
    ):
        run = manager(schedule, sizes.astype(float), strategy=strategy, seed=seed, begin=begin)
        parts = [run.prepare_epoch(e) for e in range(run.epochs)]
        assert sum(p.updates for p in parts) == run.total_updates == (max_steps or run.total_updates)
        budgets.add(tuple((p.updates, p.targets) for p in parts))
        for part in parts:  # enough is drawn, only from the pool, and no document twice before each was drawn once
            assert sizes[part.order].sum() >= part.start + part.targets
            assert set(part.order) <= set(part.pool)
            drawn = part.order[: len(part.pool)]
            assert len(set(drawn)) == len(drawn)
    assert len(budgets) == 1


def test_a_full_pool_is_drawn_on_across_slices():
    # 4 slices of 2 updates of 20 targets = 160 of 200 targets: no document may come twice before all came once
    sizes = np.full(20, 10)
    run = manager(
        FullSchedule(), np.zeros(20), strategy=NoCurriculum(), begin={**BEGIN, "max_steps": 8, "targets": sizes}
    )
    order = np.concatenate([run.prepare_epoch(e).order[run.records[e]["position"] // 10 :][:4] for e in range(4)])
    assert len(set(order)) == 16


@pytest.mark.parametrize("wrong", [{"pacing": "fast"}, {"min_pool": 0}, {"pool": 1}])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CurriculumTrainingManager(NoCurriculum(), FullSchedule(), **wrong)


def test_nothing_goes_before_begin():
    run = CurriculumTrainingManager(LengthBasedCurriculum(), FullSchedule())
    for call in (lambda: run.prepare_epoch(0), lambda: run.report_performance(3.0)):
        with pytest.raises(InputError, match="begin"):
            call()


def test_single_pass_plans_its_total_from_the_schedule():
    # pools of 2, 5, 8, 10 documents (thresholds .2 .4667 .7333 1): 20 50 80 100 targets, 20 an update
    sizes = np.full(10, 10)
    begin = {"epochs": 4, "targets": sizes, "targets_per_update": 20, "max_length": 10}
    run = manager(linear(4), np.arange(10), pacing="single_pass", begin=begin)
    assert run.total_updates == 1 + 3 + 4 + 5
    parts = [run.prepare_epoch(e) for e in range(4)]
    assert [p.targets for p in parts] == [20, 50, 80, 100]
    assert [p.updates for p in parts] == [1, 3, 4, 5]
