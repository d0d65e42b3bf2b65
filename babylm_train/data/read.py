"""What the fragments in conf/data name: the built-in stories, text files, and data sets of the Hugging Face hub."""

import bz2
import csv
import glob
import gzip
import importlib
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from babylm_train.data.corpus import Corpus, CorpusOptions, load_corpus, normal
from babylm_train.errors import InputError, arguments, printable
from babylm_train.files import file_digest
from babylm_train.state import MinimalPair

STORIES, STORY_PAIRS = (Path(__file__).with_name(name) for name in ("stories.jsonl.gz", "stories_pairs.tsv.gz"))
STORY_WORDS = 200_000  # that stories.jsonl.gz holds

TEXT = (".txt", ".train", ".dev", ".test")
TABLES = {".csv": ",", ".tsv": "\t"}  # with the names of the columns above
INSIDE = (*TEXT, ".jsonl", ".json", *TABLES)  # what is read of a .zip
KNOWN = (*INSIDE, ".parquet", ".zip")
MAX_LINE_BYTES = 100_000_000
MAX_FILE_BYTES = 2 << 30  # after decompression
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)  # the last: a password

Separator = Literal["line", "blank_line"]


@arguments()
class Stories(CorpusOptions):
    """Mini-stories in Hindi and minimal pairs of the same grammar; corpora/hindi_stories wrote both."""

    words: Annotated[int, Field(ge=1, le=STORY_WORDS)]

    def load(self) -> Corpus:
        """The corpus with its minimal pairs, or what an earlier run stored."""
        identity = {"stories": file_digest(STORIES), "words": self.words}
        return load_corpus(self, read_stories, self.words, None, identity=identity, pairs=read_story_pairs())


def read_stories(words: int) -> Iterator[str]:
    """The first documents of the built-in stories, until they hold `words` words, or all."""
    with gzip.open(STORIES, "rt", encoding="utf8") as file:
        while words > 0 and (line := file.readline()):
            yield (text := json.loads(line)["text"])
            words -= len(text.split())


def read_story_pairs() -> list[MinimalPair]:
    """The minimal pairs of the built-in stories: each turns on words that no clause of the stories combines."""
    with gzip.open(STORY_PAIRS, "rt", encoding="utf8") as file:
        return [MinimalPair(*line.rstrip("\n").split("\t")) for line in file][1:]


@arguments()
class FieldOptions(CorpusOptions):
    """What text files and hub data have in common: the field that holds the text, and at most so many words."""

    text_field: str
    max_words: Annotated[int, Field(ge=1)] | None


@arguments()
class TextFiles(FieldOptions):
    """Files and globs of text (.txt, .train, .dev, .test), JSON lines (.jsonl, .json), .csv, .tsv and parquet.

    All but parquet may be packed (.gz, .bz2, .xz, .zst) or stand in a .zip. The files are looked for at once.
    """

    train: str | list[str]
    validation: str | list[str] | None
    separator: Separator

    def __post_init__(self) -> None:
        self._find()

    def _find(self) -> list[list[Path] | None]:
        named = {"data.train": self.train, "data.validation": self.validation}
        return [None if names is None else find_files(key, names) for key, names in named.items()]

    def load(self) -> Corpus:
        """The corpus, or what an earlier run stored. Raises InputError, naming path, line and byte; StorageError."""
        train, validation = self._find()
        known = [[(path.name, file_digest(path)) for path in files or ()] for files in (train, validation)]
        identity = {"files": known, "separator": self.separator, "field": self.text_field}
        read = partial(read_files, text_field=self.text_field, separator=self.separator)
        return load_corpus(self, read, train, validation, identity=identity, max_words=self.max_words)


