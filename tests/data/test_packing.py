"""Rows: every target once, documents isolated, words counted to the row."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from babylm_train.data.packing import EvaluationRows, PackedRows
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.state import IGNORE, EpochSlice

EOS = 0


def split_of(lengths: list[int], words: list[int] | None = None) -> TokenizedSplit:
    """Documents of `lengths` tokens with the ids 1, 2, 3 ...; document d has words[d] words, one a token at most."""
    ids, starts, offsets, token = [], [], [0], 1
    for document, length in enumerate(lengths):
        ids += [EOS, *range(token, token + length)]
        count = words[document] if words else length
        starts += [0, *([1] * count + [0] * (length - count))]
        token += length
        offsets.append(len(ids))
    return TokenizedSplit(
        ids=np.array(ids, dtype=np.uint16),
        offsets=np.array(offsets),
        word_starts=np.array(starts, dtype=np.uint8),
        bytes=np.array(lengths),
        words=np.array(words or lengths),
        eos=EOS,
        fingerprint="test",
        unknown=0,
    )


def slice_of(order: list[int], targets: int, start: int = 0, parts: int = 1) -> EpochSlice:
    ids = np.array(order)
    return EpochSlice(0, 1.0, pool=np.unique(ids), order=ids, start=start, targets=targets, updates=1, parts=parts)


def test_rows_worked_out_by_hand():
    # documents [0 1 2], [0 3], [0 4 5 6] in the order 2, 0, 1: the stream 0 4 5 6 0 1 2 0 3 (0)
    rows = PackedRows(split_of([2, 1, 3]), slice_of([2, 0, 1], targets=9), max_length=4)
    assert len(rows) == 3
    batch = rows.batch(0, 3)
    assert batch.inputs.tolist() == [[0, 4, 5, 6], [0, 1, 2, 0], [3, 0, 0, 0]]
    assert batch.targets.tolist() == [[4, 5, 6, 0], [1, 2, 0, 3], [0, IGNORE, IGNORE, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert (batch.tokens, batch.words) == (9, 6)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    max_length=st.integers(2, 17),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    seed=st.integers(0, 9),
    parts=st.integers(1, 3),
)
def test_every_target_once_whatever_the_batches(lengths, max_length, micro, accumulation, seed, parts):
    """Also where a second slice goes on where the first one stopped, and the first one's rows are cut into parts."""
    split = split_of(lengths, [max(1, n // 2) for n in lengths])
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    total = sum(lengths) + len(lengths)
    first = (total + seed) // 2 % total
    slices = [slice_of(order, first, 0, parts), slice_of(order, total - first, first)]
    seen, words = [], 0
    for rows in (PackedRows(split, part, max_length * parts) for part in slices):
        updates = range(-(-rows.part.targets // (micro * accumulation * max_length * parts)))
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
    expected = [t for d in order for t in [*split.ids[split.offsets[d] + 1 : split.offsets[d + 1]], EOS]]
    assert seen == expected
    assert words == int(split.words.sum())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), max_length=st.integers(2, 17), rows=st.integers(1, 5)
)
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
