"""The loop: exact accumulation, exact resume, no bad update, one wait for the device."""

import copy
import functools
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest
import torch
from hydra.utils import instantiate
from tiny import LENGTH, VOCABULARY, Tokenizer, hybrid, packed
from transformers import set_seed

from babylm_train.checkpoint import BEST
from babylm_train.config import CONF, check_command_line
from babylm_train.errors import DivergedError, InputError, PreemptedError
from babylm_train.evaluation.loss import summarise
from babylm_train.muon import Muon
from babylm_train.objective import CausalObjective, ReplacedObjective
from babylm_train.optim import Precision, schedule
from babylm_train.options import Average, EarlyStopping
from babylm_train.runner import find_start, restore
from babylm_train.state import IGNORE

CONSTANT = partial(schedule, name="constant")
SCALED = partial(Precision, "float32", "highest", True)


def muon(parameters) -> Muon:
    parameters = list(parameters)
    matrices, rest = ([p for p in parameters if (p.dim() == 2) is kind] for kind in (True, False))
    return Muon([{"params": matrices, "matrix": True}, {"params": rest, "matrix": False}], lr=1e-2)


def replacing() -> ReplacedObjective:
    return ReplacedObjective(replaced_share=0.2, seed=3).use_tokenizer(Tokenizer(VOCABULARY))


def test_an_average_is_what_is_evaluated_and_changes_no_update(make_trainer):
    plain, averaged = make_trainer("plain"), make_trainer("averaged", average=Average(last=0.5))
    for trainer in (plain, averaged):
        set_seed(7)
        trainer.train()
    assert same(plain.model.state_dict().values(), averaged.model.state_dict().values())
    assert averaged.state.raw_bits_per_byte == plain.state.raw_bits_per_byte
    assert averaged.state.val_loss != plain.state.val_loss
    with averaged.average.applied(averaged.optimizer):
        assert averaged.evaluate().loss == averaged.state.val_loss
    assert averaged.evaluate().loss == plain.state.val_loss


def test_the_update_is_the_mean_over_valid_targets(make_trainer):
    """Independent gradient: torch's own mean cross-entropy over the valid targets of all rows at once."""
    batches = [packed(2, LENGTH, 1), packed(1, LENGTH, 2)]  # 13 and 5 targets
    options = {"dropout": 0.0, "scheduler": CONSTANT, "max_grad_norm": None}
    trainer = make_trainer(**options, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    model = copy.deepcopy(trainer.model)
    inputs, targets, positions = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets", "position_ids")
    )
    logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    mean.backward()
    loss, norm = trainer.make_update(batches)
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert norm == pytest.approx(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item(), rel=1e-5)
    moved = [p - 0.5 * p.grad for p in model.parameters()]
    torch.testing.assert_close([*trainer.model.parameters()], moved, rtol=1e-4, atol=1e-6)


def tensors(trainer):
    slots = [t for s in trainer.optimizer.state_dict()["state"].values() for t in s.values()]
    return [t.clone() for t in [*trainer.model.state_dict().values(), *slots]]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def finite(trainer):
    return all(t.isfinite().all() for t in tensors(trainer))


def arm(strategy, schedule, pacing):
    """A run with a strategy and a schedule of conf/curriculum."""
    chosen = [f"curriculum/strategy={strategy}", f"curriculum/schedule={schedule}", "trainer.epochs=4"]
    parts = instantiate(check_command_line(chosen)[0].curriculum, _convert_="all")
    return {"strategy": parts.strategy, "schedule": parts.schedule, "pacing": pacing, "epochs": 4, "eval_every": 3}


RESUMED = {
    "plain": dict,
    "scaled": lambda: {"precision": SCALED(initial_scale=2.0**127, growth_interval=3)},
    "hybrid": lambda: {"objective": hybrid()},  # stopped before a causal and before a masked update
    "recipe": lambda: {"optimizer": muon, "average": Average(half_life=0.5), "objective": replacing()},
}
STRATEGIES, SCHEDULES = (
    sorted(path.stem for path in CONF.glob(f"curriculum/{kind}/*.yaml")) for kind in ("strategy", "schedule")
)
ARMS = {
    " ".join(names): partial(arm, *names)
    for names in zip(STRATEGIES, cycle(SCHEDULES[::-1]), cycle(["single_pass", "matched"]), strict=False)
}
STOPS = [("plain", [1]), ("plain", [13, 14]), ("scaled", [1, 8]), ("hybrid", [4, 7]), ("recipe", [4, 9])]


