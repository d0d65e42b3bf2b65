"""Models: their sizes, isolation of packed documents, dropout, and the fast way to call them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, loss_and_gradients, model_of, packed

from babylm_train.config import CONF
from babylm_train.errors import InputError
from babylm_train.model import attention
from babylm_train.model.build import causal_lm, count_parameters, drop, is_encoder
from babylm_train.model.forward import LOGITS, Forward, has_linear_head, sum_cross_entropy
from babylm_train.state import IGNORE

MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", MODELS)
def test_sizes(name):
    nano = name.endswith("nano")
    with torch.device("meta"):
        count = count_parameters(model_of(name, 8192 if nano else 32000, 256 if nano else 512))
    if nano:
        assert count < 3_000_000
    else:
        millions = int(name.rpartition("_")[2].removesuffix("m"))
        assert abs(count / (millions * 1_000_000) - 1) < 0.1


@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_no_document_sees_its_neighbour(name):
    """Other tokens in the first document of a row change no logit of the second; without the restart they would."""
    torch.manual_seed(0)
    model = model_of(name, 50, 16).eval()
    one = torch.randint(3, 50, (1, 16))
    other = one.clone()
    other[0, :7] = torch.randint(3, 50, (7,))
    restart, plain = torch.tensor([[*range(7), *range(9)]]), torch.arange(16)[None]

    def logits(ids, positions):
        with torch.no_grad():
            return model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits[0, 7:]

    torch.testing.assert_close(logits(one, restart), logits(other, restart), rtol=0, atol=1e-6)
    assert (logits(one, plain) - logits(other, plain)).abs().max() > 1e-3
    alone = one[:, 7:]
    torch.testing.assert_close(logits(one, restart), model(input_ids=alone).logits[0].detach(), rtol=0, atol=1e-5)


def test_residual_dropout_acts_in_training_only_and_leaves_the_names_alone():
    torch.manual_seed(0)
    plain, dropped = model_of("modern_nano", 50, 8, dropout=0.0), model_of("modern_nano", 50, 8, dropout=0.5)
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    dropped.load_state_dict(plain.state_dict())
    ids = torch.randint(3, 50, (1, 8))
    torch.testing.assert_close(plain.eval()(ids).logits, dropped.eval()(ids).logits, rtol=0, atol=0)
    assert not torch.equal(dropped.train()(ids).logits, dropped(ids).logits)


@pytest.mark.parametrize(("name", "value"), [("dropout", 1.0), ("attention_dropout", -0.1)])
def test_dropout_out_of_range(name, value):
    with pytest.raises(InputError, match=rf"model\.{name} must be in \[0, 1\)"):
        causal_lm(lambda: None, None, 8, **{"dropout": 0.1, "attention_dropout": 0.1, name: value})


@pytest.mark.parametrize("name", ["deberta_nano", "modernbert_nano"])
def test_an_encoder_takes_the_mask_that_isolates_documents(name):
    """A document in a packed row gives the logits it gives alone, with a mask of its own or none; and it is an encoder."""
    torch.manual_seed(0)
    model = model_of(name, 50, 16).eval()
    assert is_encoder(model)
    assert not is_encoder(model_of("gpt2_nano", 50, 16))
    ids, document = torch.randint(3, 50, (1, 16)), torch.tensor([[0] * 7 + [1] * 9])
    seen = (document[:, :, None] == document[:, None, :])[:, None]
    positions = torch.tensor([[*range(7), *range(9)]])
    with torch.no_grad():
        packed = model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits[0, 7:]
        alone = model(input_ids=ids[:, 7:]).logits[0]
        padded = model(input_ids=ids[:, 7:], attention_mask=torch.ones(1, 9)).logits[0]
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["blocks", "mask", "bfloat16 products"])
@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_loss_and_gradients_are_those_of_the_model_itself(name, kind, monkeypatch):
    """Against transformers' own masks and torch's own cross-entropy over all logits."""
    torch.manual_seed(0)
    model = model_of(name, VOCABULARY, 40, dropout=0.0, attention_dropout=0.0).train()
    batch = packed(6, 40, 1)
    expected, gradients = loss_and_gradients(model, model, batch)
    forward = Forward(model, rows=9)
    assert forward.linear_head
    assert forward.isolates
    if kind == "mask":
        forward.compile = True  # takes the static way, rows filled up; nothing is compiled
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
