"""Log-probabilities of texts, token by token, as the three backends of the BabyLM evaluation read them. In float32.

`causal`: each token given those before it. `mlm`: each token hidden in its turn and predicted from both sides, which
adds up to the pseudo-log-likelihood (Salazar et al. 2020). `mntp`: the same, predicted at the place before it.
Every text begins with the end-of-text mark, as it did in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from babylm_train.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BACKENDS = ("causal", "mlm", "mntp")
BATCH_TOKENS = 4096
Places = tuple[torch.Tensor, torch.Tensor]  # row and column of each of N predictions, int64 (N,)
MAX_PADDING = 0.1  # of a batch


def token_log_probabilities(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = BATCH_TOKENS,
    backend: str = "causal",
    closing: bool = True,
) -> list[np.ndarray]:
    """Log-probability of every token of each text in nats: one float64 array of shape (tokens,) a text.

    A text that comes twice is scored once. A text is cut to the model's positions; `too_long` says how many are.

    Args:
        batch_tokens: tokens at a time. closing: the mark that ends a text counts too (`causal` only: the other backends
            have none).

    Raises:
        InputError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend}")
    own, causal = list(dict.fromkeys(texts)), backend == "causal"
    ids = [row[: tokenizer.model_max_length + causal] for row in _encoded(tokenizer, own, causal and closing)]
    was_training, rounding = model.training, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model.eval()
    with torch.inference_mode():
        scores = _causal(model, ids, batch_tokens) if causal else _pseudo(model, tokenizer, ids, batch_tokens, backend)
    model.train(was_training)
    torch.set_float32_matmul_precision(rounding)
    found = dict(zip(own, scores, strict=True))
    return [found[text] for text in texts]


def too_long(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], backend: str = "causal", closing: bool = True
) -> int:
    """How many of `texts` have more tokens than the model has positions: token_log_probabilities cuts these."""
    causal = backend == "causal"
    limit = tokenizer.model_max_length + causal
    return sum(len(row) > limit for row in _encoded(tokenizer, texts, causal and closing))


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], closing: bool) -> list[list[int]]:
    """The mark and the tokens of each text, whole. What spells a special token is text, as in training."""
    mark = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, split_special_tokens=True)["input_ids"]
    return [[mark, *tokens, *([mark] if closing else [])] for tokens in encoded]


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length: at most `batch_tokens` and a tenth of padding each, or one text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    filled = 0
    for i in order:
        size = (len(batch) + 1) * lengths[i]
        if batch and (size > batch_tokens or size - filled - lengths[i] > MAX_PADDING * size):
            yield batch
            batch, filled = [], 0
        batch.append(i)
        filled += lengths[i]
    if batch:
        yield batch


def _causal(model: torch.nn.Module, ids: list[list[int]], batch_tokens: int) -> list[np.ndarray]:
    device = next(model.parameters()).device
    scores = [np.zeros(0)] * len(ids)
    units = _sharing(ids)
    with tqdm(total=len(ids), desc="scoring", unit=" texts", leave=False, disable=None) as bar:
        for part in batches_by_length([len(unit.tokens) for unit in units], batch_tokens):
            batch = [units[i] for i in part]
            width = len(batch[-1].tokens)
            rows, positions = torch.zeros(2, len(batch), width, dtype=torch.long)
            seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(batch), 1, 1, 1)
            row_of: list[int] = []
            for row, unit in enumerate(batch):
                length = len(unit.tokens)
                rows[row, :length], positions[row, :length] = torch.tensor(unit.tokens), torch.tensor(unit.positions)
                seen[row, 0, unit.branch : length, unit.shared : unit.branch] = False
                row_of += [row] * len(unit.places)
            places = (torch.tensor(row_of), torch.tensor([place for unit in batch for place in unit.places]))
            targets = torch.tensor([token for unit in batch for text in unit.texts for token in ids[text][1:]])
            extra = {"position_ids": positions.to(device), "attention_mask": seen.to(device)}
            nats = _nats(model, rows.to(device), places, targets, **extra)
            texts = [text for unit in batch for text in unit.texts]
            ends = np.cumsum([len(ids[text]) - 1 for text in texts])
            for text, own in zip(texts, np.split(nats, ends[:-1]), strict=True):
                scores[text] = -own
            bar.update(len(texts))
    return scores


