"""What is predicted: from a batch to its summed loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from babylm_train.errors import InputError
from babylm_train.masking import Corruption, corrupt, in_turn
from babylm_train.state import IGNORE, Batch

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


class CausalObjective:
    """Next-token prediction: -log p(token | the tokens before it in its document), summed over the batch."""

    likelihood = "causal"
    encoder = False
    backends: tuple[str, ...] = ("causal",)

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Nothing of the tokenizer is needed here."""
        return self

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model is to see it; unchanged here."""
        return batch

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The batches to add up for an exact evaluation; only this one here."""
        yield batch

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


class MaskedObjective:
    """Masked tokens from both sides of their document: -log p(token | the document with some tokens hidden), summed.

    Args:
        start_rate, end_rate: share of the tokens that is hidden, linear in the share of the budget that is spent.
        mask_share, random_share: of the hidden tokens become the mask, or another token; the rest stays as it is.
        evaluation_passes: passes over an evaluation text; each hides one of so many parts of it, so every token is
            predicted once. The perplexity of that is a pseudo-perplexity: no causal model's compares with it.
        seed: of the draws, with the epoch and the row.

    Raises:
        InputError: a value is out of range.
    """

    likelihood = "pseudo"
    encoder = True
    backends: tuple[str, ...] = ("mlm",)

    def __init__(
        self,
        start_rate: float,
        end_rate: float,
        mask_share: float,
        random_share: float,
        evaluation_passes: int,
        seed: int,
    ) -> None:
        for name, rate in (("start_rate", start_rate), ("end_rate", end_rate)):
            if not 0 < rate < 1:
                raise InputError(f"objective.{name} must be in (0, 1), got {rate}")
        if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
            raise InputError(
                f"objective.mask_share and objective.random_share must not be negative and add up to at most 1, got "
                f"{mask_share} and {random_share}"
            )
        if evaluation_passes < 2:
            raise InputError(f"objective.evaluation_passes must be at least 2, got {evaluation_passes}")
        if seed < 0:
            raise InputError(f"objective.seed must not be negative, got {seed}")
        self.start_rate, self.end_rate, self.seed = start_rate, end_rate, seed
        self.mask_share, self.random_share, self.passes = mask_share, random_share, evaluation_passes

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Takes the mask and the ids that may stand in for a token.

        Raises:
            InputError: the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which this objective hides tokens with")
        self.mark = int(tokenizer.eos_token_id)
        others = np.setdiff1d(np.arange(len(tokenizer)), np.array(tokenizer.all_special_ids))
        self.rule = Corruption(int(tokenizer.mask_token_id), others, self.mask_share, self.random_share)
        return self

    def rate(self, progress: float) -> float:
        """Share of the tokens that is hidden at `progress` in [0, 1]."""
        return self.start_rate + (self.end_rate - self.start_rate) * progress

    def prepare(self, batch: Batch) -> Batch:
        """The batch with tokens hidden; its targets are the hidden tokens, at their own places."""
        inputs = batch.inputs.numpy()
        draws = {"seed": self.seed, "epoch": batch.epoch, "first_row": batch.first_row}
        hidden, chosen = corrupt(inputs, self.candidates(batch), self.rate(batch.progress), self.rule, **draws)
        return self.hidden(batch, hidden, chosen)

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The batches to add up for an exact evaluation: every token hidden once, by the mask."""
        inputs = batch.inputs.numpy()
        for chosen in in_turn(self.candidates(batch), self.passes, batch.first_row):
            yield self.hidden(batch, np.where(chosen, self.rule.mask, inputs), chosen)

    def candidates(self, batch: Batch) -> np.ndarray:
        """Which inputs may be hidden: neither marks nor filling. Bool, shape (rows, length)."""
        return ((batch.inputs != self.mark) & (batch.targets != IGNORE)).numpy()

    def hidden(self, batch: Batch, inputs: np.ndarray, chosen: np.ndarray) -> Batch:
        """`batch` as the model is to see it, predicting the tokens that were chosen."""
        targets = np.where(chosen, batch.inputs.numpy(), IGNORE)
        return _predicting(batch, inputs, targets)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss in nats over the hidden tokens: a float32 scalar."""
        return _both_ways(model, batch)


class HybridObjective(MaskedObjective):
    """Causal and masked updates in turn, for a decoder that is then read both ways (GPT-BERT, Charpentier and Samuel).

    In a masked update attention goes both ways and the hidden token is predicted from the place before it, where a
    causal update predicts it too: one head serves both, as the `mntp` backend of the BabyLM evaluation expects.
    Evaluation is causal.

    Args:
        masked_share: of the updates, spread evenly; update u is masked if floor((u + 1) share) > floor(u share).
        start_rate, end_rate, mask_share, random_share, seed: as MaskedObjective.

    Raises:
        InputError: a value is out of range.
    """

    likelihood = "causal"
    encoder = False
    backends = ("causal", "mntp")

    def __init__(
        self,
        masked_share: float,
        start_rate: float,
        end_rate: float,
        mask_share: float,
        random_share: float,
        seed: int,
    ) -> None:
        if not 0 < masked_share < 1:
            raise InputError(f"objective.masked_share must be in (0, 1), got {masked_share}")
        super().__init__(start_rate, end_rate, mask_share, random_share, 2, seed)
        self.masked_share, self.causal = masked_share, CausalObjective()

    def prepare(self, batch: Batch) -> Batch:
        """The batch with tokens hidden in a masked update, unchanged in a causal one."""
        share = self.masked_share
        return super().prepare(batch) if int((batch.update + 1) * share) > int(batch.update * share) else batch

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The causal batch."""
        yield batch

    def candidates(self, batch: Batch) -> np.ndarray:
        """Which inputs may be hidden: those with a place before them in their document. Bool, shape (rows, length)."""
        may = (batch.position_ids > 0).numpy()
        may[:, 0] = False
        return may

    def hidden(self, batch: Batch, inputs: np.ndarray, chosen: np.ndarray) -> Batch:
        """`batch` as the model is to see it; a chosen token is the target of the place before it."""
        targets = np.full_like(inputs, IGNORE)
        targets[:, :-1] = np.where(chosen, batch.inputs.numpy(), IGNORE)[:, 1:]
        return _predicting(batch, inputs, targets)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's targets: a float32 scalar."""
        return _both_ways(model, batch) if batch.both_ways else self.causal(model, batch)


def _predicting(batch: Batch, inputs: np.ndarray, targets: np.ndarray) -> Batch:
    import torch

    tokens = int((targets != IGNORE).sum())
    return replace(
        batch, inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), tokens=tokens, both_ways=True
    )


def _both_ways(model: nn.Module, batch: Batch) -> Tensor:
    from torch.nn.functional import cross_entropy

    document = (batch.position_ids == 0).cumsum(1)
    seen = document[:, None, :, None] == document[:, None, None, :]  # (rows, 1, length, length)
    logits = model(input_ids=batch.inputs, position_ids=batch.position_ids, attention_mask=seen, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
