"""What is predicted: from a batch to its summed loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from babylm_train.types import IGNORE, Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


class CausalObjective:
    """Next-token prediction: -log p(token | the tokens before it in its document), summed over the batch."""

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model is to see it; unchanged here."""
        return batch

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's valid targets: a float32 scalar.

        `attention_mask` must be None and `use_cache` False: only then do transformers' decoders read the restarts of
        position_ids as document boundaries.
        """
        from torch.nn.functional import cross_entropy

        options = {"position_ids": batch.position_ids, "attention_mask": None, "use_cache": False}
        if getattr(model, "linear_head", False):
            return model.summed_loss(batch.inputs, batch.targets, **options)  # type: ignore[operator]
        logits = model(input_ids=batch.inputs, **options).logits
        return cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
