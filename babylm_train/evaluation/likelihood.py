"""Log-probabilities of texts, token by token, as the three backends of the BabyLM evaluation read them. In float32.

`causal`: each token given those before it. `mlm`: each token hidden in its turn and predicted from both sides, which
adds up to the pseudo-log-likelihood (Salazar et al. 2020). `mntp`: the same, predicted at the place before it.
Every text begins with the end-of-text mark, as it did in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from babylm_train.errors import InputError
from babylm_train.evaluation.loss import use_float32

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BACKENDS = ("causal", "mlm", "mntp")
BATCH_TOKENS = 4096


def token_log_probabilities(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = BATCH_TOKENS,
    backend: str = "causal",
    closing: bool = True,
) -> list[np.ndarray]:
    """Log-probability of every token of each text in nats: one float64 array of shape (tokens,) a text.

    A text is cut to the model's positions; `texts_cut` of pairs.py counts those. Texts of one length stand together, so
    there is no padding to mask.

    Args:
        batch_tokens: tokens at a time. closing: the mark that ends a text counts too (`causal` only: the other backends
            have none).

    Raises:
        InputError: an unknown backend, a text without tokens, weights that are not float32, scores that are not finite.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend}")
    if next(model.parameters()).dtype != torch.float32:
        raise InputError("log-probabilities are those of float32 weights: call model.float()")
    own, causal = list(dict.fromkeys(texts)), backend == "causal"
    by_length: dict[int, list[list[int]]] = {}
    cut = [row[: tokenizer.model_max_length + causal] for row in encode(tokenizer, own, causal and closing)]
    for text, row in zip(own, cut, strict=True):
        if len(row) < 2:
            raise InputError(f"the tokenizer finds no token in the text {text!r}")
        by_length.setdefault(len(row), []).append(row)
    mask, found = None if causal else tokenizer.mask_token_id, {}
    with use_float32(model), tqdm(total=len(own), desc="scoring", unit=" texts", leave=False, disable=None) as bar:
        for length, rows in by_length.items():
            found[length] = iter(_score(model, torch.tensor(rows), batch_tokens, backend, mask, bar))
    by_text = {text: next(found[len(row)]) for text, row in zip(own, cut, strict=True)}
    if not all(np.isfinite(scores).all() for scores in by_text.values()):
        raise InputError("the model's log-probabilities are not finite: its weights are damaged, or training diverged")
    return [by_text[text] for text in texts]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], closing: bool) -> list[list[int]]:
    """The mark and the tokens of each text, whole. What spells a special token is text, as in training."""
    mark = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, split_special_tokens=True)["input_ids"]
    return [[mark, *tokens, *([mark] if closing else [])] for tokens in encoded]


def _score(
    model: torch.nn.Module, rows: torch.Tensor, batch_tokens: int, backend: str, mask: int | None, bar: tqdm[Any]
) -> np.ndarray:
    """log p of every token of `rows`, int64 (texts, length), but the first: float64 (texts, length - 1).

    Causal: a text is one row of input, and all its places predict. Else it is a row for each token, hidden there.
    """
    texts, width = rows.shape
    device, extra = next(model.parameters()).device, {}
    if mask is None:
        inputs, targets = rows[:, :-1], rows[:, 1:]
        columns = torch.arange(width - 1).expand(texts, -1)
    else:
        hidden = torch.arange(1, width).repeat(texts)[:, None]
        inputs = rows.repeat_interleave(width - 1, 0)
        targets, inputs = inputs.gather(1, hidden), inputs.scatter(1, hidden, mask)
        columns = hidden - int(backend == "mntp")
        if backend == "mntp":
            extra = {"attention_mask": torch.ones(1, 1, width, width, dtype=torch.bool, device=device)}
    scores = []
    for part in torch.arange(len(inputs)).split(max(batch_tokens // width, 1)):
        places = (torch.arange(len(part)).repeat_interleave(columns.shape[1]), columns[part].flatten())
        # The output layer is computed at these places alone.
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        with head.register_forward_pre_hook(lambda _module, args, places=places: (args[0][places],)):
            logits = model(input_ids=inputs[part].to(device), use_cache=False, **extra).logits
        wanted = targets[part].flatten().to(device)
        nats = cross_entropy(logits.view(len(wanted), -1), wanted, reduction="none")
        scores.append(-nats.double().cpu().numpy())
        bar.update(len(part) * texts / len(inputs))
    return np.concatenate(scores).reshape(texts, width - 1)
