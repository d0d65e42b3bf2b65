"""Decoders that were trained both ways (objective=hybrid), read as masked language models: copied beside their weights.

`AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)` gives one of these. Attention goes both ways, and
the prediction of a token stands at the place before it (the `mntp` backend of the BabyLM evaluation).
"""

import torch
from transformers import GPT2LMHeadModel, Qwen3ForCausalLM


class _BothWays:
    def forward(self, input_ids=None, attention_mask=None, **options):
        """Logits of shape (rows, length, vocabulary); attention_mask: 1 for tokens, 0 for padding, (rows, length)."""
        rows, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones(rows, length, device=input_ids.device)
        if attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :].bool().expand(rows, 1, length, length)
        options["use_cache"] = False
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)  # type: ignore[misc]


class GPT2ForMaskedLM(_BothWays, GPT2LMHeadModel):
    """GPT-2."""


class Qwen3ForMaskedLM(_BothWays, Qwen3ForCausalLM):
    """Qwen3."""