def find_files(key: str, patterns: str | Sequence[str], known: Sequence[str] = KNOWN) -> list[Path]:
    """The files that `patterns` name, each once, sorted within a glob. Raises InputError with `key` and the path."""
    files: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = _expand(os.path.expanduser(pattern))
        if not found:
            raise InputError(f"{key}: no such file: {pattern}")
        for file in found:
            if not (file.is_file() and os.access(file, os.R_OK)):  # reading a pipe or a device need not end
                raise InputError(f"{key}: {file} is no readable file; give a file, or a glob as {file / '*.txt'}")
            if kind_of(file) not in known:
                raise InputError(f"{key}: {file} does not end in one of {' '.join([*known, *OPENERS])}")
            files[file] = None
    return list(files)


def _expand(pattern: str) -> list[Path]:
    """The file of that name, or those that a glob names, sorted; brackets are tried as letters of a name first."""
    if os.path.exists(pattern):
        return [Path(pattern)]
    for tried in (pattern.replace("[", "[[]"), pattern):
        if found := [Path(name) for name in sorted(glob.glob(tried, recursive=True)) if not os.path.isdir(name)]:
            return found
    return []


def _open_zip(path: Path) -> list[Any]:
    """The path itself, or paths to the text files in a .zip, sorted."""
    if path.suffix.lower() != ".zip":
        return [path]
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {error}") from error
    inside = [zipfile.Path(archive, name) for name in sorted(archive.namelist()) if name[-1:] != "/"]
    if texts := [member for member in inside if Path(member.name).suffix.lower() in INSIDE]:
        return texts
    raise InputError(f"{path} holds no file that ends in one of {' '.join(INSIDE)}")


def kind_of(path: Any) -> str:
    """The suffix that says what a file holds, packed or not."""
    path = Path(path.name.lower())
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def read_files(
    files: Sequence[Path], text_field: str, separator: Separator, key: str = "data.text_field"
) -> Iterator[str]:
    """The documents of `files`, as they stand there; `key` is what `text_field` is called in a message."""
    for path in chain.from_iterable(map(_open_zip, files)):
        kind = kind_of(path)
        lines = (line for _, line in read_lines(path))
        if kind == ".parquet":
            yield from (_text_of(*row, text_field, key) for row in _read_parquet(path, text_field))
        elif kind in TABLES:
            yield from (_text_of(*row, text_field, key) for row in _read_table(path, text_field, TABLES[kind]))
        elif kind not in TEXT:
            yield from (_text_of(*row, text_field, key) for row in read_json_lines(path))
        elif separator == "line":  # of which a lone carriage return or U+2028 is white space
            yield from (" ".join(line.split()) for line in lines)
        else:
            groups = groupby(lines, lambda line: bool(normal(line).strip()))
            yield from ("".join(held) for seen, held in groups if seen)


def _open_zst(path: Path) -> Any:
    return io.BufferedReader(_import("pyarrow", ".zst").CompressedInputStream(path.open("rb"), "zstd"))


OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