@pytest.mark.parametrize(("kind", "stops"), [*STOPS, *((name, []) for name in ARMS)])
def test_stopped_and_resumed_is_bitwise_the_uninterrupted_run(make_trainer, kind, stops):
    """Dropout and accumulation on; stopped mid-epoch and at epoch ends, an arm halfway; log window cut by the stop."""
    make = (RESUMED | ARMS)[kind]
    whole = make_trainer("whole", **make())
    set_seed(7)
    whole.train()
    check_budget(whole, kind in RESUMED)
    stops = stops or [whole.state.updates // 2]
    for stop in (*stops, None):
        part = make_trainer("part", **make())
        part.should_stop = lambda part=part, stop=stop: part.state.updates == stop
        set_seed(7 if stop == stops[0] else 12345)  # later the generators come from the checkpoint
        if stop != stops[0]:
            part.load_checkpoint(part.checkpoints.newest()[1])
        with pytest.raises(PreemptedError) if stop else nullcontext():
            part.train()
    assert part.record.metrics.read_bytes() == whole.record.metrics.read_bytes()
    assert same(tensors(part), tensors(whole))
    assert part.state == whole.state
    assert part.scaler.state_dict() == whole.scaler.state_dict()
    assert part.curriculum.state_dict() == whole.curriculum.state_dict()


def check_budget(trainer, every_document):
    """However few tokens are predicted; matched pacing spends every token and document's mark of each epoch."""
    state, curriculum, epochs = trainer.state, trainer.curriculum, trainer.options.epochs
    words = int(trainer.train_split.words.sum())
    assert len(curriculum.records) == epochs
    assert state.updates <= curriculum.total_updates
    if curriculum.pacing == "matched":
        assert (state.updates, state.tokens) == (curriculum.total_updates, epochs * (words + 40))
        assert trainer.scheduler.get_last_lr()[0] == 0.0
    assert state.words == epochs * words or not every_document
    assert all(p.grad is None for p in trainer.model.parameters())  # nothing is carried into a next epoch


READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu", "nonzero")


def test_an_update_waits_once_for_the_device(make_trainer, monkeypatch):
    """Counted on the way that GPUs take: one list of loss and norm."""
    calls, seen = [], []

    def counted(self, real, name, *args, **options):
        calls.append(name)
        return real(self, *args, **options)

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, functools.partialmethod(counted, getattr(torch.Tensor, name), name))
    trainer = make_trainer(epochs=1, max_steps=12, log_every=5)
    trainer.forward.compile = trainer.eager.compile = True  # static shapes, nothing is compiled
    made = trainer.make_update

    def update(batches):
        before = len(calls)
        result = made(batches)
        seen.append(calls[before:])
        return result

    trainer.make_update = update
    trainer.train()
    assert seen == [["tolist"]] * 12


