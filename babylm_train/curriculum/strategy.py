"""Strategies: how difficult each document is. Higher scores are admitted later.

A strategy of your own: subclass Curriculum, give it `name` and `score`, keep its arguments as plain public attributes.
"""

import hashlib
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from babylm_train.curriculum.adaptive import moved
from babylm_train.curriculum.checks import check_scores, number, window
from babylm_train.curriculum.hindi import FIRST_WORD, WordStream, count_features, count_words, rules_digest
from babylm_train.errors import InputError

KEY = "curriculum.strategy"
HALF_LENGTH = 20  # words of a usual written Hindi sentence: there the length term of `morphological` is at its half


class Curriculum:
    """What every strategy shares. Subclasses give `name` and `score`."""

    name = ""
    ranks = True  # False: documents are only shuffled, never ranked
    adaptive = False  # True: the strategy moves a threshold of its own after each validation

    def __init__(self, reverse: bool = False) -> None:
        """
        Args:
            reverse: hardest first (the anti-curriculum control): scores are negated.
        """
        self.reverse = bool(reverse)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Difficulty of each document before `reverse`, shape (N,)."""
        raise NotImplementedError

    def compute_difficulty(self, documents: Sequence[str]) -> np.ndarray:
        """One finite float64 a document, shape (N,); higher is admitted later, so negated under `reverse`.

        Raises:
            InputError: a score is NaN or infinite; names the document by its index.
        """
        scores = check_scores(self.score(documents), len(documents))
        return 0.0 - scores if self.reverse else scores

    def sort_by_difficulty(self, texts: Sequence[str]) -> list[str]:
        """The texts, easiest first (hardest first under `reverse`); ties stay in input order."""
        return [texts[i] for i in np.argsort(self.compute_difficulty(texts), kind="stable")]

    @property
    def outside_text(self) -> str | None:
        """What was made from text outside the training split, as `key=value`; tracks count or refuse it."""
        return None

    @property
    def threshold(self) -> float | None:
        """The strategy's own share of the data in (0, 1], or None where only the schedule decides."""
        return None

    def upper_bound(self, progress: float) -> float:
        """The largest threshold of its own that is possible: 1.0, it has none."""
        return 1.0

    def update_difficulty_threshold(self, val_loss: float) -> float:
        """Only an adaptive strategy has a threshold to move.

        Raises:
            InputError: this one is not adaptive.
        """
        raise InputError(f"{KEY}: {self.name} has no threshold of its own; take curriculum/strategy=dynamic")

    def identity(self) -> dict[str, Any]:
        """Everything that changes the scores, JSON-able, as a cache key: class, arguments and the code of both."""
        # A class typed into a notebook has no file.
        file = getattr(sys.modules.get(type(self).__module__), "__file__", None)
        code = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        return {"class": type(self).__qualname__, "code": [code, rules_digest()], **self.arguments()}

    def arguments(self) -> dict[str, Any]:
        """The arguments that change the scores: the public attributes, unless a subclass says otherwise."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def state_dict(self) -> dict[str, Any]:
        """What changes while training, plain types only; empty here."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class NoCurriculum(Curriculum):
    """Document order is shuffled, no ranking. `reverse` changes nothing."""

    name = "none"
    ranks = False

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Zeros, shape (N,)."""
        return np.zeros(len(documents))


class LengthBasedCurriculum(Curriculum):
    """Words of the document, clipped to [min_length, max_length]."""

    name = "length"

    def __init__(self, min_length: int = 1, max_length: int | None = None, reverse: bool = False) -> None:
        """
        Args:
            min_length, max_length: words; below and above, lengths count as equal. None: no upper clip.

        Raises:
            InputError: min_length is negative, or above max_length.
        """
        super().__init__(reverse)
        number(f"{KEY}.min_length", min_length, 0)
        if max_length is not None:
            number(f"{KEY}.max_length", max_length, min_length)
        self.min_length = min_length
        self.max_length = max_length

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Words, float64 of shape (N,)."""
        return np.clip(count_words(documents).astype(np.float64), self.min_length, self.max_length)


