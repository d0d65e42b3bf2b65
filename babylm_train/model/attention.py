"""Causal attention inside documents that share a row: in blocks of one length on a CPU, by a mask elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "documents"  # as registered with transformers
CLOSE = 0.75  # documents at least this share of a block's longest go into its block
PRODUCTS = 512  # longest document whose square of scores is held in memory
SHORT = 16  # documents up to this length share one block


@dataclass(frozen=True)
class Blocks:
    """Documents of a micro-batch of N positions, gathered into padded blocks of P places in all."""

    index: Tensor  # int64 (P,): the position that each place reads; padding repeats its document's last one
    inverse: Tensor  # int64 (N,): the place that holds each position
    shapes: tuple[tuple[int, int], ...]  # (documents, length) of each block


def group_documents(position_ids: Tensor) -> Blocks:
    """The blocks of rows whose position_ids, int64 (rows, length), restart at each document.

    A document padded on its right needs no mask, and its cost is its own length squared, not the row's.
    """
    positions = position_ids.numpy()
    begins = np.ones(positions.shape, dtype=bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=positions.size)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    cuts = [0]
    while cuts[-1] < len(lengths):
        longest = lengths[cuts[-1]]
        least = 1 if longest <= SHORT else max(int(np.ceil(CLOSE * longest)), SHORT + 1)
        cuts.append(int(np.searchsorted(-lengths, -least, side="right")))
    inverse = np.empty(positions.size, dtype=np.int64)
    indices, shapes, place = [], [], 0
    for first, last in pairwise(cuts):
        length = int(lengths[first])
        column, own = np.arange(length), lengths[first:last, None]
        index = starts[first:last, None] + np.minimum(column, own - 1)
        real = column < own
        inverse[index[real]] = place + np.flatnonzero(real)
        indices.append(index.ravel())
        shapes.append((last - first, length))
        place += index.size
    return Blocks(torch.from_numpy(np.concatenate(indices)), torch.from_numpy(inverse), tuple(shapes))


def mask_documents(position_ids: Tensor) -> Tensor:
    """True where a position may look: bool (rows, 1, length, length), made on the device without a synchronisation."""
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    document = torch.nn.functional.pad(restarts.cumsum(1), (1, 0))
    column = torch.arange(position_ids.shape[1], device=position_ids.device)
    return ((document[:, :, None] == document[:, None, :]) & (column[:, None] >= column))[:, None]


class _Select(torch.autograd.Function):
    """x[index]; its gradient is grad[inverse] (what repeats is padding, of gradient zero), else zero elsewhere."""

    @staticmethod
    def forward(context: Any, x: Tensor, index: Tensor, inverse: Tensor | None) -> Tensor:
        context.save_for_backward(index, inverse)
        context.places = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = context.saved_tensors
        if inverse is not None:
            return grad.index_select(0, inverse), None, None
        return grad.new_zeros(context.places, grad.shape[1]).index_copy_(0, index, grad), None, None


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, documents: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; `documents`: `Blocks`, or a mask; None: as plain SDPA."""
    if documents is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dropout, scaling = options.get("dropout", 0.0), options.get("scaling")
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast QK norms give float32
    groups = query.shape[1] // key.shape[1]
    if isinstance(documents, Blocks):
        key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
        return _attend_blocks(query, key, value, documents, dropout, scaling), None
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=documents, dropout_p=dropout, scale=scaling, enable_gqa=groups > 1
    )
    return out.transpose(1, 2).contiguous(), None


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, dropout: float, scaling: float | None
) -> Tensor:
    rows, heads, length, size = query.shape
    if blocks.shapes == ((rows, length),):  # a document a row
        return _attend_block(query, key, value, dropout, scaling).transpose(1, 2).contiguous()
    sizes = [documents * longest for documents, longest in blocks.shapes]
    parts = []
    for x in (query, key, value):
        flat = x.transpose(1, 2).reshape(rows * length, heads * size)
        parts.append(_Select.apply(flat, blocks.index, blocks.inverse).split(sizes))  # type: ignore[no-untyped-call]
    outs = []
    for shape, *block in zip(blocks.shapes, *parts, strict=True):
        q, k, v = (x.view(*shape, heads, size).transpose(1, 2) for x in block)
        outs.append(_attend_block(q, k, v, dropout, scaling).transpose(1, 2).reshape(-1, heads * size))
    return _Select.apply(torch.cat(outs), blocks.inverse, None).view(rows, length, heads, size)  # type: ignore[no-untyped-call]


def _attend_block(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Causal attention of whole documents; (documents, heads, length, size) in and out.

    With bfloat16 instructions two products and a softmax are 2 to 3 times faster than the fused kernel.
    """
    documents, heads, length, size = query.shape
    rounded = query.dtype == torch.bfloat16 or torch.get_float32_matmul_precision() == "medium"
    if not rounded or length > PRODUCTS:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    hidden = query.new_full((length, length), float("-inf")).triu(1)
    q, k, v = (x.reshape(-1, length, size) for x in (query, key, value))
    scores = torch.baddbmm(hidden.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scaling or size**-0.5)
    shares = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return (shares @ v).view(documents, heads, length, size)
