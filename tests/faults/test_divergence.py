"""A loss or a gradient that is no number: no bad update is applied, exit code 3, and the last checkpoint goes on."""

import math
from functools import partial

import pytest
import torch
from tiny import tiny_trainer

from babylm_train.errors import DivergedError
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision, schedule
from babylm_train.run import find_start, restore


class Failing(CausalObjective):
    """From micro-batch number `at` on, for `count` of them, the loss (or only its gradient) is `value`."""

    def __init__(self, at: int, value: float, gradient: bool = False, count: int = 10**9) -> None:
        self.at, self.value, self.gradient, self.count, self.calls = at, value, gradient, count, 0

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        if not torch.is_grad_enabled():
            return loss
        self.calls += 1
        if not self.at <= self.calls < self.at + self.count:
            return loss
        if self.gradient:
            loss.register_hook(lambda gradient: gradient * self.value)
            return loss
        return loss * self.value


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def finite(content: dict) -> bool:
    moments = [t for s in content["optimizer"]["state"].values() for t in s.values()]
    return all(torch.isfinite(t).all() for t in [*content["model"].values(), *moments])


@pytest.mark.parametrize(  # the number of a micro-batch: an update has two
    ("at", "value", "gradient"),
    [(2, math.nan, False), (9, math.inf, True), (10, -math.inf, False), (25, math.nan, True), (26, math.inf, False)],
)
def test_no_bad_update_and_the_last_checkpoint_goes_on(tmp_path, at, value, gradient):
    whole = tiny_trainer(tmp_path / "whole", save_every=3, epochs=2)
    torch.manual_seed(5)
    whole.train()
    trainer = tiny_trainer(tmp_path / "a", save_every=3, epochs=2, objective=Failing(at, value, gradient))
    before: list[list[torch.Tensor]] = [weights(trainer)]
    trainer.should_stop = lambda: before.append(weights(trainer)) or False
    torch.manual_seed(5)
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    assert caught.value.exit_code == 3
    assert f"update {(at + 1) // 2} " in str(caught.value)
    assert trainer.state.updates == (at - 1) // 2
    assert all(map(torch.equal, weights(trainer), before[-1]))
    again = tiny_trainer(tmp_path / "a", save_every=3, epochs=2)
    start = find_start(again, again.record.directory, None)
    assert (start is None) == (trainer.state.updates < 3)
    torch.manual_seed(5)
    if start is not None:
        assert finite(start[1])
        restore(again, *start)
    again.train()
    assert all(map(torch.equal, weights(again), weights(whole)))
    assert again.record.metrics.read_bytes() == whole.record.metrics.read_bytes()


@pytest.mark.parametrize("streak", [1, 19, 20])
def test_a_streak_of_overflows(tmp_path, streak):
    """Loss scaling as fp16 has it: up to 19 in a row are retried, at the 20th the run has diverged; nothing was applied."""
    scaled = Precision("float32", "highest", True, initial_scale=2.0**100)
    objective = Failing(7, math.inf, count=2 * streak)  # both micro-batches of the update, each time it is tried
    trainer = tiny_trainer(tmp_path / "a", save_every=1, epochs=1, precision=scaled, objective=objective)
    if streak == 20:
        with pytest.raises(DivergedError, match=r"update 4 .* 20 overflows in a row"):
            trainer.train()
        assert trainer.state.updates == 3
        assert finite(trainer.checkpoints.newest()[1])
    else:
        assert trainer.train().skipped >= streak
        assert trainer.state.updates == trainer.curriculum.total_updates
    assert all(torch.isfinite(w).all() for w in weights(trainer))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """A finite gradient times a learning rate beyond all measure: the update before is what stays on disk."""

    def optimizer(groups):
        return torch.optim.SGD(groups, lr=1e-2)

    trainer = tiny_trainer(
        tmp_path / "a",
        save_every=1,
        eval_every=99,
        epochs=1,
        optimizer=optimizer,
        scheduler=partial(schedule, name="constant"),
    )

    def lose_all_measure() -> bool:
        if trainer.state.updates == 3:
            trainer.optimizer.param_groups[0]["lr"] = 1e38
            trainer.optimizer.param_groups[0]["weight_decay"] = 1e38
        return False

    trainer.should_stop = lose_all_measure
    with pytest.raises(DivergedError, match="update 4 left weights that are not finite"):
        trainer.train()
    content = trainer.checkpoints.newest()[1]
    assert content["state"]["updates"] == 3
    assert finite(content)
