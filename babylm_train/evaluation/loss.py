"""Exact evaluation: every target of a text once, in float32; and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from babylm_train.data.packing import EvaluationRows
from babylm_train.state import Evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from babylm_train.objective import Objective

PROMPTS = ("एक दिन", "राम ने", "लड़की घर")


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, objective: Objective, rows: EvaluationRows, batch_rows: int, forward: Any = None
) -> Evaluation:
    """Loss of `model` over every target of `rows` once, weighted by target.

    Args:
        model: evaluated in float32 and eval mode; its mode is restored.
        batch_rows: rows at a time; changes speed and memory, not the result. forward: how the model is called.
    """
    device = next(model.parameters()).device
    was_training, rounding = model.training, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model.eval()
    nats, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    total = -(-len(rows) // batch_rows)
    for batch in tqdm(rows.batches(batch_rows), "evaluating", total, leave=False, disable=None):
        for part in objective.evaluation(batch):
            nats += objective(forward or model, part.to(device)).double()
            tokens += part.tokens
    model.train(was_training)
    torch.set_float32_matmul_precision(rounding)
    return summarise(nats.item(), tokens, rows.words, rows.bytes, objective.likelihood == "pseudo")


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


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    tokens: int = 40,
) -> list[str]:
    """One continuation a prompt, top-p 0.9, seeded; torch's generators are left as they were."""
    was_training = model.training
    model.eval()
    texts = []
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompt in prompts:
            ids = [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
            ids = ids[: tokenizer.model_max_length - 1]
            rows = torch.tensor([ids], device=device)
            options: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "top_k": 0}
            room = min(tokens, tokenizer.model_max_length - len(ids))
            out = model.generate(  # type: ignore[operator]
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=room,
                pad_token_id=tokenizer.pad_token_id,
                **options,
            )
            texts.append(str(tokenizer.decode(out[0, 1:], skip_special_tokens=True)))
    model.train(was_training)
    return texts
