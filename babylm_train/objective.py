"""What is predicted: from a batch to its summed loss.

Which tokens of a row are hidden is a pure function of (seed, epoch, row): batch size and resume change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from babylm_train.errors import InputError, arguments
from babylm_train.state import IGNORE, Batch

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MASKING, REPLACING, EVALUATION = 0x3A5C, 0x5B2D, 0xE7A1  # keep these draws apart from other uses of the seed
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Objective:
    """What the trainer asks of an objective.

    likelihood: `causal`, or `pseudo` where the validation loss is that of hidden tokens. encoder: trains encoders, not
    decoders. backends: how the BabyLM evaluation can read the model (causal, mlm, mntp). draws: how often an update has
    its rows run through the model.
    """

    likelihood: ClassVar[str] = "causal"
    encoder: ClassVar[bool] = False
    backends: ClassVar[tuple[str, ...]] = ("causal",)
    draws: ClassVar[int] = 1

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Takes what it needs of the tokenizer; nothing here."""
        return self

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the model is to see it in training; unchanged here."""
        return batch

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The batches to add up for an exact evaluation; only this one here."""
        yield batch

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss over the batch's targets, in nats: a float32 scalar."""
        raise NotImplementedError


class CausalObjective(Objective):
    """Next-token prediction: -log p(token | the tokens before it in its document), summed over the batch."""

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's valid targets: a float32 scalar.

        `attention_mask` must be None and `use_cache` False: only then do transformers' decoders read the restarts of
        position_ids as document boundaries.
        """
        options = {"position_ids": batch.position_ids, "attention_mask": None, "use_cache": False}
        if getattr(model, "linear_head", False):
            return model.sum_loss(batch.inputs, batch.targets, **options)
        return _sum_cross_entropy(model(input_ids=batch.inputs, **options).logits, batch.targets)


@arguments()
class RDropObjective(CausalObjective):
    """Next-token prediction in which two draws of dropout are to agree (R-Drop, Liang et al. 2021): twice the work.

    Args:
        agreement: weight of how far they differ, against the mean of their losses.
    """

    draws: ClassVar[int] = 2

    agreement: Annotated[float, Field(gt=0)]

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's valid targets, in evaluation of the model alone: a float32 scalar."""
        import torch

        if not torch.is_grad_enabled():
            return super().__call__(model, batch)
        options = {"position_ids": batch.position_ids, "attention_mask": None, "use_cache": False}
        return model.sum_loss(batch.inputs, batch.targets, agreement=self.agreement, **options)


