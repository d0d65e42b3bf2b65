"""Exact evaluation: every target of a text once, in float32."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from babylm_train.data.packing import EvaluationRows
from babylm_train.objective import Objective
from babylm_train.state import ALONE, Evaluation, OneProcess


@contextlib.contextmanager
def use_float32(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode, its products are exact float32 and nothing is differentiated."""
    was_training, rounding = model.training, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.set_float32_matmul_precision(rounding)


def evaluate(
    model: torch.nn.Module,
    objective: Objective,
    rows: EvaluationRows,
    batch_rows: int,
    forward: Any = None,
    processes: OneProcess = ALONE,
) -> Evaluation:
    """Loss of `model`, called as `forward`, over every target of `rows` once, batch by batch dealt out to `processes`.

    batch_rows does not change the result.
    """
    device, rank, world = next(model.parameters()).device, processes.rank, processes.world
    nats, tokens = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.float64)
    number = -(-len(rows) // (batch_rows * world))
    with use_float32(model):
        batches = rows.batches(batch_rows, rank, world)
        for batch in tqdm(batches, "evaluating", number, leave=False, disable=True if rank else None):
            for part in objective.evaluation(batch):
                nats += objective(forward or model, part.to(device)).double()
                tokens += part.tokens
    processes.add(nats)
    processes.add(tokens)
    return summarise(nats.item(), int(tokens), rows.words, rows.bytes, objective.likelihood == "pseudo")


def summarise(nats: float, tokens: int, words: int, size: int, pseudo: bool = False) -> Evaluation:
    """Perplexity exp(nats / tokens), bits per byte nats / ln 2 / bytes, word perplexity exp(nats / words)."""
    return Evaluation(
        loss=nats / tokens,
        perplexity=_exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / size,
        word_perplexity=_exp(nats / words),
        tokens=tokens,
        words=words,
        bytes=size,
        pseudo=pseudo,
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
