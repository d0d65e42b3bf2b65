"""The tracks of the BabyLM challenge: how much text may be read, how often, and what counts as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from babylm_train.errors import InputError, arguments


def name_of(mark: int) -> str:
    """`chck_1M` for a million words; marks that are no whole million give all digits."""
    return f"chck_{mark // 10**6}M" if mark % 10**6 == 0 else f"chck_{mark}"


@arguments()
class Track:
    """A budget of words, by white space, as the training text has them after cleaning. None: no limit."""

    name: str
    corpus_words: Annotated[int, Field(ge=1)] | None  # of training text
    epochs: Annotated[int, Field(ge=1)] | None  # how often the training text may be seen
    milestones: list[Annotated[int, Field(ge=1)]]  # words seen at which the model is exported, ascending
    outside_words: Annotated[int, Field(ge=0)] | None  # of the text that other parts were made from; None: unknown

    def __post_init__(self) -> None:
        if self.milestones != sorted(set(self.milestones)):
            raise InputError(f"track.milestones must be ascending numbers of words, got {self.milestones}")

    def refuse(self, corpus_words: int, seen_words: int, updates: int, outside: Sequence[str]) -> None:
        """Raises InputError where a planned run breaks the track. outside: parts made from other text, `key=value`."""
        limited, extra = self.corpus_words is not None or self.epochs is not None, self.outside_words or 0
        if outside and limited and self.outside_words is None:
            raise InputError(
                f"track={self.name}: {outside[0]} was made from text outside the corpus: train it on the corpus, "
                "or give the words of that text as track.outside_words, to be counted"
            )
        if self.corpus_words is not None and corpus_words + extra > self.corpus_words:
            raise InputError(
                f"track={self.name} allows {self.corpus_words:,} words of text, this run has {corpus_words:,} and "
                f"{extra:,} outside: shorten it, as with data.max_words={max(self.corpus_words - extra, 0)}"
            )
        if self.epochs is not None and seen_words > self.epochs * corpus_words:
            fits = int(updates * self.epochs * corpus_words / seen_words)
            raise InputError(
                f"track={self.name} allows {self.epochs} epochs, {self.epochs * corpus_words:,} words seen, this run "
                f"would see {seen_words:,}: lower trainer.epochs, or take trainer.max_steps={fits:,} or a little less"
            )

    def warnings(self, seen_words: int) -> tuple[str, ...]:
        """What a planned run of `seen_words` leaves out."""
        missed = [name_of(mark) for mark in self.milestones if mark > seen_words]
        text = (
            f"{seen_words:,} words are seen: {len(missed)} milestones from {''.join(missed[:1])} on are never reached"
        )
        return (text,) if missed else ()
