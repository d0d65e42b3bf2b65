"""The fast way to call a model gives what the model itself gives; nothing waits for the device between log lines."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import model_of
from tiny import LENGTH, VOCABULARY

from babylm_train import throughput
from babylm_train.errors import DivergedError
from babylm_train.model import attention
from babylm_train.model.build import drop
from babylm_train.model.forward import LOGITS, Forward, has_linear_head, sum_cross_entropy
from babylm_train.model.size import flops_per_token
from babylm_train.objective import CausalObjective
from babylm_train.state import IGNORE, Batch


def packed(rows: int, length: int, seed: int) -> Batch:
    """Rows of several documents, the last row of one; some targets are none."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 50, (rows, length + 1), generator=generator)
    positions = torch.arange(length).repeat(rows, 1)
    for row in range(rows - 1):
        for cut in sorted(torch.randint(1, length, (row,), generator=generator).tolist()):
            positions[row, cut:] = torch.arange(length - cut)
    targets = tokens[:, 1:].clone()
    targets[0, 2:5] = IGNORE
    return Batch(tokens[:, :-1], targets, positions, tokens=rows * length - 3, words=0)


def loss_and_gradients(call, model, batch):
    model.zero_grad()
    loss = CausalObjective()(call, batch)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["blocks", "mask", "bfloat16 products"])
@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_loss_and_gradients_are_those_of_the_model_itself(name, kind, monkeypatch):
    """Against transformers' own masks and torch's own cross-entropy over all logits."""
    torch.manual_seed(0)
    model = model_of(name, 50, 40, dropout=0.0, attention_dropout=0.0).train()
    batch = packed(6, 40, 1)
    expected, gradients = loss_and_gradients(model, model, batch)
    forward = Forward(model)
    assert forward.linear_head
    assert forward.isolates
    if kind == "mask":
        forward.compile = True  # takes the static way; nothing is compiled
    if kind == "bfloat16 products":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    loss, found = loss_and_gradients(forward, model, batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@given(st.lists(st.lists(st.integers(0, 39), max_size=12), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_each_position_once_and_whole_documents_in_order(cuts):
    positions = torch.arange(40).repeat(len(cuts), 1)
    for row, places in enumerate(cuts):
        for cut in sorted(places):
            positions[row, cut:] = torch.arange(40 - cut)
    blocks = attention.group_documents(positions)
    assert torch.equal(blocks.index[blocks.inverse], torch.arange(positions.numel()))
    assert sum(n * length for n, length in blocks.shapes) == len(blocks.index)
    flat, first = positions.flatten(), 0
    for documents, length in blocks.shapes:
        block = blocks.index[first : first + documents * length].view(documents, length)
        first += documents * length
        ends = block.max(1).values
        expected = torch.minimum(block[:, :1] + torch.arange(length), ends[:, None])  # a document, its end repeated
        assert torch.equal(block, expected)
        assert torch.equal(flat[block[:, 0]], torch.zeros(documents, dtype=torch.long))
        assert all(end + 1 == len(flat) or flat[end + 1] == 0 for end in ends.tolist())


@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_under_autocast_attention_gets_one_dtype(name, monkeypatch):
    """QK norms give float32; flex attention before torch 2.13 refuses that beside bfloat16 values."""
    seen = []
    attend = attention._attend_blocks
    monkeypatch.setattr(attention, "_attend_blocks", lambda *a: seen.append({x.dtype for x in a[:3]}) or attend(*a))
    batch, model = packed(2, 16, 0), model_of(name, 50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        CausalObjective()(Forward(model), batch)
    assert seen == [{torch.bfloat16}] * model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 NVL", 835), ("NVIDIA A10G", 70), ("NVIDIA RTX A1000", None)],
)
def test_peaks_by_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    throughput.peak_flops.cache_clear()
    found = throughput.peak_flops(torch.device("cuda"), torch.bfloat16, "highest")
    throughput.peak_flops.cache_clear()
    assert found == (peak and peak * 1e12)


def test_masks_say_the_same_as_blocks():
    positions = packed(5, 12, 3).position_ids
    documents = (positions == 0).cumsum(1)
    seen = [[[d[i] == d[j] and j <= i for j in range(12)] for i in range(12)] for d in documents.tolist()]
    assert attention.mask_documents(positions)[:, 0].tolist() == seen


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_cross_entropy_in_chunks(rows, monkeypatch):
    monkeypatch.setitem(LOGITS, "cpu", rows * 50)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (2, 9))
    targets[0, :4] = IGNORE
    whole = torch.nn.functional.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    expected = torch.autograd.grad(whole / 3, [hidden, weight])
    loss = sum_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(loss / 3, [hidden, weight])
    torch.testing.assert_close(loss, whole)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(sum_cross_entropy(hidden, weight, targets), whole)


def test_a_head_that_does_more_is_noticed():
    model = model_of("gpt2_nano", 50, 8)
    assert has_linear_head(model)
    model.lm_head.register_forward_hook(lambda _m, _i, logits: torch.tanh(logits))
    assert not has_linear_head(model)
    batch = packed(2, 8, 0)
    assert Forward(model.eval())(batch.inputs, position_ids=batch.position_ids).logits.abs().max() <= 1
    expected, _ = loss_and_gradients(model, model, batch)
    assert loss_and_gradients(Forward(model), model, batch)[0] == pytest.approx(expected, rel=1e-6)


READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu", "nonzero")


def test_an_update_waits_once_for_the_device(make_trainer, monkeypatch):
    """Counted on the way that GPUs take: one list of loss and norm."""
    calls, seen = [], []
    for name in READS:
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, functools.partialmethod(counted, real, name, calls))
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


def counted(self, real, name, calls, *args, **options):
    calls.append(name)
    return real(self, *args, **options)


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_gradient_ends_the_run_at_its_own_update(make_trainer, fused):
    """The weights and the optimizer's state are those after update 1."""
    trainer = make_trainer(epochs=1, max_steps=6, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, fused=fused))
    real, after = trainer.make_update, []

    def tensors():
        slots = [t for s in trainer.optimizer.state_dict()["state"].values() for t in s.values()]
        return [t.clone() for t in [*trainer.model.state_dict().values(), *slots]]

    def update(batches):
        if trainer.state.updates == 1:
            trainer.model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
            after.append(tensors())
        return real(batches)

    trainer.make_update = update
    with pytest.raises(DivergedError, match=r"update 2 \(epoch 1, 6 rows from 6\)"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(after[0], tensors(), strict=True))
    assert trainer.state.updates == 1
    assert not trainer.checkpoints.newest()


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
    chunks = [g for g in made if "log_softmax" in g.code]
    assert len(made) - len(chunks) == 1
    assert len(chunks) <= 2  # with and without gradients
    assert compiled.state.val_loss == pytest.approx(plain.state.val_loss, rel=1e-4)


