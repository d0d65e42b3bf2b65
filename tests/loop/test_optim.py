"""Learning rates against written-out numbers; which parameters are decayed; what a CPU is told of its precision."""

import math

import pytest
import torch
from tiny import model_of

from babylm_train import optim
from babylm_train.errors import InputError
from babylm_train.optim import Precision, group_parameters, schedule


def rates(name, total: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, total, name, **options)
    values = []
    for _ in range(total):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*values, scheduler.get_last_lr()[0]]


def test_rates_by_hand():
    half = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert rates("linear", 6, warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates("cosine", 8, warmup_ratio=0.5) == pytest.approx([0.0, 0.25, 0.5, 0.75, *half])
    assert rates("cosine", 4, num_cycles=1.0) == pytest.approx([1.0, 0.5, 0.0, 0.5, 1.0])
    assert rates("constant_with_warmup", 4, warmup_steps=2) == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])
    found = rates("warmup_stable_decay", 10, warmup_steps=2, decay_ratio=0.4, decay_type="linear")
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 1, "warmup_ratio": 0.1}, "scheduler.warmup_steps and scheduler.warmup_ratio"),
        ({"warmup_steps": 11}, "scheduler.warmup_steps"),
        ({"warmup_steps": -1}, "scheduler.warmup_steps"),
        ({"warmup_ratio": 1.1}, "scheduler.warmup_ratio"),
        ({"decay_ratio": 0.0}, "scheduler.decay_ratio"),
        ({"num_cycles": 2.0}, "num_cycles"),
    ],
)
def test_bad_warmup(options, message):
    with pytest.raises(InputError, match=message):
        rates("linear", 10, **options)


def test_norms_biases_and_embeddings_get_no_decay_unless_asked():
    model = model_of("gpt2_nano", 50, 8)
    decayed, plain = group_parameters(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in decayed["params"]} == {"c_attn", "c_proj", "c_fc"}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    (everything,) = group_parameters(model, 0.1, no_decay=[])
    assert len(everything["params"]) == len(list(model.parameters()))
    assert sum("wte" in names[id(p)] for p in group_parameters(model, 0.1, ["bias"])[0]["params"]) == 1


@pytest.mark.parametrize(("dtype", "matmul"), [("bfloat16", "highest"), ("float32", "medium")])
def test_a_cpu_without_bfloat16_is_told_and_keeps_exact_products(dtype, matmul, monkeypatch, caplog):
    monkeypatch.setattr(optim, "has_bf16", lambda: False)
    Precision(dtype, matmul).scaler(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert "bfloat16" in caplog.text
