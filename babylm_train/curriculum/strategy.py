"""Strategies: how difficult each document is. Higher scores are admitted later.

A strategy of your own: subclass Curriculum, give it `name` and `score`; its arguments are fields under the decorator
`arguments`, as below. Out of range they raise ValidationError, or InputError where two do not fit; both name them.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from babylm_train.curriculum import move_threshold
from babylm_train.errors import InputError, arguments, printable
from babylm_train.files import cached, digest

if TYPE_CHECKING:
    from babylm_train.data.corpus import Split

KEY = "curriculum.strategy"
MIN_MARKED, MIN_WORDS = 0.01, 100  # a text of so many words of which a smaller share has a mark is no Hindi
HALF_LENGTH = 20  # words of a usual written Hindi sentence: there the length term of `morphological` is at its half

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]  # of the training data


@arguments(frozen=False)
class Curriculum:
    """What every strategy shares. `reverse`: hardest first (the anti-curriculum control), scores are negated."""

    name: ClassVar[str] = ""
    ranks: ClassVar[bool] = True  # False: documents are only shuffled, never ranked
    adaptive: ClassVar[bool] = False  # True: it has a threshold of its own that moves, and its state, as `dynamic`

    reverse: bool = Field(default=False, kw_only=True)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Difficulty of each document before `reverse`, shape (N,)."""
        raise NotImplementedError

    def compute_difficulty(self, documents: Sequence[str]) -> np.ndarray:
        """One finite float64 a document, shape (N,); an InputError names the first document without one."""
        scores = np.asarray(self.score(documents), dtype=np.float64)
        if scores.shape != (len(documents),):
            raise InputError(f"{KEY} {self.name}: one score a document, {len(documents)}, got the shape {scores.shape}")
        for bad in np.flatnonzero(~np.isfinite(scores)):
            raise InputError(f"{KEY} {self.name}: document {bad} has the score {scores[bad]}, not a finite number")
        return 0.0 - scores if self.reverse else scores

    def sort_by_difficulty(self, documents: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """The documents, easiest first (hardest first under `reverse`), and their scores; ties stay in input order."""
        scores = self.compute_difficulty(documents)
        order = np.argsort(scores, kind="stable")
        return [documents[i] for i in order], scores[order]

    def update_difficulty_threshold(self, val_loss: float) -> float:
        """Only an adaptive strategy has a threshold to move: an InputError for any other."""
        raise InputError(f"{KEY}: {self.name} has no threshold of its own; take curriculum/strategy=dynamic")

    def identity(self) -> dict[str, Any]:
        """Everything that changes the scores, JSON-able, as a cache key: class, arguments and the code of both."""
        from babylm_train.curriculum.hindi import rules_digest

        # A class typed into a notebook has no file.
        file = getattr(sys.modules.get(type(self).__module__), "__file__", None)
        code = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        public = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {"class": type(self).__qualname__, "code": [code, rules_digest()], **public}


def create_curriculum_strategy(name: str, **options: Any) -> Curriculum:
    """The strategy of that name (none, length, frequency, ..., or of a class of your own), `options` its arguments."""
    known = {kind.name: kind for kind in Curriculum.__subclasses__()}
    if name not in known:
        raise InputError(f"there is no curriculum strategy {name}; there are {', '.join(known)}")
    return known[name](**options)


def score_documents(strategy: Curriculum, split: Split, cache_dir: str | Path) -> np.ndarray:
    """The difficulty of a split's documents, shape (N,), computed once: cached under (corpus, strategy)."""
    if not strategy.ranks:
        return np.zeros(len(split))

    def build(folder: Path) -> None:
        np.save(folder / "scores.npy", strategy.compute_difficulty(split))

    folder = cached(Path(cache_dir), "scores", digest([split.fingerprint, strategy.identity()]), build)
    scores: np.ndarray = np.load(folder / "scores.npy", allow_pickle=False)
    return scores


@arguments(frozen=False)
class NoCurriculum(Curriculum):
    """Document order is shuffled, no ranking; all scores are 0. `reverse` changes nothing."""

    name = "none"
    ranks = False

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return np.zeros(len(documents))


@arguments(frozen=False)
class LengthBasedCurriculum(Curriculum):
    """Words of the document, clipped to [min_length, max_length]: beyond, lengths count as equal. None: no clip."""

    name = "length"

    min_length: Annotated[int, Field(ge=0)] = 1
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < self.min_length:
            raise InputError(f"{KEY}.max_length must be at least min_length = {self.min_length}, got {self.max_length}")

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum.hindi import count_words

        return np.clip(count_words(documents).astype(np.float64), self.min_length, self.max_length)


@arguments(frozen=False)
class FrequencyBasedCurriculum(Curriculum):
    """Mean over a document's words of -log p(word), in nats; 0 where it has none.

    p has add-one smoothing: (count + 1) / (words + types), counted in the documents given, which must be the training
    split alone; or in frequency_list, a UTF-8 file of lines `word<TAB>count`, with one more type for all that it does
    not hold. A bad line is an InputError that names path:line.
    """

    name = "frequency"

    frequency_list: str | None = None

    def __post_init__(self) -> None:
        self._counts = None if self.frequency_list is None else _read_frequencies(Path(self.frequency_list))

    @property
    def outside_text(self) -> str | None:
        """What was made from text outside the training split, as `key=value`; tracks count or refuse it."""
        return None if self.frequency_list is None else f"{KEY}.frequency_list={self.frequency_list}"

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum.hindi import split_words

        ids: dict[str, int] = {}
        numbers, sizes = array("i"), []
        for text in documents:
            words = split_words(text)
            numbers.extend(ids.setdefault(word, len(ids)) for word in words)
            sizes.append(len(words))
        word = np.array(numbers, dtype=np.int32)
        if self._counts is None:
            counts = np.bincount(word, minlength=len(ids))
            total, types = len(word), len(ids)
        else:
            counts = np.array([self._counts.get(text, 0) for text in ids])
            total, types = sum(self._counts.values()), len(self._counts) + 1
        surprisal = -np.log((counts + 1) / max(total + types, 1))
        document = np.repeat(np.arange(len(documents)), sizes)
        return np.bincount(document, weights=surprisal[word], minlength=len(documents)) / np.maximum(sizes, 1)

    def identity(self) -> dict[str, Any]:
        """The list by its content, not its path."""
        return super().identity() | {"frequency_list": self._counts}


@arguments(frozen=False)
class MorphologicalComplexityCurriculum(Curriculum):
    """(case_weight * case + verb_weight * verb + compound_weight * compound) / words
    + length_weight * words / (words + 20), case, verb and compound being Hindi marks as hindi.py counts them.

    The length term rises from 0 to 1 and is at its half at 20 words, so that it is of the size of the densities for a
    sentence and nearly equal for all long documents.
    """

    name = "morphological"

    case_weight: Weight = 1.0
    verb_weight: Weight = 1.5
    compound_weight: Weight = 1.0
    length_weight: Weight = 0.5

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum.hindi import count_features

        words, case, verb, compound = count_features(documents)
        marked, total = int((case + verb + compound).sum()), int(words.sum())
        if total >= MIN_WORDS and marked < MIN_MARKED * total:
            raise InputError(
                f"{KEY}: morphological reads Hindi, of these {total:,} words {marked:,} carry a mark; "
                "take length or frequency, in combined morphological=0"
            )
        marks = self.case_weight * case + self.verb_weight * verb + self.compound_weight * compound
        return marks / np.maximum(words, 1) + self.length_weight * words / (words + HALF_LENGTH)


@arguments(frozen=False)
class CombinedCurriculum(Curriculum):
    """Mean of the ranks that morphological, length and frequency give, by weights of which only the ratio counts.

    Ranks, not scores, because scores have different scales. Ties get their average rank; ranks are scaled to [0, 1].
    """

    name = "combined"

    morphological: Weight = 0.5
    length: Weight = 0.3
    frequency: Weight = 0.2

    def __post_init__(self) -> None:
        if self.morphological + self.length + self.frequency == 0:
            raise InputError(f"{KEY}.morphological, .length and .frequency must not all be 0")

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from scipy.stats import rankdata

        members: list[tuple[float, Curriculum]] = [
            (self.morphological, MorphologicalComplexityCurriculum()),
            (self.length, LengthBasedCurriculum()),
            (self.frequency, FrequencyBasedCurriculum()),
        ]
        total = sum(weight for weight, _ in members)
        mean = np.zeros(len(documents))
        for weight, member in members:
            if weight:
                ranks = rankdata(member.compute_difficulty(documents)) - 1
                mean += weight / total * (ranks / max(len(documents) - 1, 1))
        return mean


@arguments(frozen=False)
class DynamicCurriculum(Curriculum):
    """Ranks as `base` does and moves a threshold of its own with the validation loss, by the rule of `performance`.

    After each validation: if the mean of the last half of `performance_window` losses is lower than that of the first
    half, the threshold rises by `adaptation_rate`, else it falls by as much, within [min_threshold, max_threshold]. The
    first validation moves nothing: one loss cannot be compared. It starts at `initial_threshold` (None: the lowest).
    """

    name = "dynamic"
    adaptive = True

    base: Curriculum = Field(default_factory=CombinedCurriculum)
    adaptation_rate: Share = 0.1
    performance_window: Annotated[int, Field(ge=2)] = 5
    min_threshold: Share = 0.1
    max_threshold: Share = 1.0
    initial_threshold: float | None = None

    def __post_init__(self) -> None:
        low, high = self.min_threshold, self.max_threshold
        start = low if self.initial_threshold is None else self.initial_threshold
        if not self.base.ranks or self.base.adaptive:
            raise InputError(f"{KEY}.base must rank documents and not be adaptive itself, got {self.base.name}")
        if low > high:
            raise InputError(f"{KEY}.min_threshold must not exceed max_threshold, got {low} > {high}")
        if not low <= start <= high:
            raise InputError(f"{KEY}.initial_threshold must be in [{low}, {high}], got {start}")
        self._threshold, self._losses = start, list[float]()

    @property
    def outside_text(self) -> str | None:
        """The base's."""
        return getattr(self.base, "outside_text", None)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return self.base.compute_difficulty(documents)

    @property
    def threshold(self) -> float:
        """Share of the data admitted now, in [min_threshold, max_threshold]."""
        return self._threshold

    def update_difficulty_threshold(self, val_loss: float) -> float:
        """Takes in one validation loss, in nats; gives the threshold from now on."""
        self._losses.append(float(val_loss))
        window, rate, low, high = self.performance_window, self.adaptation_rate, self.min_threshold, self.max_threshold
        self._threshold = move_threshold(self._threshold, self._losses, window=window, rate=rate, low=low, high=high)
        return self._threshold

    def identity(self) -> dict[str, Any]:
        """Only what changes the scores: the threshold's arguments do not."""
        return {"base": self.base.identity(), "reverse": self.reverse}

    def state_dict(self) -> dict[str, Any]:
        """{"threshold": float, "history": validation losses so far}."""
        return {"threshold": self._threshold, "history": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._threshold = float(state["threshold"])
        self._losses = [float(loss) for loss in state["history"]]


@arguments(frozen=False)
class RandomCurriculum(Curriculum):
    """A seeded random score in [0, 1): the control arm that every curriculum claim needs."""

    name = "random"

    seed: Annotated[int, Field(ge=0)] = 0

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(documents))


def _read_frequencies(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    if not path.is_file():
        raise InputError(f"{KEY}.frequency_list: {path} is no file")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{KEY}.frequency_list: cannot read {path}: {error.strerror}") from error
    for n, raw in enumerate(lines, start=1):
        word, _, count = raw.decode("utf-8-sig", "replace").rstrip("\r").partition("\t")
        if raw.strip() and not (word and count.isdecimal() and "\ufffd" not in word):
            raise InputError(f"{path}:{n}: expected word<TAB>count in UTF-8, got {printable(raw)[:60]}")
        if raw.strip():
            # The form in which documents are split: NFC, no ZWJ or ZWNJ.
            word = unicodedata.normalize("NFC", word).replace("\u200c", "").replace("\u200d", "")
            counts[word] = counts.get(word, 0) + int(count)
    if not counts:
        raise InputError(f"{path}: the frequency list is empty")
    return counts
