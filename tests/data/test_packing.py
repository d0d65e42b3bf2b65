"""Rows: every target once, documents isolated, words counted to the row (and by a plan)."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babylm_train.data.packing import EvaluationRows, PackedRows
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.state import IGNORE, EpochSlice
from babylm_train.tools.plan import count_words

EOS = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def split_of(lengths: list[int]) -> TokenizedSplit:
    """Documents of `lengths` tokens with the ids 1, 2, 3 ...; id % 3 words begin in a token."""
    ids = np.insert(np.arange(1, sum(lengths) + 1), np.cumsum([0, *lengths[:-1]]), EOS).astype(np.uint16)
    offsets = np.append(np.flatnonzero(ids == EOS), len(ids))
    words = np.add.reduceat(ids % 3, offsets[:-1], dtype=np.int64)
    return TokenizedSplit(ids, offsets, (ids % 3).astype(np.uint8), np.array(lengths), words, EOS, "test", 0)


def slice_of(order: list[int], targets: int, start: int = 0, parts: int = 1) -> EpochSlice:
    ids = np.array(order)
    return EpochSlice(0, 1.0, pool=np.unique(ids), order=ids, start=start, targets=targets, updates=1, parts=parts)


def test_rows_worked_out_by_hand():
    # documents [0 1 2], [0 3], [0 4 5 6] in the order 2, 0, 1: the stream 0 4 5 6 0 1 2 0 3 (0); 1 2 0 1 2 0 words
    rows = PackedRows(split_of([2, 1, 3]), slice_of([2, 0, 1], targets=9), max_length=4)
    assert len(rows) == 3
    batch = rows.batch(0, 3)
    assert batch.inputs.tolist() == [[0, 4, 5, 6], [0, 1, 2, 0], [3, 0, 0, 0]]
    assert batch.targets.tolist() == [[4, 5, 6, 0], [1, 2, 0, 3], [0, IGNORE, IGNORE, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert (batch.tokens, batch.words) == (9, 6)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    max_length=st.integers(2, 17),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    seed=st.integers(0, 999),
    parts=st.integers(1, 3),
)
def test_every_target_once_whatever_the_batches(lengths, max_length, micro, accumulation, seed, parts):
    """Also where a slice goes on where another stopped, and the first one's rows are cut into parts."""
    split, rng = split_of(lengths), np.random.default_rng(seed)
    order = rng.permutation(len(lengths)).tolist()
    edges = [0, *sorted(rng.integers(0, len(split.ids), 2).tolist()), len(split.ids)]
    seen = []
    for start, end in pairwise(edges):
        rows = PackedRows(split, slice_of(order, end - start, start, 1 if start else parts), max_length * parts)
        updates, words = range(-(-rows.part.targets // (micro * accumulation * max_length * parts))), 0
        for batch in (b for i in updates for b in rows.micro_batches(i, micro, accumulation)):
            valid = batch.targets != IGNORE
            assert batch.inputs.shape[1] * rows.part.parts == max_length * parts
            assert batch.inputs.numel() <= micro * max_length * parts
            assert int(valid.sum()) == batch.tokens
            seen += batch.targets[valid].tolist()
            words += batch.words
            # position 0 exactly at a mark or at a row's start
            starts = (batch.inputs == EOS) | (torch.arange(batch.inputs.shape[1]) == 0)
            assert ((batch.position_ids == 0) == starts)[valid].all()
        assert words == count_words(rows.part, np.diff(split.offsets), split.words, split.word_starts)
        assert words == sum(token % 3 for token in seen[start:])
    assert seen == [t for d in order for t in [*split.ids[split.offsets[d] + 1 : split.offsets[d + 1]], EOS]]


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, max_length=st.integers(2, 17), rows=st.integers(1, 5))
def test_evaluation_covers_every_target_once(lengths, max_length, rows):
    split = split_of(lengths)
    evaluation = EvaluationRows(split, max_length)
    seen = []
    for batch in evaluation.batches(rows):
        valid = batch.targets != IGNORE
        seen += batch.targets[valid].tolist()
        # within a window the input is the target before it, at the next position
        inside = batch.position_ids[:, 1:] > 0
        assert (batch.inputs[:, 1:][inside] == batch.targets[:, :-1][inside]).all()
    assert sorted(seen) == sorted([*split.ids[split.ids != EOS].tolist(), *[EOS] * len(lengths)])
    assert evaluation.tokens == len(seen)


def test_windows_are_packed_tightly():
    assert len(EvaluationRows(split_of([9, 3, 2]), 6)) == 4  # 10 targets: 6 + 4, then 4, then 3
    assert len(EvaluationRows(split_of([9, 1]), 6)) == 2  # 6 | 4 + 2
