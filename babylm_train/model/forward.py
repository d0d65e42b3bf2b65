"""How the loop calls a model: documents isolated the cheap way, compiled with static shapes, no logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear, pad

from babylm_train.model import attention
from babylm_train.model.loss import chunk_loss, summed_cross_entropy


class Forward:
    """Stands in for a transformers model wherever an objective calls one.

    A model built with `attn_implementation=attention.NAME` gets its documents from the restarts of position_ids; any
    other model is called as it is.

    Args:
        model: a PreTrainedModel. compile: with torch.compile; rows: of every compiled call, fewer are filled up.
    """

    def __init__(self, model: Any, compile: bool = False, rows: int | None = None) -> None:
        self.model, self.compile, self.rows = model, compile, rows
        self.call = torch.compile(model, dynamic=False) if compile else model
        self.body = torch.compile(model.base_model, dynamic=False) if compile else model.base_model
        self.chunk = torch.compile(chunk_loss, dynamic=False) if compile else chunk_loss
        self.linear_head = has_linear_head(model)
        self.isolates = model.config._attn_implementation == attention.NAME
        # flex attention trains on GPUs alone, only compiled is it fast, and its kernels want heads of 16 or more
        drops = getattr(model.config, "attn_pdrop", 0.0) or getattr(model.config, "attention_dropout", 0.0)
        wide = model.config.hidden_size // model.config.num_attention_heads >= 16
        self.flex = compile and next(model.parameters()).device.type == "cuda" and wide and not drops

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """The model's own output."""
        return self.call(input_ids=input_ids, **self._isolated(options))

    def summed_loss(self, input_ids: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        """Summed cross-entropy of the head on `targets`, for a model whose `linear_head` is true."""
        rows = len(input_ids)
        if self.compile and self.rows is not None and rows < self.rows:  # one shape, one compilation
            more = self.rows - rows
            input_ids = pad(input_ids, (0, 0, 0, more))
            options["position_ids"] = pad(options["position_ids"], (0, 0, 0, more))
        hidden = self.body(input_ids=input_ids, **self._isolated(options)).last_hidden_state[:rows]
        return summed_cross_entropy(hidden, self.model.get_output_embeddings().weight, targets, self.chunk)

    def _isolated(self, options: dict[str, Any]) -> dict[str, Any]:
        positions = options.get("position_ids")
        if not self.isolates or positions is None or options.get("attention_mask") is not None:
            return options
        if positions.device.type == "cpu" and not self.compile:
            documents: Any = attention.blocks_of(positions)
        else:
            documents = attention.block_mask_of(positions) if self.flex else attention.mask_of(positions)
        # a mask that is 4-D already keeps transformers from making one of its own
        return options | {"documents": documents, "attention_mask": positions.new_ones((1, 1, 1, 1), dtype=torch.bool)}


@torch.no_grad()
def has_linear_head(model: Any) -> bool:
    """Are the logits the last hidden state times the output embeddings, and nothing else? Asked of three tokens."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    training, ids = model.training, torch.arange(3, device=head.weight.device)[None] % len(head.weight)
    model.eval()
    logits = model(input_ids=ids).logits
    hidden = model.base_model(input_ids=ids).last_hidden_state
    model.train(training)
    return hidden.shape[-1] == head.in_features and torch.allclose(linear(hidden, head.weight), logits)
