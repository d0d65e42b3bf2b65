"""Models: their sizes, isolation of packed documents, dropout, decay groups."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from babylm_train.build import _optimizer
from babylm_train.config import CONF
from babylm_train.errors import InputError
from babylm_train.model.build import causal_lm, count_parameters, is_encoder
from babylm_train.objective import CausalObjective
from babylm_train.optim import group_parameters
from babylm_train.state import IGNORE, Batch

MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))


class Tokenizer(SimpleNamespace):
    def __len__(self) -> int:
        return self.size


def model_of(name: str, size: int, max_length: int, **changes: float) -> torch.nn.Module:
    build = instantiate(OmegaConf.load(CONF / "model" / f"{name}.yaml"), _convert_="all")
    tokenizer = Tokenizer(size=size, bos_token_id=2, eos_token_id=0, pad_token_id=1)
    return build(tokenizer=tokenizer, max_length=max_length, **changes)


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


def test_the_110m_is_what_the_field_calls_so():
    with torch.device("meta"):
        config = model_of("gpt2_110m", 32000, 512).config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (12, 768, 12, 512)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.0)


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


def test_the_causal_loss_is_the_summed_cross_entropy_of_valid_targets():
    torch.manual_seed(0)
    model = model_of("gpt2_nano", 50, 8).eval()
    inputs, targets = torch.randint(3, 50, (2, 8)), torch.randint(3, 50, (2, 8))
    targets[1, 5:] = IGNORE
    batch = Batch(inputs, targets, torch.arange(8).expand(2, -1), tokens=13, words=0)
    loss = CausalObjective()(model, batch)
    probabilities = model(input_ids=inputs).logits.double().softmax(-1)
    expected = -sum(
        probabilities[r, c, targets[r, c]].log() for r in range(2) for c in range(8) if targets[r, c] != IGNORE
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


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


def test_an_optimizer_without_weight_decay_of_its_own_has_torchs():
    options = SimpleNamespace(no_decay=[])
    for optimizer, expected in ((torch.optim.AdamW, 0.01), (torch.optim.Adam, 0.0)):
        built = _optimizer(
            SimpleNamespace(optimizer=partial(optimizer, lr=0.1), options=options), torch.nn.Linear(2, 2)
        )
        assert [group["weight_decay"] for group in built.param_groups] == [expected]


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
