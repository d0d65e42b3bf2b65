"""Log-probabilities of texts in float32, token by token, after the mark that begins a text in training too.

`causal`: each token given those before it. `mlm`: each token hidden in its turn and predicted from both sides, which
adds up to the pseudo-log-likelihood (Salazar et al. 2020). `mntp`: the same, predicted at the place before it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from babylm_train.errors import InputError
from babylm_train.evaluation.loss import use_float32


def token_log_probabilities(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_tokens: int = 4096,
    backend: str = "causal",
    closing: bool = True,
) -> list[np.ndarray]:
    """Log-probability of every token of each text in nats: one float64 array of shape (tokens,) a text.

    A text is cut to the model's positions; texts of one length stand together, so there is no padding to mask.
    closing: the mark that ends a text counts too (`causal` only: the other backends have none).
    Raises InputError: a text without tokens, weights that are not float32, scores that are not finite.
    """
    if next(model.parameters()).dtype != torch.float32:
        raise InputError("log-probabilities are those of float32 weights: call model.float()")
    own, causal = list(dict.fromkeys(texts)), backend == "causal"
    cut = [row[: tokenizer.model_max_length + causal] for row in encode(tokenizer, own, causal and closing)]
    mask, found = None if causal else tokenizer.mask_token_id, dict[str, np.ndarray]()
    with use_float32(model), tqdm(total=len(own), desc="scoring", unit=" texts", leave=False, disable=None) as bar:
        for length in dict.fromkeys(map(len, cut)):
            index = [i for i, row in enumerate(cut) if len(row) == length]
            if length < 2:
                raise InputError(f"the tokenizer finds no token in the text {own[index[0]]!r}")
            scores = _score(model, torch.tensor([cut[i] for i in index]), batch_tokens, backend, mask, bar)
            found |= {own[i]: each for i, each in zip(index, scores, strict=True)}
    if not all(np.isfinite(scores).all() for scores in found.values()):
        raise InputError("the model's log-probabilities are not finite: its weights are damaged, or training diverged")
    return [found[text] for text in texts]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], closing: bool) -> list[list[int]]:
    """The mark and the tokens of each text, whole. What spells a special token is text, as in training."""
    mark = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, split_special_tokens=True)["input_ids"]
    return [[mark, *tokens, *([mark] if closing else [])] for tokens in encoded]


def _score(
    model: torch.nn.Module, rows: torch.Tensor, batch_tokens: int, backend: str, mask: int | None, bar: Any
) -> np.ndarray:
    """log p of every token of `rows`, int64 (texts, length), but the first: float64 (texts, length - 1)."""
    texts, width = rows.shape
    device, extra = next(model.parameters()).device, {}
    if mask is None:  # causal: a text is one row of input, and all its places predict
        inputs, targets = rows[:, :-1], rows[:, 1:]
        columns = torch.arange(width - 1).expand(texts, -1)
    else:  # a row for each token, hidden there
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