def test_compiled_once_for_training_whatever_the_epoch_and_never_for_evaluation(make_trainer, monkeypatch):
    """A last micro-batch with fewer rows, several epochs and evaluations use the one graph of each compiled function."""
    import torch._dynamo as dynamo

    made = []

    def backend(graph, _inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    dynamo.reset()
    options = {"epochs": 3, "batch_size": 5, "gradient_accumulation_steps": 1, "dropout": 0.0}
    compiled, plain = make_trainer("compiled", compile=True, **options), make_trainer("plain", **options)
    plain.train()
    compiled.train()
    assert plain.curriculum.total_updates > 6
    assert len(made) == 2  # the model, and the head with its loss
    assert compiled.state.val_loss == pytest.approx(plain.state.val_loss, rel=1e-4)


class Failing(CausalObjective):
    """From micro-batch number `at` on, for `count` of them, the loss (or only its gradient) is `value`."""

    def __init__(self, at: int, value: float, gradient: bool = False, count: int = 10**9) -> None:
        self.at, self.value, self.gradient, self.count, self.calls = at, value, gradient, count, 0

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        self.calls += torch.is_grad_enabled()
        failing = torch.is_grad_enabled() and self.at <= self.calls < self.at + self.count
        if failing and self.gradient:
            loss.register_hook(lambda gradient: gradient * self.value)
        return loss * self.value if failing and not self.gradient else loss


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(  # the number of a micro-batch: an update has two
    ("at", "value", "gradient"), [(2, math.nan, False), (10, -math.inf, False), (25, math.nan, True)]
)
def test_no_bad_update_and_the_last_checkpoint_goes_on(make_trainer, at, value, gradient, fused):
    options = {"save_every": 3, "epochs": 2, "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=fused)}
    whole = make_trainer("whole", **options)
    torch.manual_seed(5)
    whole.train()
    trainer = make_trainer("a", **options, objective=Failing(at, value, gradient))
    before = [tensors(trainer)]
    trainer.should_stop = lambda: before.append(tensors(trainer)) or False
    torch.manual_seed(5)
    with pytest.raises(DivergedError, match=f"update {(at + 1) // 2} "):
        trainer.train()
    assert trainer.state.updates == (at - 1) // 2
    assert at == 2 or same(tensors(trainer), before[-1])
    again = make_trainer("a", **options)
    start = find_start(again, again.record.directory, None)
    assert (start is None) == (trainer.state.updates < 3)
    torch.manual_seed(5)
    if start is not None:
        restore(again, *start)
    again.train()
    assert same(tensors(again), tensors(whole))
    assert again.record.metrics.read_bytes() == whole.record.metrics.read_bytes()


@pytest.mark.parametrize("streak", [1, 19, 20])
def test_a_streak_of_overflows(make_trainer, streak):
    """Up to 19 in a row are retried on the same batch, as if they had not been; at the 20th the run has diverged."""
    objective = Failing(7, math.inf, count=2 * streak)  # both micro-batches of the update, each time it is tried
    options = {"save_every": 1, "epochs": 1, "dropout": 0.0}
    trainer = make_trainer(**options, precision=SCALED(initial_scale=2.0**100), objective=objective)
    if streak == 20:
        with pytest.raises(DivergedError, match=r"update 4 .* 20 overflows"):
            trainer.train()
        assert trainer.state.updates == 3
        assert finite(trainer)
        trainer.load_checkpoint(trainer.checkpoints.newest()[1])
    else:
        assert trainer.train().skipped >= streak
        plain = make_trainer("plain", **options)
        plain.train()
        assert (trainer.state.updates, trainer.state.tokens) == (plain.state.updates, plain.state.tokens)
        assert trainer.scheduler.get_last_lr() == plain.scheduler.get_last_lr()
        torch.testing.assert_close([*trainer.model.parameters()], [*plain.model.parameters()])
    assert finite(trainer)


def test_weights_that_are_no_numbers_are_not_saved(make_trainer):
    """A finite gradient times a learning rate beyond all measure: the update before is what stays on disk."""
    options = {"save_every": 1, "eval_every": 99, "epochs": 1, "scheduler": CONSTANT}
    trainer = make_trainer(**options, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2))

    def lose_all_measure() -> bool:
        if trainer.state.updates == 3:
            trainer.optimizer.param_groups[0] |= {"lr": 1e38, "weight_decay": 1e38}
        return False

    trainer.should_stop = lose_all_measure
    with pytest.raises(DivergedError, match="update 4 "):
        trainer.train()
    trainer.load_checkpoint(trainer.checkpoints.newest()[1])
    assert trainer.state.updates == 3
    assert finite(trainer)


def scripted(trainer, losses):
    values = iter(losses)
    trainer.evaluate = lambda: summarise(next(values), 1, 1, 1)


def test_early_stopping_counts_over_a_resume(make_trainer):
    losses = iter([5.0, 4.0, 4.05, 3.95, 3.99])
    options = {"epochs": 9, "early_stopping": EarlyStopping(patience=3, min_delta=0.1)}
    trainer = make_trainer(**options)
    scripted(trainer, losses)
    trainer.should_stop = lambda: trainer.state.epoch == 4
    with pytest.raises(PreemptedError):
        trainer.train()
    assert (trainer.state.bad_evaluations, trainer.state.best_loss) == (2, 3.95)
    resumed = make_trainer(**options)
    resumed.load_checkpoint(resumed.checkpoints.newest()[1])
    scripted(resumed, losses)
    state = resumed.train()
    assert (state.stopped, state.epoch, state.best_loss) == (True, 5, 3.95)


def test_the_same_batch_in_other_parts_is_the_same_run_and_another_batch_is_not(make_trainer):
    def trainer(**config):
        identity = {"hashes": {}, "config": {f"trainer.{k}": v for k, v in config.items()}}
        return make_trainer(identity=identity, max_steps=3)

    one = trainer(batch_size=4, gradient_accumulation_steps=1)
    one.train()
    content = one.checkpoints.newest()[1]
    trainer(batch_size=2, gradient_accumulation_steps=2).check_compatible(content)
    with pytest.raises(InputError, match=r"trainer\.batch_size"):
        trainer(batch_size=8, gradient_accumulation_steps=1).check_compatible(content)


def test_resumed_elsewhere_the_best_checkpoint_comes_along(make_trainer):
    first = make_trainer("first", eval_every=2, max_steps=8, epochs=1, save_every=1)
    scripted(first, [1.0, 2.0])
    first.should_stop = lambda: first.state.updates == 5
    with pytest.raises(PreemptedError):
        first.train()
    second = make_trainer("second", eval_every=2, max_steps=8, epochs=1)
    restore(second, *find_start(second, second.record.directory, str(first.record.directory)))
    scripted(second, [3.0, 4.0])
    second.train()
    assert second.state.best_update == 2
    assert second.checkpoints.best(2)[0].name == BEST


def test_taken_back_to_an_older_checkpoint_it_does_not_jump_ahead(make_trainer):
    options = {"max_steps": 8, "epochs": 1, "save_every": 1, "keep_last": 9}
    whole = make_trainer(**options)
    whole.train()
    expected, metrics = tensors(whole), whole.record.metrics.read_bytes()
    older = str(whole.checkpoints.directory / "checkpoint_step_3.pt")
    back = make_trainer(identity={"resume": older}, **options)
    restore(back, *find_start(back, back.record.directory, older))
    assert back.state.updates == back.checkpoints.newest()[1]["state"]["updates"] == 3
    back.should_stop = lambda: back.state.updates == 5
    with pytest.raises(PreemptedError):
        back.train()
    again = make_trainer(identity={"resume": older}, **options)  # the same command: on from 5, not back to 3
    restore(again, *find_start(again, again.record.directory, older))
    assert again.state.updates == 5
    again.train()
    assert again.record.metrics.read_bytes() == metrics
    assert same(tensors(again), expected)


def test_an_optimizer_s_state_of_another_shape_is_refused(make_trainer):
    """Fused kernels do not look: they would write beyond it."""
    trainer = make_trainer()
    trainer.train()
    content = trainer.checkpoints.newest()[1]
    first, mean = content["optimizer"]["state"][0], content["optimizer"]["state"][0]["exp_avg"]
    for forged in (torch.zeros(1), torch.zeros(1).expand(mean.shape)):
        first["exp_avg"] = forged
        with pytest.raises(InputError, match="the optimizer's exp_avg"):
            make_trainer("other").load_checkpoint(content)


def test_an_update_in_which_nothing_can_be_hidden_is_none(make_trainer):
    trainer = make_trainer(objective=hybrid(masked_share=0.5))
    trainer.state.updates = 1  # a masked one
    single = replace(packed(1, LENGTH, 0), position_ids=torch.zeros(1, LENGTH, dtype=torch.int64))
    assert trainer.make_update([single]) == (0, 0)
