"""The loop: exact accumulation, exact resume, no bad update."""

import copy
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from babylm_train.checkpoint import BEST, load
from babylm_train.curriculum.schedule import LinearSchedule, PerformanceSchedule
from babylm_train.curriculum.strategy import DynamicCurriculum, LengthBasedCurriculum
from babylm_train.errors import DivergedError, InputError, PreemptedError
from babylm_train.evaluation.loss import summarise
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision, schedule
from babylm_train.options import EarlyStopping, TrainerOptions
from babylm_train.run import find_start, restore
from babylm_train.state import IGNORE, Batch

LENGTH, VOCABULARY = 8, 40
CONSTANT = partial(schedule, name="constant")


def batch_of(rows: int, valid: list[int], seed: int) -> Batch:
    """Random rows of which row i has valid[i] targets."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
    targets = torch.randint(3, VOCABULARY, (rows, LENGTH), generator=generator)
    for row, count in enumerate(valid):
        targets[row, count:] = IGNORE
    return Batch(inputs, targets, torch.arange(LENGTH).expand(rows, -1), tokens=sum(valid), words=sum(valid))


def joined(batches: list[Batch]) -> Batch:
    parts = [torch.cat([getattr(b, name) for b in batches]) for name in ("inputs", "targets", "position_ids")]
    return Batch(*parts, tokens=sum(b.tokens for b in batches), words=0)


def test_accumulation_is_the_gradient_of_one_large_batch(make_trainer):
    batches = [batch_of(2, [8, 1], 1), batch_of(2, [3, 8], 2), batch_of(1, [2], 3)]
    weights = []
    for name, given in (("many", batches), ("one", [joined(batches)])):
        trainer = make_trainer(name, dropout=0.0, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), scheduler=CONSTANT)
        _, norm = trainer.make_update(given)
        weights.append((norm, {k: v.clone() for k, v in trainer.model.state_dict().items()}))
    (norm_many, many), (norm_one, one) = weights
    assert norm_many == pytest.approx(norm_one, rel=1e-5)
    for name, value in many.items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_update_is_the_mean_over_valid_targets(make_trainer):
    """Independent gradient: torch's own mean cross-entropy over the valid targets of all rows at once."""
    batches = [batch_of(2, [8, 1], 1), batch_of(1, [5], 2)]
    trainer = make_trainer(
        dropout=0.0, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), scheduler=CONSTANT, max_grad_norm=None
    )
    model = copy.deepcopy(trainer.model)
    whole = joined(batches)
    logits = model(input_ids=whole.inputs, position_ids=whole.position_ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.targets.flatten(), ignore_index=IGNORE).backward()
    trainer.make_update(batches)
    for (name, mine), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_budget_tokens_and_words(make_trainer):
    trainer = make_trainer()
    state = trainer.train()
    words = int(trainer.train_split.words.sum())
    assert state.updates == trainer.curriculum.total_updates
    assert state.words == 3 * words
    assert state.tokens == 3 * (words + 40)  # every token and every document's mark, three times
    assert all(p.grad is None for p in trainer.model.parameters())  # nothing is carried into a next epoch
    assert trainer.scheduler.get_last_lr()[0] == 0.0


class Drawing(CausalObjective):
    """An objective that draws from Python's and NumPy's global generators, as a user's own may."""

    def __call__(self, model, batch):
        return super().__call__(model, batch) * (1 + 1e-3 * random.random() * np.random.rand())


def final(trainer):
    optimizer = trainer.optimizer.state_dict()["state"]
    tensors = [*trainer.model.state_dict().values(), *(t for s in optimizer.values() for t in s.values())]
    return [t.clone() for t in tensors], trainer.record.metrics.read_bytes()


ADAPTIVE = {
    "plain": dict,
    "performance": lambda: {
        "strategy": LengthBasedCurriculum(),
        "schedule": PerformanceSchedule(epochs=3, start_threshold=0.3, end_threshold=1.0),
        "eval_every": 2,
    },
    "scaled": lambda: {"precision": Precision("float32", "highest", True, initial_scale=2.0**127, growth_interval=3)},
    "drawing": lambda: {"objective": Drawing()},
    "dynamic": lambda: {
        "strategy": DynamicCurriculum(LengthBasedCurriculum()),
        "schedule": LinearSchedule(epochs=3, start_threshold=0.3, end_threshold=1.0),
        "eval_every": 3,
    },
}


