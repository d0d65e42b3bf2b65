"""From threshold to pool to order, and the budget that every arm gets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule, LinearSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum, NoCurriculum, RandomCurriculum
from babylm_train.errors import InputError


def manager(schedule, scores, words=None, strategy=None, *, begin=None, **options) -> CurriculumTrainingManager:
    built = CurriculumTrainingManager(strategy or LengthBasedCurriculum(), schedule, **options)
    words = np.ones(len(scores), dtype=int) if words is None else np.array(words)
    return built.begin(np.array(scores, dtype=float), words, **(begin or {}))


@pytest.mark.parametrize(
    ("on", "min_pool", "expected"),  # of 5 documents: ceil(.3 x 5); 1+1+1 of 10 words >= 3; scores <= .3
    [("rank", 1, 2), ("words", 1, 3), ("score", 1, 4), ("rank", 3, 3), ("rank", 9, 5)],
)
def test_what_the_threshold_is_a_share_of_and_the_smallest_pool(on, min_pool, expected):
    scores, words = [0, 0.1, 0.2, 0.25, 1.0], [1, 1, 1, 3, 4]
    run = manager(LinearSchedule(9, 0.3), scores, words, threshold_on=on, min_pool=min_pool, begin={"epochs": 9})
    assert set(run.prepare_epoch(0).pool) == set(range(expected))


def test_equal_scores_rank_by_the_seed_and_warn(caplog):
    runs = [manager(LinearSchedule(4), [1.0] * 100, seed=seed, begin={"epochs": 4}) for seed in (1, 2)]
    pools = [set(run.prepare_epoch(0).pool) for run in runs]
    assert len(pools[0]) == len(pools[1]) == 20 < len(pools[0] | pools[1])
    assert all("their order is random" in r.message for r in caplog.records)


@pytest.mark.parametrize(("scores", "named"), [([0.0, np.nan], "document 1 "), ([0.0], "scores")])
def test_a_score_that_is_missing_or_no_number_is_named(scores, named):
    with pytest.raises(InputError, match=named):
        manager(FullSchedule(), scores, [1, 1])


@settings(max_examples=40, deadline=None)
@given(
    targets=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    max_steps=st.none() | st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_matched_pacing_gives_every_arm_the_same_budget(targets, max_steps, seed):
    sizes, budgets = np.array(targets), set()
    begin = {"epochs": 4, "targets_per_update": 20, "max_length": 5, "max_steps": max_steps, "targets": sizes}
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


def test_rows_grow_in_equal_shares_of_the_run():
    begin = {"epochs": 7, "targets_per_update": 64, "max_length": 16}
    run = manager(FullSchedule(), [0.0] * 40, [9] * 40, lengths=[4, 8], begin=begin)
    parts = [run.prepare_epoch(epoch) for epoch in range(7)]
    assert [part.parts for part in parts] == [4, 4, 4, 2, 2, 1, 1]
    assert {(part.targets, part.updates) for part in parts} == {(360, 6)}
    with pytest.raises(InputError, match=r"curriculum\.lengths"):
        manager(FullSchedule(), [0.0], [9], lengths=[5], begin=begin)


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
