"""From an epoch's order of documents to rows: a gather from the memory-mapped tokens.

The stream of an epoch is its documents one after the other, each stored as [mark] + tokens. Position i of the stream
predicts position i + 1, so every token, and the mark that closes each document, is a target exactly once; row r covers
the positions r * max_length ... (r + 1) * max_length.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from babylm_train.data.tokens import TokenizedSplit
from babylm_train.state import IGNORE, Batch, EpochSlice


class PackedRows:
    """The rows of one epoch slice, of `max_length` targets or a part; the last is filled up with ignored ones."""

    def __init__(self, split: TokenizedSplit, part: EpochSlice, max_length: int) -> None:
        self.split, self.part, self.max_length = split, part, max_length // part.parts
        lengths = split.offsets[part.order + 1] - split.offsets[part.order]
        self.begin = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # of each document in the stream
        self.rows = -(-part.targets // self.max_length)

    def __len__(self) -> int:
        return self.rows

    def batch(self, first: int, rows: int) -> Batch:
        """The rows first ... first + rows - 1 (fewer at the slice's end)."""
        rows = min(rows, self.rows - first)
        length, start, end = self.max_length, self.part.start, self.part.start + self.part.targets
        at = start + (first + np.arange(rows))[:, None] * length + np.arange(length + 1)
        valid = at[:, 1:] <= end
        document = np.searchsorted(self.begin, np.minimum(at, end), side="right") - 1
        beyond = document == len(self.part.order)  # the mark that closes the stream's last document
        document = np.minimum(document, len(self.part.order) - 1)
        source = self.split.offsets[self.part.order[document]] + np.minimum(at, end) - self.begin[document]
        source = np.where(beyond, self.split.offsets[0], source)  # every document begins with the mark
        tokens = np.asarray(self.split.ids[source], dtype=np.int64)
        tokens[:, 1:][~valid] = self.split.eos
        position = np.minimum(at - self.begin[document], np.arange(length + 1))[:, :-1]
        position[at[:, :-1] >= end] = 0  # filling: a document of its own at each position
        return Batch(
            inputs=torch.from_numpy(tokens[:, :-1].copy()),
            targets=torch.from_numpy(np.where(valid, tokens[:, 1:], IGNORE)),
            position_ids=torch.from_numpy(position.copy()),  # of one stride everywhere: compiled code asks
            tokens=int(valid.sum()),
            words=int(self.split.word_starts[source[:, 1:][valid]].sum(dtype=np.int64)),
            epoch=self.part.epoch,
            first_row=first,
        )

    def updates(self, first: int, micro_rows: int, micro_batches: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update from `first` on; a thread makes the next ones while some are trained on."""
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self.micro_batches, first, micro_rows, micro_batches)
            for index in range(first + 1, self.part.updates + 1):
                ready, coming = coming, thread.submit(self.micro_batches, index, micro_rows, micro_batches)
                yield ready.result()

    def micro_batches(self, index: int, micro_rows: int, micro_batches: int) -> list[Batch]:
        """The micro-batches of one update, of so many whole rows; the last update may have fewer, and a smaller one."""
        micro_rows *= self.part.parts
        first = index * micro_rows * micro_batches
        last = min(first + micro_rows * micro_batches, self.rows)
        return [self.batch(row, micro_rows) for row in range(first, last, micro_rows)]


class EvaluationRows:
    """Every target of a text exactly once, in windows that begin where their document begins.

    A document of n stored tokens has n targets, cut into windows of at most `max_length`; windows are packed whole into
    rows, isolated from each other, so the loss depends on the text alone and not on neighbours, order or batch size.
    """

    def __init__(self, split: TokenizedSplit, max_length: int) -> None:
        self.split, self.max_length = split, max_length
        self.tokens = int(split.offsets[-1])
        self.words, self.bytes = int(split.words.sum()), int(split.bytes.sum())
        self.windows = _pack(split.offsets, max_length)

    def __len__(self) -> int:
        return len(self.windows)

    def batches(self, rows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of up to `rows` rows: every `world`-th from number `rank` on."""
        ids = self.split.ids
        for first in range(rank * rows, len(self.windows), world * rows):
            part = self.windows[first : first + rows]
            inputs = np.full((len(part), self.max_length), self.split.eos)
            targets, positions = np.full_like(inputs, IGNORE), np.zeros_like(inputs)
            for row, windows in enumerate(part):
                at = np.concatenate([np.arange(start, start + length) for start, length in windows])
                inputs[row, : len(at)] = ids[at]
                targets[row, : len(at)] = ids[(at + 1) % len(ids)]  # the mark that begins a document closes the last
                positions[row, : len(at)] = np.concatenate([np.arange(length) for _, length in windows])
            yield Batch(
                inputs=torch.from_numpy(inputs),
                targets=torch.from_numpy(targets),
                position_ids=torch.from_numpy(positions),
                tokens=int((targets != IGNORE).sum()),
                words=0,
                first_row=first,
            )


def _pack(offsets: np.ndarray, max_length: int) -> list[list[tuple[int, int]]]:
    """Windows (first token, length) by row: best fit, longest first."""
    documents = pairwise(offsets.tolist())
    windows = [(at, min(max_length, end - at)) for begin, end in documents for at in range(begin, end, max_length)]
    rows: list[list[tuple[int, int]]] = []
    room: list[tuple[int, int]] = []  # (free places, row), ascending
    for start, length in sorted(windows, key=lambda window: (-window[1], window[0])):
        place = bisect_left(room, (length, -1))
        if place == len(room):
            rows.append([])
            free, row = max_length, len(rows) - 1
        else:
            free, row = room.pop(place)
        rows[row].append((start, length))
        if free > length:
            insort(room, (free - length, row))
    return rows