class _Unit(NamedTuple):
    """One row: a text, or two with what they share written once, the second a branch that does not see the first's.

    texts: their indices. tokens: the inputs. positions: of each within its text. shared: inputs of both. branch: where
    the second's own inputs begin. places: the input that predicts each target, of the first text and then the second.
    """

    texts: tuple[int, ...]
    tokens: list[int]
    positions: list[int]
    shared: int
    branch: int
    places: list[int]


def _sharing(ids: list[list[int]]) -> list[_Unit]:
    """Texts with a common beginning in twos, as the sentences of a minimal pair are: neighbours in sorted order."""
    units: list[_Unit] = []
    order = sorted(range(len(ids)), key=ids.__getitem__)
    while order:
        one = order.pop()
        first = ids[one][:-1]
        unit = _Unit((one,), first, list(range(len(first))), len(first), len(first), list(range(len(first))))
        if order:
            second = ids[order[-1]][:-1]
            shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
            shared = min(len(first), len(second)) if shared is None else shared
            if shared > 1:
                places = [*range(shared), *range(len(first), len(first) + len(second) - shared)]
                unit = _Unit(
                    (one, order.pop()),
                    first + second[shared:],
                    [*unit.positions, *range(shared, len(second))],
                    shared,
                    len(first),
                    unit.places + places,
                )
        units.append(unit)
    return units


def _pseudo(
    model: torch.nn.Module, tokenizer: Any, ids: list[list[int]], batch_tokens: int, backend: str
) -> list[np.ndarray]:
    """One row for each hidden token; only rows of one length stand together, so there is no padding to mask."""
    device = next(model.parameters()).device
    scores = [np.zeros(len(row) - 1) for row in ids]
    by_length: dict[int, list[tuple[int, int]]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).extend((i, hidden) for hidden in range(1, len(row)))
    with tqdm(total=sum(map(len, scores)), desc="scoring", unit=" tokens", leave=False, disable=None) as bar:
        for width, jobs in by_length.items():
            at_once = max(batch_tokens // width, 1)
            both_ways = {"attention_mask": torch.ones(1, 1, width, width, dtype=torch.bool, device=device)}
            for first in range(0, len(jobs), at_once):
                part = jobs[first : first + at_once]
                rows, hidden = torch.tensor([ids[i] for i, _ in part]), torch.tensor([[at] for _, at in part])
                targets = rows.gather(1, hidden).squeeze(1)
                rows.scatter_(1, hidden, tokenizer.mask_token_id)
                places = (torch.arange(len(part)), hidden.squeeze(1) - int(backend == "mntp"))
                extra = both_ways if backend == "mntp" else {}
                nats = _nats(model, rows.to(device), places, targets, **extra)
                for (i, at), one in zip(part, nats, strict=True):
                    scores[i][at - 1] = -one
                bar.update(len(part))
    return scores


def _nats(model: torch.nn.Module, rows: torch.Tensor, places: Places, targets: torch.Tensor, **extra: Any) -> Any:
    """-log p of `targets` (N,) at the N `places`: float64 (N,)."""
    if next(model.parameters()).dtype != torch.float32:
        raise InputError("log-probabilities are those of float32 weights: call model.float()")
    with _head_at(model, places):
        logits = model(input_ids=rows, use_cache=False, **extra).logits
    return (
        cross_entropy(logits.view(len(targets), -1), targets.to(rows.device), reduction="none").double().cpu().numpy()
    )


@contextlib.contextmanager
def _head_at(model: torch.nn.Module, places: Places) -> Iterator[None]:
    """While entered, the output layer is computed at `places` alone: most of the work, for a large vocabulary."""
    handle = model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda _module, args: (args[0][places],)
    )
    try:
        yield
    finally:
        handle.remove()
