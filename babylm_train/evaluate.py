"""Exact evaluation: loss and what derives from it, sampled continuations, minimal pairs. Always in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from babylm_train.data.packing import EvaluationRows
from babylm_train.types import Evaluation, MinimalPair, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    nats = torch.zeros((), dtype=torch.float64, device=device)
    total = -(-len(rows) // batch_rows)
    for batch in tqdm(rows.batches(batch_rows), "evaluating", total, leave=False, disable=None):
        nats += objective(forward or model, batch.to(device)).double()
    model.train(was_training)
    torch.set_float32_matmul_precision(rounding)
    return summarise(nats.item(), rows.tokens, rows.words, rows.bytes)


def summarise(nats: float, tokens: int, words: int, size: int) -> Evaluation:
    """Perplexity exp(nats / tokens), bits per byte nats / ln 2 / bytes, word perplexity exp(nats / words)."""
    return Evaluation(
        loss=nats / tokens,
        perplexity=_exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / size,
        word_perplexity=_exp(nats / words),
        tokens=tokens,
        words=words,
        bytes=size,
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


@torch.no_grad()
def log_probabilities(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_tokens: int = 16384
) -> list[float]:
    """Summed log-probability of each text and its closing mark, in nats, in the order given.

    Batched by length, so little is spent on padding. A text is cut to the model's positions.
    """
    device = next(model.parameters()).device
    mark, limit = tokenizer.eos_token_id, tokenizer.model_max_length
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False)["input_ids"]
    ids = [[mark, *tokens, mark][: limit + 1] for tokens in encoded]
    scores = [0.0] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    was_training = model.training
    model.eval()
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * len(ids[order[last]]) <= batch_tokens:
            last += 1
        part = order[first:last]
        width = max(len(ids[i]) for i in part)
        rows = torch.tensor([ids[i] + [mark] * (width - len(ids[i])) for i in part], device=device)
        valid = torch.tensor([[1.0] * (len(ids[i]) - 1) + [0.0] * (width - len(ids[i])) for i in part], device=device)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        picked = logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
        for i, score in zip(part, (picked * valid).sum(-1).tolist(), strict=True):
            scores[i] = score
        first = last
    model.train(was_training)
    return scores


def score_pairs(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[MinimalPair]
) -> dict[str, float]:
    """Accuracy by phenomenon and over `all` pairs: the share with the more probable good sentence; a tie is half."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    scores = log_probabilities(model, tokenizer, texts)
    right: dict[str, list[float]] = {}
    for pair, good, bad in zip(pairs, scores[::2], scores[1::2], strict=True):
        hit = 0.5 if good == bad else float(good > bad)
        for name in (pair.phenomenon, "all"):
            right.setdefault(name, []).append(hit)
    return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}


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
