"""Learning rates against written-out numbers; which parameters are decayed; what a CPU is told of its precision."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import model_of

from babylm_train import muon, throughput
from babylm_train.optim import Precision, RunningAverage, group_parameters, schedule, set_decay_horizon
from babylm_train.options import Average
from babylm_train.tools.plan import list_groups, list_rates


def rates(name, total: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return list_rates(schedule(optimizer, total, name, **options), total)


def test_rates_by_hand():
    half = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert rates("linear", 6, warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates("cosine", 8, warmup_ratio=0.5) == pytest.approx([0.0, 0.25, 0.5, 0.75, *half])
    assert rates("cosine", 4, num_cycles=1.0) == pytest.approx([1.0, 0.5, 0.0, 0.5, 1.0])
    assert rates("constant_with_warmup", 4, warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])
    found = rates("warmup_stable_decay", 10, warmup_steps=2, decay_ratio=0.4, decay_type="linear")
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_norms_biases_and_embeddings_get_no_decay_unless_asked():
    model = model_of("gpt2_nano", 50, 8)
    decayed, plain = group_parameters(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in decayed["params"]} == {"c_attn", "c_proj", "c_fc"}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert (decayed["matrix"], plain["matrix"]) == (True, False)
    matrices, rest = group_parameters(model, 0.1, no_decay=[])
    assert len(matrices["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.1)
    assert sum("wte" in names[id(p)] for p in group_parameters(model, 0.1, ["bias"])[1]["params"]) == 1


def test_the_decay_of_a_horizon_by_hand():
    """At a rate of 0.01, 50 updates a pass and 2 passes, 1 / (0.01 x 50 x 2) = 1; what is not decayed stays so."""
    own = ({}, {"lr": 0.04}, {"weight_decay": 0.0})
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], **options} for options in own]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    set_decay_horizon(optimizer, horizon=2, updates_per_pass=50)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.25, 0.0])
    assert [group.horizon for group in list_groups(optimizer, 50)] == [pytest.approx(2), pytest.approx(2), None]


def in_muons_hands(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    return weights


@pytest.mark.parametrize("bf16", [False, True])
def test_muon_moves_matrices_as_torchs_muon_and_the_rest_as_adamw(bf16, monkeypatch):
    monkeypatch.setattr(muon, "has_bf16", lambda: bf16)
    shapes = [(8, 8), (16, 8), (8, 16), (8, 8)]
    mine, theirs = in_muons_hands(*shapes, (8,)), in_muons_hands(*shapes, (8,))
    groups = [{"params": mine[:4], "matrix": True}, {"params": mine[4:], "matrix": False, "weight_decay": 0.0}]
    ours = muon.Muon(groups, lr=0.02, rest_lr=0.01, weight_decay=0.3, betas=(0.9, 0.95))
    matrices = torch.optim.Muon(theirs[:4], lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW(theirs[4:], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for _ in range(3):
        for optimizer in (ours, matrices, rest):
            optimizer.step()
    torch.testing.assert_close(mine[:4], theirs[:4], rtol=0, atol=0.004)  # of torch's bfloat16; a step is about 0.02
    assert torch.equal(mine[4], theirs[4])


def test_rows_of_equal_size_and_cautious_decay():
    (weight,) = in_muons_hands((8, 16))
    weight.grad[0] *= 100
    before = weight.detach().clone()
    ours = muon.Muon([{"params": [weight], "matrix": True}], lr=1e-3, row_beta=0.0, momentum=0.0, weight_decay=0.0)
    ours.step()
    moved = (before - weight.detach()).norm(dim=1)
    torch.testing.assert_close(moved, moved.mean().expand(8), rtol=1e-3, atol=0)  # row_beta 0: each row alike
    plain, careful = (in_muons_hands((8, 16))[0] for _ in range(2))
    for target, cautious in ((plain, False), (careful, True)):
        muon.Muon([{"params": [target], "matrix": True}], lr=0.1, weight_decay=1.0, cautious=cautious).step()
    start = in_muons_hands((8, 16))[0].detach()
    move = start * 0.9 - plain.detach()  # what is left of a step without its decay
    expected = start - 0.1 * start * (move * start > 0) - move
    torch.testing.assert_close(careful.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"half_life": 0.5}, [1.0, 1.5, 2.25, 3.125]),  # half an epoch is one of 4 updates in 2 epochs: a mean of 1/2
        ({"last": 0.5}, [0.0, 0.0, 3.0, 3.5]),
        ({}, []),
    ],
)
def test_running_averages_by_hand(kind, expected):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average, found = RunningAverage(model, Average(**kind), total_updates=4, epochs=2), []
    for update in range(1, 5):
        torch.nn.init.constant_(model.weight, float(update))
        average.update(update)
        found += [weight.item() for weight in average.weights]
    assert found == pytest.approx(expected)
    said = []
    modes = SimpleNamespace(train=lambda: said.append("train"), eval=lambda: said.append("eval"))
    with average.applied(modes):
        assert said == ["eval"]  # an optimizer that has modes is asked for them
        assert model.weight.item() == (expected[-1] if expected else 4.0)
    assert (model.weight.item(), said) == (4.0, ["eval", "train"])


@pytest.mark.parametrize(("dtype", "matmul"), [("bfloat16", "highest"), ("float32", "medium")])
def test_a_cpu_without_bfloat16_is_told_and_keeps_exact_products(dtype, matmul, monkeypatch, caplog):
    monkeypatch.setattr(throughput, "has_bf16", lambda: False)
    Precision(dtype, matmul).scaler(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert "bfloat16" in caplog.text
