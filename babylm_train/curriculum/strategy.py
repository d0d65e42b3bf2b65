"""Strategies: how difficult each document is. Higher scores are admitted later. CONTRIBUTING.md adds one."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from babylm_train.curriculum import follow_losses
from babylm_train.errors import InputError, arguments
from babylm_train.files import cached, digest, file_digest

if TYPE_CHECKING:
    from babylm_train.data.corpus import Split

KEY = "curriculum.strategy"
RULES = Path(__file__).with_name("hindi.py"), Path(__file__).with_name("hindi.tsv")
MIN_MARKED, MIN_WORDS = 0.01, 100  # a text of so many words of which a smaller share has a mark is no Hindi
HALF_LENGTH = 20  # words of a usual sentence: there the length term is at its half, of the size of the densities

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]  # of the training data


@arguments(frozen=False)
class Curriculum:
    """What every strategy shares. Arguments of a subclass are its fields, under the decorator `arguments`."""

    name: ClassVar[str] = ""
    ranks: ClassVar[bool] = True  # False: documents are only shuffled, never ranked
    adaptive: ClassVar[bool] = False  # True: it has a threshold of its own that moves, as `dynamic`

    reverse: bool = Field(default=False, kw_only=True)  # hardest first (the anti-curriculum control)

    def score(self, documents: Sequence[str]) -> np.ndarray:
        """Difficulty of each document before `reverse`, shape (N,)."""
        raise NotImplementedError

    def compute_difficulty(self, documents: Sequence[str]) -> np.ndarray:
        """Difficulty of each document, float64 of shape (N,)."""
        scores = np.asarray(self.score(documents), dtype=np.float64)
        return 0.0 - scores if self.reverse else scores

    def sort_by_difficulty(self, documents: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """The documents, easiest first (hardest first under `reverse`), and their scores; ties stay in input order."""
        scores = self.compute_difficulty(documents)
        order = np.argsort(scores, kind="stable")
        return [documents[i] for i in order], scores[order]

    def identity(self) -> dict[str, Any]:
        """Everything that changes the scores, JSON-able, as a cache key: class, arguments and the code of both."""
        own = getattr(sys.modules.get(type(self).__module__), "__file__", None)  # none in a notebook
        code = [file_digest(Path(file)) for file in (*RULES, own) if file]
        public = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {"class": type(self).__qualname__, "code": code, **public}


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
    key = digest([split.fingerprint, strategy.identity()])
    folder = cached(
        Path(cache_dir), "scores", key, lambda aside: np.save(aside / "scores.npy", strategy.compute_difficulty(split))
    )
    return np.load(folder / "scores.npy", allow_pickle=False)


@arguments(frozen=False)
class NoCurriculum(Curriculum):
    """Documents are shuffled, none is ranked."""

    name = "none"
    ranks = False

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return np.zeros(len(documents))


@arguments(frozen=False)
class LengthBasedCurriculum(Curriculum):
    """Words of the document, clipped to [min_length, max_length]: beyond, lengths count as equal."""

    name = "length"

    min_length: Annotated[int, Field(ge=0)] = 1
    max_length: int | None = None

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum import hindi

        return np.clip([len(hindi.split_words(text)) for text in documents], self.min_length, self.max_length)


@arguments(frozen=False)
class FrequencyBasedCurriculum(Curriculum):
    """Mean over a document's words of -log p(word), in nats; 0 where it has none.

    p = (count + 1) / (words + types), counted in the documents given, which must be the training split alone, or in
    frequency_list, a UTF-8 file of lines `word<TAB>count`, with one more type for all that it does not hold.
    """

    name = "frequency"

    frequency_list: str | None = None

    def __post_init__(self) -> None:
        self._counts = None if self.frequency_list is None else _read_frequencies(Path(self.frequency_list))

    @property
    def outside_text(self) -> str | None:  # which a track counts or refuses
        return None if self.frequency_list is None else f"{KEY}.frequency_list={self.frequency_list}"

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum import hindi

        ids: dict[str, int] = {}
        numbers, sizes = array("i"), []
        for text in documents:
            words = hindi.split_words(text)
            numbers.extend(ids.setdefault(word, len(ids)) for word in words)
            sizes.append(len(words))
        word = np.array(numbers, dtype=np.int32)
        counts, total, types = np.bincount(word, minlength=len(ids)), len(word), len(ids)
        if (listed := self._counts) is not None:
            counts, total, types = np.array([listed[text] for text in ids]), listed.total(), len(listed) + 1
        surprisal = -np.log((counts + 1) / max(total + types, 1))
        document = np.repeat(np.arange(len(documents)), sizes)
        return np.bincount(document, weights=surprisal[word], minlength=len(documents)) / np.maximum(sizes, 1)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"frequency_list": self._counts}  # by its content, not its path


@arguments(frozen=False)
class MorphologicalComplexityCurriculum(Curriculum):
    """(case_weight * case + verb_weight * verb + compound_weight * compound) / words
    + length_weight * words / (words + 20), case, verb and compound being Hindi marks as hindi.py counts them."""

    name = "morphological"

    case_weight: Weight = 1.0
    verb_weight: Weight = 1.5
    compound_weight: Weight = 1.0
    length_weight: Weight = 0.5

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from babylm_train.curriculum import hindi

        words, case, verb, compound = hindi.count_features(documents)
        marked, total = int((case + verb + compound).sum()), int(words.sum())
        if total >= MIN_WORDS and marked < MIN_MARKED * total:
            unread = f"morphological reads Hindi, of these {total:,} words {marked:,} carry a mark"
            raise InputError(f"{KEY}: {unread}; take length or frequency, in combined morphological=0")
        marks = self.case_weight * case + self.verb_weight * verb + self.compound_weight * compound
        return marks / np.maximum(words, 1) + self.length_weight * words / (words + HALF_LENGTH)


@arguments(frozen=False)
class CombinedCurriculum(Curriculum):
    """Weighted mean of the ranks in [0, 1] that morphological, length and frequency give; ties get their average."""

    name = "combined"

    morphological: Weight = 0.5
    length: Weight = 0.3
    frequency: Weight = 0.2

    def __post_init__(self) -> None:
        if self.morphological + self.length + self.frequency == 0:
            raise InputError(f"{KEY}.morphological, .length and .frequency must not all be 0")

    def score(self, documents: Sequence[str]) -> np.ndarray:
        from scipy.stats import rankdata

        total, mean = self.morphological + self.length + self.frequency, np.zeros(len(documents))
        for kind in (MorphologicalComplexityCurriculum, LengthBasedCurriculum, FrequencyBasedCurriculum):
            if weight := getattr(self, kind.name):
                ranks = rankdata(kind().score(documents)) - 1
                mean += weight / total * (ranks / max(len(documents) - 1, 1))
        return mean


@arguments(frozen=False)
class DynamicCurriculum(Curriculum):
    """Ranks as `base` does and moves a threshold of its own with the validation loss, as `follow_losses` says."""

    name = "dynamic"
    adaptive = True

    base: Curriculum = Field(default_factory=CombinedCurriculum)
    adaptation_rate: Share = 0.1
    performance_window: Annotated[int, Field(ge=2)] = 5
    min_threshold: Share = 0.1
    max_threshold: Share = 1.0

    def __post_init__(self) -> None:
        if not self.base.ranks or self.base.adaptive:
            raise InputError(f"{KEY}.base must rank documents and not be adaptive itself, got {self.base.name}")
        if self.min_threshold > self.max_threshold:
            raise InputError(f"{KEY}.min_threshold must not exceed max_threshold = {self.max_threshold}")
        self.losses: list[float] = []  # all its state

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return self.base.compute_difficulty(documents)

    @property
    def threshold(self) -> float:
        """Share of the data admitted now, at first min_threshold."""
        low, high, rate = self.min_threshold, self.max_threshold, self.adaptation_rate
        return follow_losses(self.losses, low, window=self.performance_window, rate=rate, low=low, high=high)

    def update_difficulty_threshold(self, val_loss: float) -> float:
        """Takes in one validation loss, in nats; gives the threshold from now on."""
        self.losses.append(val_loss)
        return self.threshold

    def identity(self) -> dict[str, Any]:
        return {"base": self.base.identity(), "reverse": self.reverse}  # no arguments of the threshold


@arguments(frozen=False)
class RandomCurriculum(Curriculum):
    """A seeded random score in [0, 1): the control variant that every curriculum claim needs."""

    name = "random"

    seed: Annotated[int, Field(ge=0)] = 0

    def score(self, documents: Sequence[str]) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(documents))


def _read_frequencies(path: Path) -> Counter[str]:
    from babylm_train.curriculum import hindi

    if not path.is_file():  # a device has no end
        raise InputError(f"{KEY}.frequency_list: {path} is no file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{KEY}.frequency_list: cannot read {path}: {error}") from error
    counts: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        word, _, count = line.partition("\t")
        if not (word and count.isdecimal()):
            raise InputError(f"{path}:{number}: expected word<TAB>count, got {line[:60]}")
        counts[hindi.normalise(word)] += int(count)
    return counts
