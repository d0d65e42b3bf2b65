"""Milestones: the model at given numbers of words seen, exported once each as a revision `chck_1M`, `chck_2M` ...

A revision is written in the update that reaches its mark, before that update can be in any checkpoint: so a run that is
killed and goes on repeats the update or has the revision, and the same update writes the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babylm_train.errors import StorageError
from babylm_train.model.export import copy_or_link, write_model

if TYPE_CHECKING:
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.state import Evaluation, RunState

RECORD = "milestone.json"
CHECKED = 8192  # tokens of validation text that a revision's loss is recorded on


def name_of(mark: int) -> str:
    """`chck_1M` for a million words; marks that are no whole million give all digits."""
    return f"chck_{mark // 10**6}M" if mark % 10**6 == 0 else f"chck_{mark}"


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
            StorageError: it cannot be written.
        """
        reached = self.reached(before, state.words)
        clock = {"words": state.words, "tokens": state.tokens, "update": state.updates}
        names = [name_of(mark) for mark in reached]
        there = {path.name: record for path, record in revisions(self.directory)}
        if all(there.get(name, {}).items() >= clock.items() for name in names):
            return
        result = self.check()
        self.directory.mkdir(parents=True, exist_ok=True)
        newest = [path for path, record in revisions(self.directory) if record["words"] < state.words][-1:]
        for mark, name in zip(reached, names, strict=True):
            record = {"name": name, "mark": mark, **clock, "check_loss": result.loss, "check_tokens": result.tokens}
            folder = self.directory / name
            texts = {RECORD: json.dumps(record, indent=2) + "\n"}
            write_model(self.model, self.tokenizer, folder, self.backends, like=newest, texts=texts)
            newest = [*newest, folder]

    def adopt(self, other: Path, words: int) -> None:
        """Takes over the revisions of another run that this one goes on from, up to so many `words`.

        Raises:
            StorageError: they cannot be written here.
        """
        for path, record in revisions(other):
            target = self.directory / path.name
            if record["words"] <= words and record["mark"] in self.marks and not target.exists():
                aside = target.with_name(f".{target.name}.{os.getpid()}")
                try:
                    shutil.copytree(path, aside, copy_function=copy_or_link)
                    aside.rename(target)
                except OSError as error:
                    raise StorageError(f"cannot write {target}: {error.strerror or error}") from error


def revisions(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The revisions in `directory` and their records, by words seen."""
    found = [(path.parent, json.loads(path.read_text())) for path in _records(directory)]
    return sorted(found, key=lambda pair: (pair[1]["words"], pair[1]["mark"]))


def _records(directory: Path) -> Iterator[Path]:
    return (path for path in directory.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))


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
