"""A Hugging Face dataset as a corpus, by name and revision, or from a local path, through `datasets`."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylm_train.data.corpus import Corpus, check_options, load_corpus, there
from babylm_train.data.network import need_hub, offline
from babylm_train.errors import InputError, printable
from babylm_train.files import file_digest
from babylm_train.state import Document

PACKED = re.compile(r".*\.(zip|tar|tgz|gz|bz2|xz|lzma|zst|lz4|7z|rar)")  # `datasets` would unpack without a bound
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the hub, a folder of data files, or a folder that `save_to_disk` wrote.

    A branch or tag is resolved to its commit, which is what is read and cached. A commit that an earlier run stored
    needs neither network nor `datasets`. A `source` column, if it holds strings, names the documents' sources.

    Args:
        name: such as `owner/name`, or a local path.
        revision: commit, tag or branch; None is the branch `main`. Local paths have none.
        config_name: the dataset's configuration, or None for its default.
        train_split: the split, or a slice of it such as `train[:10%]`.
        validation_split: the same, or None: a share of the documents is set aside.
        text_field: the column that holds the text.
        max_words: at most so many training words, or None.
        validation_share: share of the documents set aside, in (0, 1).
        seed: draws the validation documents and the order in which `max_words` takes documents.
        max_length: tokens a row that the model is trained on (the tokenizer and the packing read it here).
        cache_dir: where the clean corpus is kept.

    Raises:
        InputError: the path does not exist, or an option is out of range.
    """

    name: str
    revision: str | None
    config_name: str | None
    train_split: str
    validation_split: str | None
    text_field: str
    max_words: int | None
    validation_share: float
    seed: int
    max_length: int
    cache_dir: str

    def __post_init__(self) -> None:
        check_options(
            validation_share=self.validation_share,
            seed=self.seed,
            max_words=self.max_words,
            max_length=self.max_length,
        )
        if there("data.name", Path(self.name)):
            if self.revision is not None:
                raise InputError(f"data.revision: {printable(self.name)} is a local path and has no revision")
        elif not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.name):
            raise InputError(f"data.name: no such path: {printable(self.name)}")

    def load(self) -> Corpus:
        """Read, check, clean and split, or open what an earlier run stored.

        Raises:
            InputError: the hub does not answer (within 5 s), or has no such dataset, revision, split or column.
            StorageError: the cache cannot be written.
        """
        path = Path(self.name)
        revision = None if path.exists() else self._commit()
        identity: dict[str, Any] = {
            "files": [[str(p.relative_to(path)), file_digest(p)] for p in _files(path)],
            "name": None if path.exists() else self.name,
            "revision": revision,
            "config_name": self.config_name,
            "splits": [self.train_split, self.validation_split],
            "text_field": self.text_field,
        }

        def read() -> tuple[Iterator[Document], Iterator[Document] | None]:
            held = self.validation_split
            return self._read(self.train_split, revision), None if held is None else self._read(held, revision)

        return load_corpus(
            read,
            identity=identity,
            cache_dir=self.cache_dir,
            validation_share=self.validation_share,
            seed=self.seed,
            max_words=self.max_words,
        )

    def _commit(self) -> str:
        """The commit that `revision` names."""
        wanted, what = self.revision or "main", f"data.name={printable(self.name)}"
        if COMMIT.fullmatch(wanted):
            return wanted
        if offline():
            raise InputError(f"{what}: without network, give data.revision as the 40 digits of a commit, not {wanted}")
        need_hub(what)
        _import(what)
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.name, revision=wanted, timeout=5.0).sha)
        except (OSError, ValueError) as error:
            raise InputError(f"{what}, data.revision={printable(wanted)}: {_reason(error)}") from error

    def _read(self, split: str, revision: str | None) -> Iterator[Document]:
        what = f"data.name={printable(self.name)}"
        if revision is not None:
            need_hub(what)
        datasets = _import(what)
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            data = self._open(datasets, split, revision)
        except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{what}, split {printable(split)}: {_reason(error)}") from error
        field, columns = self.text_field, data.column_names
        if field not in columns:
            there = ", ".join(map(printable, columns))
            raise InputError(f"{what}: no column {printable(field)} (data.text_field); there are: {there}")
        data = data.select_columns([field] + ["source"] * ("source" in columns and field != "source"))
        for number, row in enumerate(data, 1):
            text, source = row[field], row.get("source")
            if text is not None and not isinstance(text, str):
                raise InputError(f"{what}, row {number}: column {printable(field)} is a {type(text).__name__}")
            yield Document(text or "", source if isinstance(source, str) else self.name)

    def _open(self, datasets: Any, split: str, revision: str | None) -> Any:
        path = Path(self.name)
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(self.name)[split]
        if (path / "state.json").is_file():
            if split != "train":
                raise ValueError("this folder holds one split: use data.train_split=train and no validation_split")
            return datasets.load_from_disk(self.name)
        own = str(Path(self.cache_dir) / "datasets") if revision is None else None  # of the hub's, one for all projects
        return datasets.load_dataset(self.name, self.config_name, split=split, revision=revision, cache_dir=own)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        raise InputError(f"data.name: {printable(path)} is a file; read it with data=text, or give its folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    if packed := [p for p in files if PACKED.fullmatch(p.name.lower())]:
        raise InputError(f"data.name: {printable(packed[0])} is packed: unpack it, or read it with data=text (.gz)")
    return files


def _import(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{what} needs the hub extra: pip install 'babylm-train[hub]'") from error
    return datasets


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0]) if lines else type(error).__name__
