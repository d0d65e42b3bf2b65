"""From threshold to pool to order, and the budget that every arm gets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule, LinearSchedule
from babylm_train.curriculum.strategy import (
    DynamicCurriculum,
    LengthBasedCurriculum,
    NoCurriculum,
    RandomCurriculum,
    create_curriculum_strategy,
)
from babylm_train.errors import InputError


def manager(schedule, scores, words=None, strategy=None, *, begin=None, **options) -> CurriculumTrainingManager:
    built = CurriculumTrainingManager(strategy or LengthBasedCurriculum(), schedule, **options)
    words = np.ones(len(scores), dtype=int) if words is None else np.array(words)
    return built.begin(np.array(scores, dtype=float), words, **(begin or {}))


def test_ten_thresholds_over_ten_thousand_documents():
    run = manager(LinearSchedule(10), np.arange(10_000), begin={"epochs": 10})
    parts = [run.prepare_epoch(epoch) for epoch in range(10)]
    assert [round(p.threshold, 2) for p in parts] == [0.20, 0.29, 0.38, 0.47, 0.56, 0.64, 0.73, 0.82, 0.91, 1.00]
    assert set(parts[0].pool) == set(range(2000))
    assert len(parts[-1].pool) == 10_000


@pytest.mark.parametrize(
    ("on", "min_pool", "expected"),  # of 5 documents: ceil(.3 x 5); 1+1+1 of 10 words >= 3; scores <= .3
    [("rank", 1, 2), ("words", 1, 3), ("score", 1, 4), ("rank", 3, 3), ("rank", 9, 5)],
)
def test_what_the_threshold_is_a_share_of_and_the_smallest_pool(on, min_pool, expected):
    scores, words = [0, 0.1, 0.2, 0.25, 1.0], [1, 1, 1, 3, 4]
    run = manager(LinearSchedule(9, 0.3), scores, words, threshold_on=on, min_pool=min_pool, begin={"epochs": 9})
    assert len(run.prepare_epoch(0).pool) == expected


@pytest.mark.parametrize(
    ("strategy", "full_warns", "linear_warns"), [("length", 1, 0), ("dynamic", 0, 0), ("none", 0, 1)]
)
def test_a_ranking_or_a_schedule_without_effect_is_said(caplog, strategy, full_warns, linear_warns):
    for schedule, warns in ((FullSchedule(), full_warns), (LinearSchedule(3), linear_warns)):
        caplog.clear()
        manager(schedule, np.arange(9.0), strategy=create_curriculum_strategy(strategy), begin={"epochs": 3})
        assert sum("every epoch admits everything" in r.message for r in caplog.records) == warns


def test_equal_scores_rank_by_the_seed_and_warn(caplog):
    runs = [manager(LinearSchedule(4), [1.0] * 100, seed=seed, begin={"epochs": 4}) for seed in (1, 2)]
    pools = [set(run.prepare_epoch(0).pool) for run in runs]
    assert len(pools[0]) == len(pools[1]) == 20 < len(pools[0] | pools[1])
    assert [r.message for r in caplog.records] == ["every document has the difficulty 1: their order is random"] * 2


@pytest.mark.parametrize(("scores", "named"), [([0.0, np.nan], "document 1 "), ([0.0], "scores")])
def test_a_score_that_is_missing_or_no_number_is_named(scores, named):
    with pytest.raises(InputError, match=named):
        manager(FullSchedule(), scores, [1, 1])


BEGIN = {"epochs": 4, "targets_per_update": 20, "max_length": 5}


@settings(max_examples=40, deadline=None)
@given(
    targets=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    max_steps=st.none() | st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_matched_pacing_gives_every_arm_the_same_budget(targets, max_steps, seed):
    sizes, budgets = np.array(targets), set()
    begin = {**BEGIN, "max_steps": max_steps, "targets": sizes}
    random = (RandomCurriculum(), LinearSchedule(4))
    for strategy, schedule in ((NoCurriculum(), FullSchedule()), random, (None, LinearSchedule(4, 0.5))):
        run = manager(schedule, sizes.astype(float), strategy=strategy, seed=seed, begin=begin)
        parts = [run.prepare_epoch(e) for e in range(run.epochs)]
        assert sum(p.updates for p in parts) == run.total_updates == (max_steps or run.total_updates)
        assert parts[-1].threshold == 1.0
        budgets.add(tuple((p.updates, p.targets) for p in parts))
        for part in parts:  # enough is drawn, only from the pool, and no document twice before each was drawn once
            assert sizes[part.order].sum() >= part.start + part.targets
            assert set(part.order) <= set(part.pool)
            drawn = part.order[: len(part.pool)]
            assert len(set(drawn)) == len(drawn)
    assert len(budgets) == 1


def test_a_full_pool_is_drawn_on_across_slices():
    # 4 slices of 2 updates of 20 targets = 160 of 200 targets: no document may come twice before all came once
    begin = {**BEGIN, "max_steps": 8, "targets": np.full(20, 10)}
    run = manager(FullSchedule(), np.zeros(20), strategy=NoCurriculum(), begin=begin)
    order = np.concatenate([run.prepare_epoch(e).order[run.records[e]["position"] // 10 :][:4] for e in range(4)])
    assert len(set(order)) == 16


def test_nothing_goes_before_begin():
    run = CurriculumTrainingManager(LengthBasedCurriculum(), FullSchedule())
    for call, argument in ((run.prepare_epoch, 0), (run.report_performance, 3.0)):
        with pytest.raises(InputError, match="begin"):
            call(argument)


def test_single_pass_plans_its_total_from_the_schedule():
    # pools of 2, 5, 8, 10 documents (thresholds .2 .4667 .7333 1): 20 50 80 100 targets, 20 an update
    begin = {"epochs": 4, "targets": np.full(10, 10), "targets_per_update": 20, "max_length": 10}
    run = manager(LinearSchedule(4), np.arange(10), pacing="single_pass", begin=begin)
    assert run.total_updates == 1 + 3 + 4 + 5
    parts = [run.prepare_epoch(e) for e in range(4)]
    assert [p.targets for p in parts] == [20, 50, 80, 100]
    assert [p.updates for p in parts] == [1, 3, 4, 5]
    dynamic = DynamicCurriculum(LengthBasedCurriculum(), max_threshold=0.5)  # at most 2, 5, 5, 5 documents
    run = manager(LinearSchedule(4), np.arange(10), pacing="single_pass", strategy=dynamic, begin=begin)
    assert run.total_updates == 1 + 3 + 3 + 3