class FrequencyBasedCurriculum(Curriculum):
    """Mean over a document's words of -log p(word), in nats.

    p has add-one smoothing: (count + 1) / (words + types), counted in the documents given, which must be the training
    split alone; or in a frequency list, with one more type for all that it does not hold.
    """

    name = "frequency"

    def __init__(self, frequency_list: str | None = None, reverse: bool = False) -> None:
        """
        Args:
            frequency_list: a UTF-8 file of lines `word<TAB>count`; None counts the documents.

        Raises:
            InputError: the list cannot be read or holds a bad line; names path:line.
        """
        super().__init__(reverse)
        self.frequency_list = frequency_list
        self._counts = None if frequency_list is None else _read_frequencies(Path(frequency_list))

    @property
    def outside_text(self) -> str | None:
        return None if self.frequency_list is None else f"{KEY}.frequency_list={self.frequency_list}"

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Mean surprisal of the words, float64 of shape (N,); 0 for a document of no words."""
        n = len(documents)
        stream = WordStream()
        pieces = [(b.document[b.items >= FIRST_WORD], b.items[b.items >= FIRST_WORD]) for b in stream.blocks(documents)]
        document = np.concatenate([p[0] for p in pieces]) if pieces else np.zeros(0, dtype=np.int32)
        word = np.concatenate([p[1] for p in pieces]) if pieces else np.zeros(0, dtype=np.int32)
        if self._counts is None:
            counts = np.bincount(word, minlength=len(stream.words))
            total, types = len(word), len(stream.words) - FIRST_WORD
        else:
            counts = np.array([self._counts.get(text, 0) for text in stream.words])
            total, types = sum(self._counts.values()), len(self._counts) + 1
        surprisal = -np.log((counts + 1) / max(total + types, 1))
        sums = np.bincount(document, weights=surprisal[word], minlength=n)
        return sums / np.maximum(np.bincount(document, minlength=n), 1)

    def arguments(self) -> dict[str, Any]:
        """The list by its content, not its path."""
        listed = None if self._counts is None else sorted(self._counts.items())
        digest = hashlib.sha256(repr(listed).encode()).hexdigest()
        return {"frequency_list": None if listed is None else digest, "reverse": self.reverse}


class MorphologicalComplexityCurriculum(Curriculum):
    """Density of Hindi case, verb and compound marks, and length.

    (case_weight * case + verb_weight * verb + compound_weight * compound) / words
        + length_weight * words / (words + 20)

    The length term rises from 0 to 1 and is at its half at 20 words, so that it is of the size of the densities for a
    sentence and nearly equal for all long documents. What a mark is: babylm_train/curriculum/hindi.py.
    """

    name = "morphological"

    def __init__(
        self,
        case_weight: float = 1.0,
        verb_weight: float = 1.5,
        compound_weight: float = 1.0,
        length_weight: float = 0.5,
        reverse: bool = False,
    ) -> None:
        """
        Raises:
            InputError: a weight is negative or no number; names its key.
        """
        super().__init__(reverse)
        self.case_weight = number(f"{KEY}.case_weight", case_weight, 0)
        self.verb_weight = number(f"{KEY}.verb_weight", verb_weight, 0)
        self.compound_weight = number(f"{KEY}.compound_weight", compound_weight, 0)
        self.length_weight = number(f"{KEY}.length_weight", length_weight, 0)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Weighted densities, float64 of shape (N,); 0 for a document of no words."""
        words, case, verb, compound = count_features(documents)
        marks = self.case_weight * case + self.verb_weight * verb + self.compound_weight * compound
        return marks / np.maximum(words, 1) + self.length_weight * words / (words + HALF_LENGTH)