def test_timings_state_speed_and_peak(make_trainer):
    trainer = make_trainer(epochs=1, max_steps=20, log_every=5, profile=True)
    trainer.train()
    lines = [json.loads(line) for line in trainer.record.timings.read_text().splitlines()]
    keys = {"step", "tokens_per_second", "mfu", "peak_tflops", "peak_memory_mib", "data_wait", "seconds"}
    assert all(line.keys() == keys for line in lines)
    assert all(0 < line["mfu"] < 1 and 0 <= line["data_wait"] < 1 and line["peak_memory_mib"] > 50 for line in lines)
    trace = json.loads((trainer.record.directory / "profile.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep")}
    assert len(steps) == 10


def test_dropout_keeps_its_share_and_mean_and_its_gradient_is_its_own():
    torch.manual_seed(0)
    x = torch.full((1000, 1001), 2.0, requires_grad=True)
    out = drop(x, 0.1, training=True)
    kept = out != 0
    assert kept.double().mean() == pytest.approx(0.9, abs=1e-3)  # three deviations of a million draws
    assert out[kept].unique().tolist() == pytest.approx([2 / 0.9], rel=1e-4)
    assert abs(torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]).double())[0, 1]) < 4e-3
    out.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    assert torch.equal(x.grad * 2, out)
    assert drop(x, 0.1, training=False) is x


def test_flops_of_a_token():
    """gpt2_110m: 85.1 M in the blocks, 24.6 M in the tied head, attention of 12 layers x 768 over 512 positions."""
    with torch.device("meta"):
        model = model_of("gpt2_110m", 32000, 512)
    blocks = sum(p.numel() for p in model.transformer.h.parameters()) + 2 * 768
    assert flops_per_token(model, 512) == 6 * (blocks + 32000 * 768) + 12 * 12 * 768 * 512
    assert 0.69e9 < flops_per_token(model, 512) < 0.72e9


def test_a_row_count_that_is_filled_up_changes_nothing(make_trainer):
    trainer = make_trainer(dropout=0.0)
    batch = Batch(torch.randint(3, VOCABULARY, (2, LENGTH)), torch.randint(3, VOCABULARY, (2, LENGTH)),
                  torch.arange(LENGTH).expand(2, -1), tokens=16, words=0)  # fmt: skip
    static = Forward(trainer.model, rows=5)
    static.compile = True
    expected, gradients = loss_and_gradients(trainer.model, trainer.model, batch)
    loss, found = loss_and_gradients(static, trainer.model, batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
