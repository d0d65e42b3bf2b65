"""Masked and hybrid objectives: who is hidden, what is predicted from where, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, Tokenizer, hybrid, masked, model_of, random_split

from babylm_train.data.packing import EvaluationRows
from babylm_train.evaluation.loss import evaluate
from babylm_train.objective import ReplacedObjective, split_in_turns
from babylm_train.state import IGNORE, Batch

MARK, MASK = 0, 2


def two_documents() -> Batch:
    """[mark] 3 4 5 [mark] 6 7 and one place of filling: a row of 8 with 7 targets."""
    inputs = torch.tensor([[MARK, 3, 4, 5, MARK, 6, 7, MARK]])
    targets = torch.tensor([[3, 4, 5, MARK, 6, 7, MARK, IGNORE]])
    return Batch(inputs, targets, torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]]), tokens=7, words=5)


def test_what_is_predicted_from_where():
    """With every token hidden: encoders predict it at its place, the hybrid at the place before it; marks never."""
    everything = {"start_rate": 0.999999, "end_rate": 0.999999, "mask_share": 1.0, "random_share": 0.0}
    plain = masked(**everything).prepare(two_documents())
    assert plain.inputs.tolist() == [[MARK, MASK, MASK, MASK, MARK, MASK, MASK, MARK]]
    assert plain.targets.tolist() == [[IGNORE, 3, 4, 5, IGNORE, 6, 7, IGNORE]]
    assert (plain.tokens, plain.words, plain.both_ways) == (5, 5, True)
    shifted = hybrid(**everything).prepare(replace(two_documents(), update=3))
    assert shifted.inputs.tolist() == plain.inputs.tolist()
    assert shifted.targets.tolist() == [[3, 4, 5, IGNORE, 6, 7, IGNORE, IGNORE]]


def test_replaced_inputs_are_the_rows_own_and_end_with_the_run():
    objective = ReplacedObjective(replaced_share=0.5, seed=3).use_tokenizer(Tokenizer(VOCABULARY))
    tokens = torch.arange(3, 35).repeat(64, 1)
    tokens[:, ::8] = MARK
    batch = Batch(tokens, tokens, tokens, tokens=64 * 32, words=0, first_row=8)
    found = objective.prepare(batch).inputs
    share = 0.5 * 28 / 32 * 36 / 37  # 28 of 32 are words; 1 in 37 draws itself
    assert (found != tokens).float().mean() == pytest.approx(share, abs=0.05)
    assert torch.equal(found[:, ::8], tokens[:, ::8])
    assert int(found.min()) == MARK
    assert not torch.isin(torch.tensor([1, 2]), found).any()  # the other special ids
    half = objective.prepare(replace(batch, inputs=tokens[:5], first_row=40)).inputs
    assert torch.equal(half, found[32:37])
    assert not torch.equal(objective.prepare(replace(batch, epoch=1)).inputs, found)
    assert torch.equal(objective.prepare(replace(batch, progress=1.0)).inputs, tokens)


def test_the_hybrid_masks_its_share_of_the_updates_evenly():
    batch, objective = two_documents(), hybrid(masked_share=0.25)
    kinds = [objective.prepare(replace(batch, update=u)).both_ways for u in range(12)]
    assert kinds == [False, False, False, True] * 3
    causal = objective.prepare(replace(batch, update=0))
    assert torch.equal(causal.inputs, batch.inputs)
    assert torch.equal(causal.targets, batch.targets)


def test_the_loss_by_hand():
    """-log softmax of the hidden tokens, each document on its own, in float64; encoders and a decoder read both ways."""
    for name, objective in (("modernbert_nano", masked()), ("deberta_nano", masked()), ("gpt2_nano", hybrid())):
        torch.manual_seed(0)
        model = model_of(name, VOCABULARY, 8).eval()
        batch = objective.prepare(replace(two_documents(), update=3, progress=1.0))
        loss = objective(model, batch).item()
        expected = 0.0
        for start, end in ((0, 4), (4, 7)):
            ids = batch.inputs[:, start:end]
            seen = torch.ones(1, 1, end - start, end - start, dtype=torch.bool)
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=seen).logits[0].double()
            for place, target in enumerate(batch.targets[0, start:end].tolist()):
                expected -= 0.0 if target == IGNORE else logits[place].log_softmax(-1)[target].item()
        assert loss == pytest.approx(expected, rel=1e-5), name


def drawn(objective, ids, epoch=0, first_row=0, progress=0.0, candidates=True):
    """The hidden ids and which were chosen, of rows in which every token is a candidate, or none of some rows."""
    inputs = torch.as_tensor(ids)
    targets = torch.where(torch.as_tensor(candidates), inputs, IGNORE).expand(inputs.shape)
    batch = Batch(inputs, targets, torch.zeros_like(inputs), 0, 0, epoch=epoch, first_row=first_row, progress=progress)
    return objective.hide(batch)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), cut=st.integers(1, 5), epoch=st.integers(0, 3), first=st.integers(0, 1000))
def test_masks_are_a_function_of_seed_epoch_and_row(rows, cut, epoch, first):
    objective, ids = masked(), np.random.default_rng(1).integers(3, 40, (rows, 24))
    hidden, chosen = drawn(objective, ids, epoch, first)
    for row in range(0, rows, cut):  # other micro-batches, in any order
        part = slice(row, row + cut)
        again = drawn(objective, ids[part], epoch, first + row)
        assert np.array_equal(again[0], hidden[part])
        assert np.array_equal(again[1], chosen[part])
    assert np.array_equal(hidden[~chosen], ids[~chosen])
    assert rows < 3 or not np.array_equal(drawn(objective, ids, epoch + 1, first)[1], chosen)
    fewer = drawn(objective, ids, epoch, first, progress=1.0)[1]
    assert not (fewer & ~chosen).any()


def test_rates_and_the_80_10_10_rule():
    ids = np.full((200, 500), 39)
    hidden, chosen = drawn(masked(), ids)
    assert chosen.mean() == pytest.approx(0.3, abs=0.006)  # four standard deviations of 100,000 draws
    kinds = [(hidden[chosen] == MASK).mean(), (hidden[chosen] != MASK).mean(), (hidden[chosen] == 39).mean()]
    assert kinds == pytest.approx([0.8, 0.2, 0.1 + 0.1 / 37], abs=0.01)  # one of 37 others is the token itself
    assert [masked().rate(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.225, 0.15])


def test_a_row_with_candidates_hides_at_least_one():
    objective = masked(start_rate=1e-9, mask_share=1.0, random_share=0.0)
    hidden, chosen = drawn(objective, np.full((2, 3), 9), candidates=[[False, True, False], [False] * 3])
    assert chosen.tolist() == [[False, True, False], [False] * 3]
    assert hidden.tolist() == [[9, MASK, 9], [9, 9, 9]]


def test_an_evaluation_hides_every_token_once_and_does_not_depend_on_the_batch():
    split = random_split(12, 5)
    rows = EvaluationRows(split, 8)
    objective = masked()
    torch.manual_seed(0)
    model = model_of("modernbert_nano", VOCABULARY, 8)
    one, three = (evaluate(model, objective, rows, n) for n in (1, 3))
    assert one.tokens == int(split.words.sum())  # every token but the marks
    assert one.loss == pytest.approx(three.loss, rel=1e-6)
    assert set(one.figures()) == {"loss", "pseudo_perplexity", "pseudo_bits_per_byte", "pseudo_word_perplexity"}
    turns = np.stack(list(split_in_turns(np.ones((3, 20), bool), 7, 4)))
    assert (turns.sum(0) == 1).all()
    assert turns.any((1, 2)).all()
