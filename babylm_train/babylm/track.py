"""The tracks of the BabyLM challenge: how much text may be read, how often, and what counts as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from babylm_train.babylm.milestones import name_of
from babylm_train.errors import InputError


@dataclass(frozen=True)
class Track:
    """A budget of words, by white space, as the training text has them after cleaning.

    Args:
        name: of the track, for messages.
        corpus_words: of training text at most; None: no limit.
        epochs: times the words of the training text that may be seen at most; None: no limit.
        milestones: words seen at which the model is exported, ascending.
        outside_words: words of other text that a pretrained tokenizer or a frequency list was made from; they count as
            training text. None: unknown, so with limits such parts are refused.

    Raises:
        InputError: a limit is not positive, or the milestones do not ascend.
    """

    name: str
    corpus_words: int | None
    epochs: int | None
    milestones: list[int]
    outside_words: int | None

    def __post_init__(self) -> None:
        for key in ("corpus_words", "epochs"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"track.{key} must be at least 1 or null, got {value}")
        if self.outside_words is not None and self.outside_words < 0:
            raise InputError(f"track.outside_words must not be negative, got {self.outside_words}")
        if not all(isinstance(mark, int) and mark > 0 for mark in self.milestones) or self.milestones != sorted(
            set(self.milestones)
        ):
            raise InputError(f"track.milestones must be ascending numbers of words, got {self.milestones}")

    def refuse(self, corpus_words: int, seen_words: int, updates: int, outside: Sequence[str]) -> None:
        """Holds a planned run against the track.

        Args:
            corpus_words: of the training split. seen_words: in all, repetitions counted, in so many `updates`.
            outside: the parts of the run that were made from other text, as `key=value`.

        Raises:
            InputError: it breaks the track; with the figures.
        """
        limited = self.corpus_words is not None or self.epochs is not None
        if outside and limited and self.outside_words is None:
            raise InputError(
                f"track={self.name}: {outside[0]} was made from text outside the corpus: train it on the corpus, "
                "or give the words of that text as track.outside_words, to be counted"
            )
        words = corpus_words + (self.outside_words or 0)
        if self.corpus_words is not None and words > self.corpus_words:
            parts = (
                f" ({corpus_words:,} of training text, {self.outside_words:,} outside)" if self.outside_words else ""
            )
            raise InputError(
                f"track={self.name} allows {self.corpus_words:,} words of text, this run has {words:,}{parts}: "
                f"shorten it, as with data.max_words={max(self.corpus_words - (self.outside_words or 0), 0)}"
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
