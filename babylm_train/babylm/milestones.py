"""Milestones: the model at given numbers of words seen, exported once each as a revision `chck_1M`, `chck_2M` ...

A revision is written in the update that reaches its mark, before any checkpoint of that update: so a run that goes on
after a kill either has it or repeats the update, which writes the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylm_train.babylm.track import name_of
from babylm_train.files import link, read, replaced, storage_errors
from babylm_train.model.export import write_model
from babylm_train.state import Callback

if TYPE_CHECKING:
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.state import Evaluation, RunState

RECORD = "milestone.json"
CHECKED = 8192  # tokens of validation text that a revision's loss is recorded on


@dataclass(frozen=True)
class Revision:
    """What milestone.json holds: the mark and the clock when it was passed, and the loss on the first documents."""

    name: str
    mark: int
    words: int
    tokens: int
    update: int
    check_loss: float
    check_tokens: int


@dataclass
class Milestones(Callback):
    """Exports a model as its words pass the marks."""

    directory: Path
    marks: Sequence[int]  # words seen, ascending
    model: Any
    tokenizer: Any
    backends: Sequence[str]
    check: Callable[[], Evaluation]  # on the first documents of the validation text, for `preflight` to reproduce
    words: int = 0  # seen when it was last told

    def at_start(self, trainer: Any) -> None:
        """See Callback."""
        self.words = trainer.state.words

    def after_update(self, trainer: Any) -> None:
        """Exports the weights that are evaluated, if the update has reached a mark."""
        before, self.words = self.words, trainer.state.words
        if self.reached(before, self.words):
            with trainer.average.applied(trainer.optimizer):
                self.export_reached(before, trainer.state)

    def reached(self, before: int, words: int) -> list[int]:
        """The marks that words have passed since `before`."""
        return [mark for mark in self.marks if before < mark <= words]

    def export_reached(self, before: int, state: RunState) -> None:
        """Exports at the marks that the update which brought the words from `before` to `state.words` has reached."""
        due = {name_of(mark): mark for mark in self.reached(before, state.words)}
        clock = {"words": state.words, "tokens": state.tokens, "update": state.updates}
        there = {path.name: asdict(revision) for path, revision in revisions(self.directory)} if due else {}
        if all(there.get(name, {}).items() >= clock.items() for name in due):
            return
        result = self.check()
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)  # without its parent: that may have been deleted
        for name, mark in due.items():
            record = asdict(Revision(name, mark, **clock, check_loss=result.loss, check_tokens=result.tokens))
            like = [path for path, _ in revisions(self.directory)]
            folder = self.directory / name
            write_model(self.model, self.tokenizer, folder, self.backends, like=like, records={RECORD: record})

    def adopt(self, directory: Path, words: int) -> None:
        """Takes over the revisions of another run that this one goes on from, up to so many `words`."""
        for path, revision in revisions(directory / self.directory.name):
            target = self.directory / path.name
            if revision.words <= words and revision.mark in self.marks and not target.exists():
                with storage_errors(self.directory):
                    self.directory.mkdir(exist_ok=True)
                    with replaced(target) as aside:
                        shutil.copytree(path, aside, copy_function=link)


def revisions(directory: Path) -> list[tuple[Path, Revision]]:
    """The revisions in `directory`, by words seen. Raises InputError: a record is damaged; names the file."""
    paths = (path for path in directory.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))
    found: list[tuple[Path, Revision]] = [(path.parent, read(path, Revision)) for path in paths]
    return sorted(found, key=lambda pair: (pair[1].words, pair[1].mark))


def beginning(split: TokenizedSplit, tokens: int = CHECKED) -> TokenizedSplit:
    """The first documents of `split`, of at most `tokens` in all, but at least one."""
    documents = max(int((split.offsets[1:] <= tokens).sum()), 1)
    end = int(split.offsets[documents])
    return replace(
        split,
        ids=split.ids[:end],
        offsets=split.offsets[: documents + 1],
        word_starts=split.word_starts[:end],
        bytes=split.bytes[:documents],
        words=split.words[:documents],
    )
