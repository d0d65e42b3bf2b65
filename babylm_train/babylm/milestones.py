"""Milestones: the model at given numbers of words seen, exported once each as a revision `chck_1M`, `chck_2M` ...

A revision is written in the update that reaches its mark, before that update can be in any checkpoint: so a run that is
killed and goes on repeats the update or has the revision, and the same update writes the same bytes.
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


class Milestones:
    """Exports a model as its words pass the marks.

    Args:
        directory: of the revisions. marks: words seen, ascending. model, tokenizer, backends: as write_model has them.
        check: the model's loss on the first documents of the validation text, recorded for `preflight` to reproduce.
    """

    def __init__(
        self,
        directory: Path,
        marks: Sequence[int],
        model: Any,
        tokenizer: Any,
        backends: Sequence[str],
        check: Callable[[], Evaluation],
    ) -> None:
        self.directory, self.marks, self.check = directory, list(marks), check
        self.model, self.tokenizer, self.backends = model, tokenizer, backends

    def reached(self, before: int, words: int) -> list[int]:
        """The marks between `before` and `words`."""
        return [mark for mark in self.marks if before < mark <= words]

    def passed(self, before: int, state: RunState) -> None:
        """Exports what the update that brought the words from `before` to `state.words` has reached.

        Raises:
            StorageError: it cannot be written. InputError: the record of an earlier one is damaged.
        """
        clock = {"words": state.words, "tokens": state.tokens, "update": state.updates}
        there = {path.name: revision for path, revision in revisions(self.directory)}
        due = {name_of(mark): mark for mark in self.reached(before, state.words)}
        if all(name in there and asdict(there[name]).items() >= clock.items() for name in due):
            return
        result = self.check()
        self._make_directory()
        newest = [self.directory / name for name, revision in there.items() if revision.words < state.words][-1:]
        for name, mark in due.items():
            record = Revision(name, mark, **clock, check_loss=result.loss, check_tokens=result.tokens)
            folder, texts = self.directory / name, {RECORD: asdict(record)}
            write_model(self.model, self.tokenizer, folder, self.backends, like=newest, records=texts)
            newest = [*newest, folder]

    def adopt(self, other: Path, words: int) -> None:
        """Takes over the revisions of another run that this one goes on from, up to so many `words`.

        Raises:
            StorageError: they cannot be written here. InputError: a record is damaged.
        """
        for path, revision in revisions(other):
            target = self.directory / path.name
            if revision.words <= words and revision.mark in self.marks and not target.exists():
                self._make_directory()
                with replaced(target) as aside:
                    shutil.copytree(path, aside, copy_function=link)

    def _make_directory(self) -> None:
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)  # without its parent: that may have been deleted


def revisions(directory: Path) -> list[tuple[Path, Revision]]:
    """The revisions in `directory`, by words seen.

    Raises:
        InputError: a record is damaged; names the file.
    """
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