@arguments(frozen=False)
class ReplacedObjective(CausalObjective):
    """Next-token prediction of which training sees some inputs replaced, which takes longer to learn by heart.

    Args:
        replaced_share: of a row's inputs that training replaces by other tokens, at first; it falls linearly to none at
            the end of the budget. What is to be predicted stays.
        seed: of the draws, with the epoch and the row.
    """

    replaced_share: Annotated[float, Field(ge=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Takes the ids that may stand in for a token."""
        self.mark, self.others = int(tokenizer.eos_token_id), list_words(tokenizer)
        return self

    def prepare(self, batch: Batch) -> Batch:
        """The batch with some inputs replaced."""
        import torch

        inputs, share = batch.inputs.numpy().copy(), self.replaced_share * (1 - batch.progress)
        for row, ids in enumerate(inputs):
            rng = np.random.default_rng([self.seed, REPLACING, batch.epoch, batch.first_row + row])
            chosen = (rng.random(len(ids)) < share) & (ids != self.mark)
            ids[chosen] = self.others[rng.integers(0, len(self.others), len(ids))][chosen]
        return replace(batch, inputs=torch.from_numpy(inputs))


@arguments(frozen=False)
class MaskedObjective(Objective):
    """Masked tokens from both sides of their document: -log p(token | the document with some tokens hidden), summed.

    Args:
        start_rate, end_rate: share of the tokens that is hidden, linear in the share of the budget that is spent.
        mask_share, random_share: of the hidden tokens become the mask, or another token; the rest stays as it is.
        seed: of the draws, with the epoch and the row.
        evaluation_passes: passes over an evaluation text; each hides one of so many parts of it, so every token is
            predicted once. The perplexity of that is a pseudo-perplexity: no causal model's compares with it.
    """

    likelihood: ClassVar[str] = "pseudo"
    encoder: ClassVar[bool] = True
    backends: ClassVar[tuple[str, ...]] = ("mlm",)

    start_rate: Rate
    end_rate: Rate
    mask_share: Share
    random_share: Share
    seed: Annotated[int, Field(ge=0)]
    evaluation_passes: Annotated[int, Field(ge=2)] = 2

    @model_validator(mode="after")
    def check_shares(self) -> Self:
        """Do the shares leave room for one another? Raises InputError."""
        if self.mask_share + self.random_share > 1:
            raise InputError("objective.mask_share and objective.random_share must add up to at most 1")
        return self

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Takes the mask and the ids that may stand in for a token.

        Raises:
            InputError: the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which this objective hides tokens with")
        self.mark, self.mask = int(tokenizer.eos_token_id), int(tokenizer.mask_token_id)
        self.others = list_words(tokenizer)
        return self

    def rate(self, progress: float) -> float:
        """Share of the tokens that is hidden at `progress` in [0, 1]."""
        return self.start_rate + (self.end_rate - self.start_rate) * progress

    def prepare(self, batch: Batch) -> Batch:
        """The batch with tokens hidden; its targets are the hidden tokens, at their own places."""
        hidden, chosen = self.hide(batch)
        return _predict(batch, hidden, self.targets(batch, chosen))

    def hide(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The ids as the model is to see them, and which were chosen (bool), both of shape (rows, length).

        A token is chosen where its draw is below the rate, so a higher rate chooses the same tokens and more; of a row
        with candidates at least one is chosen. What becomes of it: Devlin et al. 2019, section 3.1.
        """
        candidates, rate = self.candidates(batch), self.rate(batch.progress)
        hidden, chosen = batch.inputs.numpy().copy(), np.zeros_like(candidates)
        for row, (ids, may) in enumerate(zip(hidden, candidates, strict=True)):
            rng = np.random.default_rng([self.seed, MASKING, batch.epoch, batch.first_row + row])
            draw, action = np.where(may, rng.random(len(ids)), np.inf), rng.random(len(ids))
            replacement = self.others[rng.integers(0, len(self.others), len(ids))]
            chosen[row] = draw < rate
            if may.any():
                chosen[row, draw.argmin()] = True
            masked = chosen[row] & (action < self.mask_share)
            swapped = chosen[row] & ~masked & (action < self.mask_share + self.random_share)
            hidden[row] = np.where(masked, self.mask, np.where(swapped, replacement, ids))
        return hidden, chosen

    def evaluation(self, batch: Batch) -> Iterator[Batch]:
        """The batches to add up for an exact evaluation: every token hidden once, by the mask."""
        inputs = batch.inputs.numpy()
        for chosen in split_in_turns(self.candidates(batch), self.evaluation_passes, batch.first_row):
            yield _predict(batch, np.where(chosen, self.mask, inputs), self.targets(batch, chosen))

    def candidates(self, batch: Batch) -> np.ndarray:
        """Which inputs may be hidden: neither marks nor filling. Bool, shape (rows, length)."""
        return ((batch.inputs != self.mark) & (batch.targets != IGNORE)).numpy()

    def targets(self, batch: Batch, chosen: np.ndarray) -> np.ndarray:
        """What is predicted where, of the chosen tokens: each at its own place. Int64, shape (rows, length)."""
        return np.where(chosen, batch.inputs.numpy(), IGNORE)

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss in nats over the targets, each document read both ways: a float32 scalar."""
        document = (batch.position_ids == 0).cumsum(1)
        seen = document[:, None, :, None] == document[:, None, None, :]  # (rows, 1, length, length)
        options = {"position_ids": batch.position_ids, "attention_mask": seen, "use_cache": False}
        from babylm_train.model.forward import compute_head_at

        if batch.places is None or getattr(model, "compile", False) is True:
            return _sum_cross_entropy(model(input_ids=batch.inputs, **options).logits, batch.targets)
        with compute_head_at(model.get_output_embeddings(), batch.places):
            logits = model(input_ids=batch.inputs, **options).logits
        return _sum_cross_entropy(logits, batch.targets.flatten()[batch.places])


@arguments(frozen=False)
class HybridObjective(MaskedObjective):
    """Causal and masked updates in turn, for a decoder that is then read both ways (GPT-BERT, Charpentier and Samuel).

    In a masked update attention goes both ways and the hidden token is predicted from the place before it, where a
    causal update predicts it too: one head serves both, as the `mntp` backend of the BabyLM evaluation expects.
    Evaluation is causal.

    Args:
        masked_share: of the updates, spread evenly; update u is masked if floor((u + 1) share) > floor(u share).
        start_rate, end_rate, mask_share, random_share, seed: as MaskedObjective.
    """

    likelihood: ClassVar[str] = "causal"
    encoder: ClassVar[bool] = False
    backends: ClassVar[tuple[str, ...]] = ("causal", "mntp")

    masked_share: Rate = Field(kw_only=True)

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

    def targets(self, batch: Batch, chosen: np.ndarray) -> np.ndarray:
        """A chosen token is the target of the place before it. Int64, shape (rows, length)."""
        shifted = np.full(chosen.shape, IGNORE)
        shifted[:, :-1] = super().targets(batch, chosen)[:, 1:]
        return shifted

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's targets: a float32 scalar."""
        return super().__call__(model, batch) if batch.both_ways else CausalObjective()(model, batch)


def list_words(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The ids that stand for text: all but the special ones."""
    return np.setdiff1d(np.arange(len(tokenizer)), np.array(tokenizer.all_special_ids))


def split_in_turns(candidates: np.ndarray, passes: int, first_row: int) -> Iterator[np.ndarray]:
    """`passes` masks (bool, shape (rows, length)) that choose every candidate exactly once, the same for every run."""
    rows, length = candidates.shape
    generators = (np.random.default_rng([EVALUATION, first_row + row]) for row in range(rows))
    group = np.stack([rng.permutation(length) % passes for rng in generators])
    for turn in range(passes):
        yield candidates & (group == turn)


def _predict(batch: Batch, inputs: np.ndarray, targets: np.ndarray) -> Batch:
    """`batch` read both ways, with these inputs and targets."""
    import torch

    places = np.flatnonzero(targets != IGNORE)
    values = {"inputs": inputs, "targets": targets, "places": places}
    tensors: Any = {name: torch.from_numpy(array) for name, array in values.items()}
    return replace(batch, **tensors, tokens=len(places), both_ways=True)


def _sum_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