def read_lines(path: Any) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers from 1, unpacked and decoded. InputError names path, line and byte."""
    size = 0
    try:
        with OPENERS.get(path.suffix.lower(), lambda plain: plain.open("rb"))(path) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
                yield number, _decode(f"{path}, line {number}", line)
                size += len(line)
                if size > MAX_FILE_BYTES:
                    raise InputError(f"{path} holds more than {MAX_FILE_BYTES:,} bytes of text: cut it up")
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _decode(where: str, line: bytes) -> str:
    """The line without a byte order mark, which files that were joined have at any line."""
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x})") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, one a line, each after where it stands. InputError names path, line and byte."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also an integer of thousands of digits, or nested as deep
            raise InputError(f"{where}: broken JSON: {str(error).replace('line 1 column', 'column')}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: a JSON object a line is expected, this is a {type(record).__name__}")
        yield where, record


def _read_table(path: Path, field: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.DictReader((line for _, line in read_lines(path)), restkey="", delimiter=delimiter, strict=True)
    try:
        if (names := list(rows.fieldnames or ())).count(field) > 1:
            raise InputError(f"{path} has {names.count(field)} columns {field}")
        first = 2
        for record in rows:
            yield f"{path}, line {first}", record
            first = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, after line {rows.line_num}: {error}") from error


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet, row = _import("pyarrow.parquet", str(path)), 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for batch in file.iter_batches(1024, columns=[field] if field in names else names):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are among them
        raise InputError(f"cannot read {path} after row {row}: {error}") from error


def _text_of(where: str, record: dict[str, Any], field: str, key: str) -> str:
    """The text of a record; a null counts as an empty document."""
    if field not in record:
        shown = ", ".join(name[:40] for name in list(record)[:10]) or "none"
        raise InputError(f"{where}: no field {field} ({key}); there are: {shown}")
    text = record[field]
    if not isinstance(text, str | None):
        raise InputError(f"{where}: {field} ({key}) is a {type(text).__name__}, not text")
    if text and re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: half a surrogate pair: this is no text")
    return text or ""


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what} needs the hub extra: pip install 'babylm-train[hub]'") from error


@arguments()
class HubDataset(FieldOptions):
    """A dataset on the hub, or a folder of data files, through `datasets`.

    A branch or tag is resolved to its commit; one that an earlier run stored needs neither network nor `datasets`.
    """

    name: str
    revision: str | None
    config_name: str | None
    train_split: str
    validation_split: str | None

    def __post_init__(self) -> None:
        from babylm_train.data.network import check_hub_name

        check_hub_name("data.name", self.name)
        if self.revision is not None and os.path.isdir(self.name):
            raise InputError(f"data.revision: {self.name} is a local path and has no revision")

    def load(self) -> Corpus:
        """The corpus, or what an earlier run stored. Raises InputError, also where the hub is silent; StorageError."""
        commit = None if os.path.isdir(self.name) else self._find_commit()
        files = [(str(path.relative_to(self.name)), file_digest(path)) for path in self._list_files()]
        parts = [self.config_name, self.train_split, self.validation_split]
        identity = {"files": files, "hub": commit and [self.name, commit], "parts": parts, "field": self.text_field}
        splits, read = (self.train_split, self.validation_split), partial(self._read, commit=commit)
        return load_corpus(self, read, *splits, identity=identity, max_words=self.max_words)

    def _find_commit(self) -> str:
        """The commit that `revision` names; without network it has to be one."""
        from huggingface_hub import HfApi

        from babylm_train.data.network import need_hub

        wanted = self.revision or "main"
        if re.fullmatch("[0-9a-f]{40}", wanted):
            return wanted
        need_hub(f"data.name={self.name}")
        try:
            return str(HfApi().dataset_info(self.name, revision=wanted, timeout=5.0).sha)
        except (OSError, ValueError) as error:
            raise InputError(f"data.name={self.name}, data.revision={wanted} is no commit, and: {error}") from error

    def _read(self, split: str, commit: str | None) -> Iterator[str]:
        from babylm_train.data.network import need_hub

        what = f"data.name={self.name}, split {split}"
        datasets = _import("datasets", what)
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        cache = str(Path(self.cache_dir, "datasets")) if commit is None else None  # of the hub's, one for all projects
        if commit is not None:
            need_hub(f"data.name={self.name}")
        try:
            data = datasets.load_dataset_builder(self.name, self.config_name, revision=commit, cache_dir=cache)
            used = {os.path.realpath(path) for paths in (data.config.data_files or {}).values() for path in paths}
            if left := [str(path) for path in self._list_files() if os.path.realpath(path) not in used]:
                print(printable(f"{self.name}: left out: {', '.join(left)}"), flush=True)
            data.download_and_prepare()
            data = data.as_dataset(split=split)
        except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{what}: {error.__cause__ or error}") from error
        if self.text_field in data.column_names:
            data = data.select_columns([self.text_field])
        for number, row in enumerate(data, 1):
            yield _text_of(f"{what}, row {number}", row, self.text_field, "data.text_field")

    def _list_files(self) -> list[Path]:
        """What lies in a local folder, but for hidden files and the page about it."""
        files = (path for path in Path(self.name).rglob("*") if path.is_file())
        return sorted(path for path in files if path.name[0] != "." and path.name != "README.md")