@pytest.mark.parametrize("kind", ADAPTIVE)
@pytest.mark.parametrize("stops", [[1], [4, 9], [8], [13, 14]])
def test_stopped_and_resumed_is_bitwise_the_uninterrupted_run(make_trainer, kind, stops):
    """Dropout and accumulation on; stopped mid-epoch and at epoch ends; log window cut by the stop."""
    whole = make_trainer("whole", **ADAPTIVE[kind]())
    seed_all(7)
    whole.train()
    for stop in stops:
        part = make_trainer("part", **ADAPTIVE[kind]())
        part.should_stop = lambda part=part, stop=stop: part.state.updates >= stop
        found = part.checkpoints.newest()
        if found:
            part.load_checkpoint(found[1])
        else:
            seed_all(7)
        with pytest.raises(PreemptedError):
            part.train()
    last = make_trainer("part", **ADAPTIVE[kind]())
    seed_all(12345)  # the generators come from the checkpoint
    last.load_checkpoint(last.checkpoints.newest()[1])
    last.train()
    (tensors, metrics), (expected, expected_metrics) = final(last), final(whole)
    assert metrics == expected_metrics
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert last.state == whole.state
    assert last.scaler.state_dict() == whole.scaler.state_dict()


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_a_loss_that_is_no_number_changes_no_weight(make_trainer):
    trainer = make_trainer(epochs=1, max_steps=10)
    real, calls = trainer.objective, []

    def poisoned(model, batch):
        calls.append(1)
        return real(model, batch) * (math.nan if len(calls) > 6 else 1.0)

    poisoned.prepare = real.prepare
    trainer.objective = poisoned

    before = {}

    def remember():
        before.update({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return False

    trainer.should_stop = remember
    with pytest.raises(DivergedError, match=r"update 4 \(epoch .*, 6 rows from 18\): loss nan"):
        trainer.train()
    assert trainer.state.updates == 3
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_overflow_is_retried_on_the_same_batch_at_half_the_scale(make_trainer):
    """2**140 overflows float32 gradients; each retry halves it; clock, schedule and data are those of a run without."""
    plain = make_trainer("plain", dropout=0.0, max_steps=6)
    plain.train()
    scaled = make_trainer(
        "scaled", dropout=0.0, max_steps=6, precision=Precision("float32", "highest", True, initial_scale=2.0**127)
    )
    scaled.train()
    assert 1 <= scaled.state.skipped < 20
    assert scaled.state.updates == plain.state.updates
    assert scaled.state.tokens == plain.state.tokens
    assert scaled.scheduler.get_last_lr() == plain.scheduler.get_last_lr()
    for mine, theirs in zip(scaled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_endless_overflow_is_divergence(make_trainer):
    trainer = make_trainer(precision=Precision("float32", "highest", True, initial_scale=float("inf")))
    with pytest.raises(DivergedError, match="20 overflows in a row"):
        trainer.train()


def test_early_stopping_counts_over_a_resume(make_trainer):
    losses = iter([5.0, 4.0, 4.05, 3.95, 3.99])
    trainer = make_trainer(epochs=9, early_stopping=EarlyStopping(patience=3, min_delta=0.1))

    scripted(trainer, losses)
    trainer.should_stop = lambda: trainer.state.epoch == 4
    with pytest.raises(PreemptedError):
        trainer.train()
    assert (trainer.state.bad_evaluations, trainer.state.best_loss) == (2, 3.95)
    resumed = make_trainer(epochs=9, early_stopping=EarlyStopping(patience=3, min_delta=0.1))
    resumed.load_checkpoint(resumed.checkpoints.newest()[1])
    scripted(resumed, losses)
    state = resumed.train()
    assert (state.stopped, state.epoch, state.best_loss) == (True, 5, 3.95)


def test_kept_checkpoints_are_the_newest_and_the_best(make_trainer):
    trainer = make_trainer(save_every=2, keep_last=2)
    trainer.train()
    folder = trainer.checkpoints.directory
    kept = sorted(p.name for p in folder.glob("*.pt"))
    assert "checkpoint_best.pt" in kept
    assert "checkpoint_epoch_3.pt" in kept
    assert len({p.stat().st_ino for p in folder.glob("checkpoint_[se]*.pt")}) == 2
    content = load(folder / "checkpoint_best.pt")
    assert content["state"]["updates"] == trainer.state.best_update
    assert content["state"]["val_loss"] == trainer.state.best_loss


def test_a_checkpoint_of_another_run_is_refused_by_name(make_trainer):
    config = {"optimizer.lr": 0.1, "trainer.batch_size": 4, "trainer.gradient_accumulation_steps": 1}
    one = make_trainer("one", identity={"hashes": {"corpus": "a"}, "config": config}, max_steps=3)
    one.train()
    content = one.checkpoints.newest()[1]
    with pytest.raises(InputError, match="another corpus"):
        make_trainer("two", identity={"hashes": {"corpus": "b"}, "config": config}).check_compatible(content)
    for change, message in (
        ({"optimizer.lr": 0.2}, r"optimizer\.lr is 0\.1 there, 0\.2 here"),
        ({"trainer.batch_size": 8}, "batch_size"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer("two", identity={"hashes": {"corpus": "a"}, "config": config | change}).check_compatible(
                content
            )
    same = config | {"trainer.batch_size": 2, "trainer.gradient_accumulation_steps": 2}
    make_trainer("two", identity={"hashes": {"corpus": "a"}, "config": same}).check_compatible(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"export": "first"}, "export"),
        ({"no_decay": ["weight"]}, "no_decay"),
        ({"metric": "pairs/all"}, "trainer.metric"),
    ],
)
def test_options_out_of_range_name_their_key(change, message):
    with pytest.raises((InputError, ValidationError), match=message):
        TrainerOptions(**{"epochs": 1, "batch_size": 1, **change})


def scripted(trainer, losses):
    values = iter(losses)
    trainer.evaluate = lambda: summarise(next(values), 1, 1, 1)


def test_killed_between_a_checkpoint_and_its_name_as_the_best(make_trainer):
    """step_2 is the best and says so, but checkpoint_best.pt never came: resuming gives it its name."""
    first = make_trainer(eval_every=2, max_steps=8, epochs=1, keep_last=1)
    scripted(first, [1.0])
    first.should_stop = lambda: first.state.updates == 2
    with pytest.raises(PreemptedError):
        first.train()
    (first.checkpoints.directory / BEST).unlink()
    second = make_trainer(eval_every=2, max_steps=8, epochs=1, keep_last=1)
    restore(second, *find_start(second, second.record.directory, None))
    scripted(second, [2.0, 3.0, 4.0])
    second.train()
    assert second.checkpoints.best(2)[1]["state"]["updates"] == 2


def test_resumed_elsewhere_the_best_checkpoint_comes_along(make_trainer):
    first = make_trainer("first", eval_every=2, max_steps=8, epochs=1, save_every=1)
    scripted(first, [1.0, 2.0])
    first.should_stop = lambda: first.state.updates == 5
    with pytest.raises(PreemptedError):
        first.train()
    second = make_trainer("second", eval_every=2, max_steps=8, epochs=1)
    start = find_start(second, second.record.directory, str(first.record.directory))
    restore(second, *start)
    scripted(second, [3.0, 4.0])
    second.train()
    assert second.state.best_update == 2
    assert second.checkpoints.best(2)[0].name == BEST


def test_taken_back_to_an_older_checkpoint_it_does_not_jump_ahead(make_trainer):
    options = {"max_steps": 8, "epochs": 1, "save_every": 1, "keep_last": 9}
    whole = make_trainer(**options)
    whole.train()
    expected = final(whole)
    older = str(whole.checkpoints.directory / "checkpoint_step_3.pt")
    back = make_trainer(identity={"resume": older}, **options)
    restore(back, *find_start(back, back.record.directory, older))
    assert back.state.updates == 3
    assert back.checkpoints.newest()[1]["state"]["updates"] == 3
    back.should_stop = lambda: back.state.updates == 5
    with pytest.raises(PreemptedError):
        back.train()
    again = make_trainer(identity={"resume": older}, **options)  # the same command: on from 5, not back to 3
    restore(again, *find_start(again, again.record.directory, older))
    assert again.state.updates == 5
    again.train()
    (tensors, metrics), (expected_tensors, expected_metrics) = final(again), expected
    assert metrics == expected_metrics
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected_tensors, strict=True))