class CombinedCurriculum(Curriculum):
    """Weighted mean of the ranks that morphological, length and frequency give, each with its default arguments.

    Ranks, not scores, because scores have different scales. Ties get their average rank; ranks are scaled to [0, 1].
    """

    name = "combined"

    def __init__(
        self, morphological: float = 0.5, length: float = 0.3, frequency: float = 0.2, reverse: bool = False
    ) -> None:
        """
        Args:
            morphological, length, frequency: weights, at least 0, not all 0; only their ratio counts.

        Raises:
            InputError: a weight is negative or no number, or all are 0; names the key.
        """
        super().__init__(reverse)
        self.morphological = number(f"{KEY}.morphological", morphological, 0)
        self.length = number(f"{KEY}.length", length, 0)
        self.frequency = number(f"{KEY}.frequency", frequency, 0)
        if self.morphological + self.length + self.frequency == 0:
            raise InputError(f"{KEY}.morphological, .length and .frequency must not all be 0")

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Weighted mean rank in [0, 1], float64 of shape (N,)."""
        members: list[tuple[float, Curriculum]] = [
            (self.morphological, MorphologicalComplexityCurriculum()),
            (self.length, LengthBasedCurriculum()),
            (self.frequency, FrequencyBasedCurriculum()),
        ]
        total = sum(weight for weight, _ in members)
        mean = np.zeros(len(documents))
        for weight, member in members:
            if weight:
                mean += weight / total * scaled_ranks(member.compute_difficulty(documents))
        return mean


class DynamicCurriculum(Curriculum):
    """Ranks as `base` does and moves a threshold of its own with the validation loss.

    After each validation: if the mean of the last half of `performance_window` losses is lower than that of the first
    half, the threshold rises by `adaptation_rate`, else it falls by as much, within [min_threshold, max_threshold]. The
    rule is the one of the schedule `performance`. The first validation moves nothing: one loss cannot be compared.
    """

    name = "dynamic"
    adaptive = True

    def __init__(
        self,
        base: Any = None,
        adaptation_rate: float = 0.1,
        performance_window: int = 4,
        min_threshold: float = 0.2,
        max_threshold: float = 1.0,
        initial_threshold: float | None = None,
        reverse: bool = False,
    ) -> None:
        """
        Args:
            base: the strategy that scores; None is CombinedCurriculum(). Its own `reverse` holds as well.
            adaptation_rate: what one validation moves, in (0, 1].
            performance_window: validations that are compared by halves, at least 2.
            min_threshold, max_threshold: shares of the data in (0, 1].
            initial_threshold: where it starts, between them; None is min_threshold.

        Raises:
            InputError: an argument is out of range; names its key.
        """
        super().__init__(reverse)
        self.base = CombinedCurriculum() if base is None else base
        if not self.base.ranks or self.base.adaptive:
            raise InputError(f"{KEY}.base must rank documents and not be adaptive itself, got {self.base.name}")
        self.adaptation_rate = number(f"{KEY}.adaptation_rate", adaptation_rate, 0, 1, above=True)
        self.performance_window = window(f"{KEY}.performance_window", performance_window)
        self.max_threshold = number(f"{KEY}.max_threshold", max_threshold, 0, 1, above=True)
        self.min_threshold = number(f"{KEY}.min_threshold", min_threshold, 0, self.max_threshold, above=True)
        start = self.min_threshold if initial_threshold is None else initial_threshold
        self._threshold = number(f"{KEY}.initial_threshold", start, self.min_threshold, self.max_threshold)
        self._losses: list[float] = []

    @property
    def outside_text(self) -> str | None:
        return self.base.outside_text

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """What `base` computes, shape (N,)."""
        return self.base.compute_difficulty(documents)

    @property
    def threshold(self) -> float:
        """Share of the data admitted now, in [min_threshold, max_threshold]."""
        return self._threshold

    def upper_bound(self, progress: float) -> float:
        """The largest threshold possible: how many validations there will be is not known, so max_threshold."""
        return self.max_threshold

    def update_difficulty_threshold(self, val_loss: float) -> float:
        """Takes in one validation loss, in nats; gives the threshold from now on."""
        self._losses.append(float(val_loss))
        self._threshold = moved(
            self._threshold,
            self._losses,
            window=self.performance_window,
            rate=self.adaptation_rate,
            low=self.min_threshold,
            high=self.max_threshold,
        )
        return self._threshold

    def arguments(self) -> dict[str, Any]:
        """Only what changes the scores: the threshold's arguments do not."""
        return {"base": self.base.identity(), "reverse": self.reverse}

    def state_dict(self) -> dict[str, Any]:
        """{"threshold": float, "history": validation losses so far}."""
        return {"threshold": self._threshold, "history": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._threshold = float(state["threshold"])
        self._losses = [float(loss) for loss in state["history"]]


class RandomCurriculum(Curriculum):
    """A seeded random score in [0, 1): the control arm that every curriculum claim needs."""

    name = "random"

    def __init__(self, seed: int = 0, reverse: bool = False) -> None:
        """
        Raises:
            InputError: the seed is no whole number of at least 0.
        """
        super().__init__(reverse)
        if number(f"{KEY}.seed", seed, 0) != int(seed):
            raise InputError(f"{KEY}.seed must be a whole number, got {seed!r}")
        self.seed = int(seed)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Uniform numbers by position, whatever the texts, float64 of shape (N,)."""
        return np.random.default_rng(self.seed).random(len(documents))


def scaled_ranks(scores: np.ndarray) -> np.ndarray:
    """Average ranks of `scores`, scaled so that the lowest possible is 0 and the highest 1; 0 for one score alone."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average = (last - counts + last - 1) / 2  # ranks from 0
    return average[inverse] / max(len(scores) - 1, 1)


def _read_frequencies(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{KEY}.frequency_list: cannot read {path}: {error.strerror or error}") from error
    for n, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8-sig" if n == 1 else "utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{n}: not UTF-8 at byte {error.start} of the line") from error
        if not line:
            continue
        word, _, count = line.partition("\t")
        if not word or not count.isdecimal():
            raise InputError(f"{path}:{n}: expected word<TAB>count, got {line[:60]!r}")
        # The form in which documents are split: NFC, no ZWJ or ZWNJ.
        word = unicodedata.normalize("NFC", word).replace("\u200c", "").replace("\u200d", "")
        counts[word] = counts.get(word, 0) + int(count)
    if not counts:
        raise InputError(f"{path}:1: the frequency list is empty")
    return counts
