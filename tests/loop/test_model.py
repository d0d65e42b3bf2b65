"""Models: their sizes, isolation of packed documents, dropout, and the fast way to call them."""

from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import VOCABULARY, Tokenizer, loss_and_gradients, model_of, packed
from torch.nn.functional import kl_div, nll_loss
from torch.optim import SGD
from transformers import AutoModelForCausalLM, MixtralConfig, OPTConfig, StableLmConfig

from babylm_train.config import CONF
from babylm_train.data.tokenizer import Unigram
from babylm_train.errors import InputError
from babylm_train.model.build import causal_lm, drop
from babylm_train.model.characters import CharacterNgrams
from babylm_train.model.export import write_model
from babylm_train.model.forward import LOGITS, Forward, agreeing_loss, has_linear_head, sum_cross_entropy
from babylm_train.objective import CausalObjective, RDropObjective
from babylm_train.optim import group_parameters
from babylm_train.state import IGNORE
from babylm_train.throughput import count_parameters, size_of

MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", MODELS)
def test_sizes(name):
    nano = name.endswith("nano")
    with torch.device("meta"):
        count = count_parameters(model_of(name, 8192 if nano else 32000, 256 if nano else 512))
    millions = 3 if nano else int(name.rpartition("_")[2].removesuffix("m"))
    assert count < 1e6 * millions if nano else count == pytest.approx(1e6 * millions, rel=0.1)


STABLE = partial(StableLmConfig, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2)


@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano", "stable"])
@pytest.mark.parametrize("called", [Forward, lambda model: model])
def test_no_document_sees_its_neighbour(name, called):
    """Other tokens in the first document of a row change no logit of the second; without the restart they would."""
    torch.manual_seed(0)
    stable = partial(causal_lm, STABLE, Tokenizer(50), 16, 0.0, 0.0)  # takes no documents of ours
    model = (stable() if name == "stable" else model_of(name, 50, 16)).eval()
    one = torch.randint(3, 50, (1, 16))
    other = one.clone()
    other[0, :7] = torch.randint(3, 50, (7,))
    restart, plain = torch.tensor([[*range(7), *range(9)]]), torch.arange(16)[None]

    def logits(ids, positions):
        with torch.no_grad():
            options = {"position_ids": positions, "attention_mask": None, "use_cache": False}
            return called(model)(input_ids=ids, **options).logits[0, 7:]

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
    opt = partial(OPTConfig, num_hidden_layers=1, hidden_size=16, word_embed_proj_dim=16, num_attention_heads=2)
    assert causal_lm(opt, Tokenizer(50), 8, 0.25, 0.0).config.dropout == 0.25
    with pytest.raises(InputError, match=r"model.dropout=0.5: where Mixtral"):
        causal_lm(partial(MixtralConfig, num_hidden_layers=1, hidden_size=64), Tokenizer(50), 8, 0.5, 0.0)


@pytest.mark.parametrize("kind", ["blocks", "chunks", "mask", "bfloat16 products", "two draws"])
@pytest.mark.parametrize("name", ["gpt2_nano", "modern_nano"])
def test_loss_and_gradients_are_those_of_the_model_itself(name, kind, monkeypatch):
    """Against transformers' own masks and torch's own cross-entropy over all logits; `chunks` of 7 rows of them.

    `two draws` of no dropout cannot differ.
    """
    torch.manual_seed(0)
    model = model_of(name, VOCABULARY, 40, dropout=0.0, attention_dropout=0.0).train()
    batch = packed(6, 40, 1)
    expected, gradients = loss_and_gradients(model, model, batch)
    forward = Forward(model, rows=9)
    assert forward.linear_head
    assert forward.isolates
    if kind == "chunks":
        monkeypatch.setitem(LOGITS, "cpu", 7 * VOCABULARY)
    if kind == "mask":
        forward.compile = True  # takes the static way, rows filled up; nothing is compiled
    if kind == "bfloat16 products":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    objective = RDropObjective(agreement=3.0) if kind == "two draws" else CausalObjective()
    loss, found = loss_and_gradients(forward, model, batch, objective)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-4)


def test_two_draws_are_to_agree(monkeypatch):
    """Against the formula in torch's own terms: the mean of two losses and of the divergences each way."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, 2, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    targets = torch.randint(0, 11, (3, 4))
    targets[0, 1] = targets[2, 3] = IGNORE
    one, two = ((hidden[..., draw, :] @ weight.T).log_softmax(-1).flatten(0, 1) for draw in (0, 1))
    losses = [nll_loss(draw, targets.flatten(), ignore_index=IGNORE, reduction="sum") for draw in (one, two)]
    valid = targets.flatten() != IGNORE
    one, two = one[valid], two[valid]
    apart = [kl_div(a, b, reduction="sum", log_target=True) for a, b in ((one, two), (two, one))]
    expected = sum(losses) / 2 + 0.7 * sum(apart) / 2
    monkeypatch.setitem(LOGITS, "cpu", 3 * 8 * 11)  # chunks of three positions, eight arrays of each
    found = sum_cross_entropy(hidden, weight, targets, partial(agreeing_loss, agreement=0.7))
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tokens_learn_from_their_ngrams_and_an_export_has_plain_embeddings(tmp_path):
    """a, b and ab are shared by tokens 0 and 1, and are all that are; token 2 has b alone, token 3 nothing."""
    ngrams = CharacterNgrams(["ab", "abc", "b", "x"], longest=3, size=2, std=1.0)
    with torch.no_grad():
        ngrams.weight.copy_(torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]))  # a, ab, b
        found = ngrams(torch.zeros(4, 2))
    torch.testing.assert_close(found[:, 0], torch.tensor([111 / 3**0.5, 111 / 3**0.5, 100.0, 0.0]))

    tokenizer = Unigram(vocab_size=300).build(["एक लड़का था, एक लड़की थी।"] * 3)
    for name in ("gpt2_nano", "modern_nano"):
        build = instantiate(OmegaConf.load(CONF / "model" / f"{name}.yaml"), _convert_="all")
        model = build(tokenizer=tokenizer, max_length=8, dropout=0.0, character_ngrams=3)
        loss_and_gradients(Forward(model), model, packed(2, 8, 0))
        assert all(p.grad is not None for p in model.parameters())
        _, rest, _ = group_parameters(model, 0.1, no_decay=["norm", "bias"])
        assert len(rest["params"]) == 2 + (name == "gpt2_nano")  # tokens, n-grams, GPT-2's positions
        write_model(model, tokenizer, tmp_path / name, ["causal"])
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        plain = build(tokenizer=tokenizer, max_length=8)
        assert exported.state_dict().keys() == plain.state_dict().keys()
        ids = torch.arange(len(tokenizer))[None, -8:]
        torch.testing.assert_close(exported(ids).logits, model.eval()(ids).logits)
        sizes = [size_of(m, SGD(m.parameters()), context=8, rows=1, activation_bytes=4) for m in (model, plain)]
        assert sizes[0].parameters == count_parameters(plain) == exported.num_parameters()
        assert sizes[0].flops_per_token == sizes[1].flops_per_token
        assert sizes[0].memory["weights"] > sizes[1].memory["weights"]


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
