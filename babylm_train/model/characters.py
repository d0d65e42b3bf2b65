"""Token embeddings that learn from the characters they share; an exported model has plain ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEAST = 2  # tokens that share an n-gram; one of a single token would be that token's embedding again


def list_ngrams(text: str, longest: int) -> list[str]:
    """The n-grams of 1 to `longest` characters of `text`, each as often as it is there."""
    return [text[at : at + n] for n in range(1, longest + 1) for at in range(len(text) - n + 1)]


class CharacterNgrams(nn.EmbeddingBag):
    """Adds to each token's embedding the sum of those of its n-grams, divided by the root of how many they are.

    So a rare token learns from all that are spelled like it (Bojanowski et al. 2017, arXiv:1607.04606). A
    parametrization of the weight, float32 (tokens, size).

    Args:
        tokens: the text of each, in the order of their ids; "" for one that has none.
        longest: characters of an n-gram.
        size: of an embedding. std: of those of the n-grams at first (from torch's global generator).
    """

    ids: Tensor
    starts: Tensor
    shares: Tensor

    def __init__(self, tokens: Sequence[str], longest: int, size: int, std: float) -> None:
        lists = [list_ngrams(token, longest) for token in tokens]
        counts = Counter(ngram for ngrams in lists for ngram in set(ngrams))
        known = {ngram: at for at, ngram in enumerate(sorted(n for n, count in counts.items() if count >= LEAST))}
        bags = [[known[ngram] for ngram in ngrams if ngram in known] for ngrams in lists]
        super().__init__(max(len(known), 1), size, mode="sum")
        nn.init.normal_(self.weight, std=std)
        shares = [len(bag) ** -0.5 for bag in bags for _ in bag]
        starts = [0, *accumulate(map(len, bags))][:-1]
        self.register_buffer("ids", torch.tensor([at for bag in bags for at in bag], dtype=torch.int64), False)
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.int64), False)
        self.register_buffer("shares", torch.tensor(shares), False)

    def forward(self, weight: Tensor) -> Tensor:  # type: ignore[override]
        """`weight` (tokens, size) with the n-grams of each token added."""
        return weight + super().forward(self.ids, self.starts, per_sample_weights=self.shares)


def share_ngrams(model: Any, tokenizer: Any, longest: int) -> None:
    """Has the token embeddings of a transformers model, and a head tied to them, learn from n-grams."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    # part of a sign's bytes, or a mark of our own, has no characters
    texts = ["" if at in special or "\ufffd" in text else text for at, text in enumerate(texts)]
    ngrams = CharacterNgrams(texts, longest, embedding.embedding_dim, model.config.initializer_range)
    tied = head is not None and head.weight is embedding.weight
    for module in (embedding, head) if tied else (embedding,):
        parametrize.register_parametrization(module, "weight", ngrams)
