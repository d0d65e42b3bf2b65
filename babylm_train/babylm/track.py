"""The tracks of the BabyLM challenge: how much text may be read, how often, and what counts as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from babylm_train.errors import InputError, arguments


def name_of(mark: int) -> str:
    """`chck_1M` for a million words; marks that are no whole million give all digits."""
    return f"chck_{mark // 10**6}M" if mark % 10**6 == 0 else f"chck_{mark}"


@arguments()
class Track:
    """A budget of words, by white space, as the training text has them after cleaning.

    Args:
        name: of the track, for messages.
        corpus_words: of training text at most; None: no limit.
        epochs: times the words of the training text that may be seen at most; None: no limit.
        milestones: words seen at which the model is exported, ascending.
        outside_words: words of other text that a pretrained tokenizer or a frequency list was made from; they count as
            training text. None: unknown, so with limits such parts are refused.
    """

    name: str
    corpus_words: Annotated[int, Field(ge=1)] | None
    epochs: Annotated[int, Field(ge=1)] | None
    milestones: list[Annotated[int, Field(ge=1)]]
    outside_words: Annotated[int, Field(ge=0)] | None

    @model_validator(mode="after")
    def _check_order(self) -> Track:
        if self.milestones != sorted(set(self.milestones)):
            raise InputError(f"track.milestones must be ascending numbers of words, got {self.milestones}")
        return self

    def refuse(self, corpus_words: int, seen_words: int, updates: int, outside: Sequence[str]) -> None:
        """Holds a planned run against the track.

        Args:
            corpus_words: of the training split. seen_words: in all, repetitions counted, in so many `updates`.
            outside: the parts of the run that were made from other text, as `key=value`.

        Raises:
            InputError: it breaks the track; with the figures.
        """
        limited, extra = self.corpus_words is not None or self.epochs is not None, self.outside_words or 0
        if outside and limited and self.outside_words is None:
            raise InputError(
                f"track={self.name}: {outside[0]} was made from text outside the corpus: train it on the corpus, "
                "or give the words of that text as track.outside_words, to be counted"
            )
        if self.corpus_words is not None and corpus_words + extra > self.corpus_words:
            parts = f" ({corpus_words:,} of training text, {extra:,} outside)" if extra else ""
            raise InputError(
                f"track={self.name} allows {self.corpus_words:,} words of text, this run has {corpus_words + extra:,}"
                f"{parts}: shorten it, as with data.max_words={max(self.corpus_words - extra, 0)}"
            )
        if self.epochs is not None and seen_words > self.epochs * corpus_words:
            fits = int(updates * self.epochs * corpus_words / seen_words)
            raise InputError(
                f"track={self.name} allows {self.epochs} epochs, {self.epochs * corpus_words:,} words seen, this run "
                f"would see {seen_words:,} ({seen_words / corpus_words:.2f} x {corpus_words:,}): lower trainer.epochs, "
                f"or take trainer.max_steps={fits:,} or a little less, for all arms of a comparison"
            )

    def warnings(self, seen_words: int) -> tuple[str, ...]:
        """What a planned run of `seen_words` leaves out."""
        missed = [name_of(mark) for mark in self.milestones if mark > seen_words]
        if not missed:
            return ()
        return (f"{seen_words:,} words are seen: {len(missed)} milestones from {missed[0]} on are never reached",)
