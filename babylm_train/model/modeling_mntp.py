"""Decoders that were trained both ways (objective=hybrid), read as masked language models: copied beside their weights.

`AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)` gives one of these, in transformers 4.51 and 5.
Attention goes both ways, and the prediction of a token stands at the place before it (the `mntp` backend of the BabyLM
evaluation). babylm_train refuses a folder where this file is not, byte for byte, its own.
"""

import torch
from transformers import GPT2LMHeadModel, Qwen3ForCausalLM


class _BothWays:
    def forward(self, input_ids=None, attention_mask=None, **options):
        """Logits of shape (rows, length, vocabulary); attention_mask: 1 for tokens, 0 for padding, (rows, length)."""
        rows, length = input_ids.shape
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.view(rows, length)
        dtype = self.dtype  # type: ignore[attr-defined]
        hidden = (1.0 - real.to(dtype)) * torch.finfo(dtype).min
        mask = hidden[:, None, None, :].expand(rows, 1, length, length)

        def look_both_ways(_module, args, kwargs):  # GPT-2 of transformers 4 takes no mask of this shape but here
            return args, {**kwargs, "attention_mask": mask}

        hooks = [
            module.register_forward_pre_hook(look_both_ways, with_kwargs=True)
            for name, module in self.named_modules()  # type: ignore[attr-defined]
            if name.rpartition(".")[2] in ("attn", "self_attn")
        ]
        options = {"position_ids": (real.long().cumsum(1) - 1).clamp(min=0), **options, "use_cache": False}
        try:
            return super().forward(input_ids=input_ids, **options)  # type: ignore[misc]
        finally:
            for hook in hooks:
                hook.remove()


class GPT2ForMaskedLM(_BothWays, GPT2LMHeadModel):
    """GPT-2."""


class Qwen3ForMaskedLM(_BothWays, Qwen3ForCausalLM):
    """Qwen3."""
