"""What the fragments in conf/data name: the built-in stories, text files, and data sets of the Hugging Face hub."""

import bz2
import glob
import gzip
import importlib
import io
import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from babylm_train.data.corpus import Corpus, CorpusOptions, is_blank, load_corpus
from babylm_train.errors import InputError, arguments, printable
from babylm_train.files import file_digest
from babylm_train.state import Document, MinimalPair

STORIES, STORY_PAIRS = (Path(__file__).with_name(name) for name in ("stories.jsonl.gz", "stories_pairs.tsv.gz"))
STORY_WORDS = 200_000  # that stories.jsonl.gz holds

TEXT, JSON_LINES, PARQUET = (".txt", ".train", ".dev", ".test"), (".jsonl", ".json"), (".parquet",)
PACKED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z")  # `datasets` unpacks without a bound
MAX_LINE_BYTES = 100_000_000
MAX_FILE_BYTES = 2 << 30  # after decompression
# What a damaged file is told by; RuntimeError: a .zip with a password.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)

AnyPath = Path | zipfile.Path
Reader = Callable[[Any], Iterator[Document]]
Separator = Literal["line", "blank_line"]


@arguments()
class Stories(CorpusOptions):
    """Mini-stories in Hindi and minimal pairs of the same grammar; corpora/hindi_stories wrote both.

    Args:
        words: the first documents are taken until they hold so many words.
    """

    words: Annotated[int, Field(ge=1, le=STORY_WORDS)]

    def load(self) -> Corpus:
        """The corpus with its minimal pairs, from the cache if it was made before. Raises StorageError."""
        identity = {"stories": file_digest(STORIES), "words": self.words}
        documents = (Document(text, "stories") for text in read_stories(self.words))
        return load_corpus(lambda: (documents, None), self, identity=identity, pairs=read_story_pairs())


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
    """What text files and hub data have in common.

    Args:
        text_field: the field or column that holds the text.
        max_words: at most so many training words, or None.
    """

    text_field: str
    max_words: Annotated[int, Field(ge=1)] | None

    def store(self, read: Reader, train: Any, validation: Any, identity: dict[str, Any]) -> Corpus:
        """The corpus of what `read` gives for `train` and, unless that is None, `validation`; or the stored one."""
        identity |= {"text_field": self.text_field, "set_aside": validation is None}
        documents = partial(read, validation) if validation is not None else lambda: None
        return load_corpus(lambda: (read(train), documents()), self, identity=identity, max_words=self.max_words)


@arguments()
class TextFiles(FieldOptions):
    """Files and globs of text (.txt, .train, .dev, .test), JSON lines (.jsonl, .json) and parquet.

    Text and JSON lines may be packed (.gz, .bz2, .xz, .zst), and all may stand in a .zip. A JSON object's or a row's
    `source`, if it is text, names the document's source; otherwise the file's name does.

    Args:
        train: a file, a glob (`**` goes into folders) or a list of them.
        validation: the same, or None: a share of the documents is set aside.
        separator: how text is cut into documents: at each `line`, or at each `blank_line`.

    Raises InputError: a file is missing, a glob matches nothing, a suffix is not known.
    """

    train: str | list[str]
    validation: str | list[str] | None
    separator: Separator

    @model_validator(mode="after")
    def look_for_files(self) -> "TextFiles":
        self._find()
        return self

    def _find(self) -> list[list[Path] | None]:
        named = {"data.train": self.train, "data.validation": self.validation}
        return [None if names is None else find_files(key, names) for key, names in named.items()]

    def load(self) -> Corpus:
        """Read, check, clean and split, or open what an earlier run stored.

        Raises:
            InputError: naming the path, the line and the byte. StorageError: the cache cannot be written.
        """
        train, validation = self._find()
        try:
            known = [[(path.name, file_digest(path)) for path in files or ()] for files in (train, validation)]
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
        identity = {"files": [*known[0], *known[1]], "train": len(known[0]), "separator": self.separator}
        read = partial(read_files, text_field=self.text_field, separator=self.separator)
        return self.store(read, train, validation, identity)


def find_files(key: str, patterns: str | Sequence[str]) -> list[Path]:
    """The files that `patterns` name, each once, in the order of the patterns and sorted within a glob.

    Raises InputError with `key` and the path: nothing is found, or a file's suffix is not known.
    """
    files: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(os.path.expanduser(pattern))
        found = [path] if os.path.exists(path) else _expand(path)
        if not found:
            raise InputError(f"{key}: no {'file matches' if glob.has_magic(pattern) else 'such file:'} {pattern}")
        if path.is_dir():
            raise InputError(f"{key}: {pattern} is a folder; give a glob, as {path / '*.txt'}")
        for file in found:
            if not file.is_file():  # reading a pipe or a device need not end
                raise InputError(f"{key}: {file} is no regular file")
            if file.suffix.lower() != ".zip" and not _kind(file.name):
                known = (*TEXT, *JSON_LINES, *PARQUET, *OPENERS, ".zip")
                raise InputError(f"{key}: {file} does not end in one of {' '.join(known)}")
            files[file] = None
    if not files:
        raise InputError(f"{key} names no file")
    return list(files)


def _expand(pattern: Path) -> list[Path]:
    """The files that a glob names, sorted. Folders that exist are taken literally, brackets and all."""
    folder, rest = Path(), list(pattern.parts)
    while os.path.exists(folder / rest[0]):
        folder /= rest.pop(0)
    names = str(Path(*rest))
    for tried in (names.replace("[", "[[]"), names):
        paths = [folder / name for name in sorted(glob.glob(tried, root_dir=folder, recursive=True))]
        if found := [path for path in paths if not path.is_dir()]:
            return found
    return []


def read_files(
    files: Sequence[Path], text_field: str, separator: Separator, key: str = "data.text_field"
) -> Iterator[Document]:
    """The documents of `files`, as they stand there; `key` is what `text_field` is called in a message.

    Raises InputError: naming the path, the line and the byte.
    """
    for path in (member for file in files for member in _open_archive(file)):
        kind = _kind(path.name)
        if kind in TEXT:
            yield from _read_text(path, separator)
        else:
            yield from (_read_parquet if kind in PARQUET else _read_json_lines)(path, text_field, key)


def _open_archive(path: Path) -> Sequence[AnyPath]:
    """The file itself, or the files of known kinds in a .zip; says which others are left out."""
    if path.suffix.lower() != ".zip":
        return [path]
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {error}") from error
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    _say_left_out(path, [name for name in names if not _kind(name)])
    return [zipfile.Path(archive, name) for name in names if _kind(name)]


def _say_left_out(path: Path, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
        print(f"{printable(path)}: left out: {printable(shown)}", flush=True)


def _kind(name: str) -> str:
    """The suffix that says what a file holds, or nothing."""
    name = name.lower()
    if name.endswith(PARQUET):
        return ".parquet"
    for suffix in OPENERS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in (*TEXT, *JSON_LINES) if name.endswith(suffix)), "")


def _open_zst(raw: Any) -> Any:
    return io.BufferedReader(_import("pyarrow", ".zst").CompressedInputStream(raw, "zstd"))


OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


def read_lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers from 1, unpacked and decoded; a line's memory is bounded.

    Raises InputError: naming the path, the line and the byte.
    """
    unpack: Any = OPENERS.get(Path(path.name).suffix.lower(), lambda raw: raw)
    size = 0
    try:
        with path.open("rb") as raw, unpack(raw) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), 1):
                yield number, _decode(f"{path}, line {number}", line)
                size += len(line)
                if size > MAX_FILE_BYTES:
                    raise InputError(f"{path} holds more than {MAX_FILE_BYTES:,} bytes of text: cut it up")
    except DAMAGE as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _decode(where: str, line: bytes) -> str:
    """The line without a byte order mark, which files that were joined have at any line."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{where}: this is UTF-16: convert it to UTF-8")
    if (nul := line.find(b"\0")) >= 0:
        raise InputError(f"{where}, byte {nul + 1}: NUL, this is no text")
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x})") from error


def _read_text(path: AnyPath, separator: str) -> Iterator[Document]:
    held: list[str] = []
    for _, line in read_lines(path):
        if separator == "line":
            # A lone carriage return or U+2028 is white space here: documents that are lines have one line.
            yield Document(" ".join(line.split()), path.name)
        elif not is_blank(line):
            held.append(line)
        elif held:
            yield Document("".join(held), path.name)
            held = []
    if held:
        yield Document("".join(held), path.name)


def _read_json_lines(path: AnyPath, field: str, key: str) -> Iterator[Document]:
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        if is_blank(line):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also an integer of thousands of digits, or nested as deep
            raise InputError(f"{where}: broken JSON: {str(error).replace('line 1 column', 'column')}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: a JSON object a line is expected, this is a {type(record).__name__}")
        _check_field(where, field, key, list(record))
        yield _document(where, record[field], record.get("source"), path.name)


def _read_parquet(path: AnyPath, field: str, key: str) -> Iterator[Document]:
    pyarrow, parquet = _import("pyarrow", str(path)), _import("pyarrow.parquet", str(path))
    row = 0
    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            _check_field(str(path), field, key, names)
            columns = [field, *(["source"] if names.count("source") == 1 and field != "source" else [])]
            for batch in file.iter_batches(1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    source = record["source"] if columns[1:] else None
                    yield _document(f"{path}, row {row}", record[field], source, path.name)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after row {row}: not UTF-8") from error
    except (*DAMAGE, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _check_field(where: str, field: str, key: str, names: Sequence[str]) -> None:
    if names.count(field) != 1:
        problem = "two fields" if field in names else "no field"
        shown = ", ".join(name[:40] for name in names[:10]) or "none"
        raise InputError(f"{where}: {problem} {field} ({key}); there are: {shown}")


def _document(where: str, text: Any, source: Any, name: str) -> Document:
    """A null counts as an empty document; `name` is the source of what names none."""
    if not isinstance(text, str | None):
        raise InputError(f"{where}: the text field is a {type(text).__name__}, not text")
    if text and re.search("[\0\ud800-\udfff]", text):
        raise InputError(f"{where}: a NUL or half a surrogate pair: this is no text")
    return Document(text or "", source if isinstance(source, str) else name)


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what} needs the hub extra: pip install 'babylm-train[hub]'") from error


@arguments()
class HubDataset(FieldOptions):
    """A dataset on the hub, a folder of data files, or a folder that `save_to_disk` wrote, through `datasets`.

    A branch or tag is resolved to its commit, which is what is read and cached. A commit that an earlier run stored
    needs neither network nor `datasets`. A `source` column, if it holds text, names the documents' sources.

    Args:
        name: such as `owner/name`, or a local path.
        revision: commit, tag or branch; None is the branch `main`. Local paths have none.
        config_name: the dataset's configuration, or None for its default.
        train_split: the split, or a slice of it such as `train[:10%]`.
        validation_split: the same, or None: a share of the documents is set aside.

    Raises InputError: the path does not exist.
    """

    name: str
    revision: str | None
    config_name: str | None
    train_split: str
    validation_split: str | None

    @model_validator(mode="after")
    def check_name(self) -> "HubDataset":
        if os.path.isfile(self.name):
            raise InputError(f"data.name: {self.name} is a file; read it with data=text, or give its folder")
        if os.path.exists(self.name) and self.revision is not None:
            raise InputError(f"data.revision: {self.name} is a local path and has no revision")
        if not os.path.exists(self.name) and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.name):
            raise InputError(f"data.name: no such path: {self.name}")
        return self

    def load(self) -> Corpus:
        """Read, check, clean and split, or open what an earlier run stored.

        Raises:
            InputError: the hub does not answer (within 5 s), or has no such dataset, revision, split or column.
            StorageError: the cache cannot be written.
        """
        folder = Path(self.name)
        files = self._list_files()
        if packed := [path for path in files if path.name.lower().endswith(PACKED)]:
            raise InputError(f"data.name: {packed[0]} is packed: unpack it, or read it with data=text")
        commit = None if folder.exists() else self._find_commit()
        known = [(str(path.relative_to(folder)), file_digest(path)) for path in files]
        parts = [self.config_name, self.train_split, self.validation_split]
        identity = {"files": known, "hub": commit and [self.name, commit], "parts": parts}
        return self.store(partial(self._read, commit=commit), self.train_split, self.validation_split, identity)

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

    def _read(self, split: str, commit: str | None) -> Iterator[Document]:
        what = f"data.name={self.name}, split {split}"
        datasets = _import("datasets", what)
        datasets.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            data = self._open(datasets, split, commit)
        except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{what}: {error.__cause__ or error}") from error
        _check_field(what, self.text_field, "data.text_field", data.column_names)
        data = data.select_columns([name for name in data.column_names if name in (self.text_field, "source")])
        for number, row in enumerate(data, 1):
            yield _document(f"{what}, row {number}", row[self.text_field], row.get("source"), self.name)

    def _open(self, datasets: Any, split: str, commit: str | None) -> Any:
        from babylm_train.data.network import need_hub

        if os.path.exists(Path(self.name, "dataset_dict.json")):
            return datasets.load_from_disk(self.name)[split]
        if os.path.exists(Path(self.name, "state.json")):
            if split != "train":
                raise ValueError("this folder holds one split: use data.train_split=train and no validation_split")
            return datasets.load_from_disk(self.name)
        if commit is not None:
            need_hub(f"data.name={self.name}")
        cache = str(Path(self.cache_dir, "datasets")) if commit is None else None  # of the hub's, one for all projects
        builder = datasets.load_dataset_builder(self.name, self.config_name, revision=commit, cache_dir=cache)
        if commit is None and split == self.train_split:
            used = {os.path.realpath(file) for files in (builder.config.data_files or {}).values() for file in files}
            _say_left_out(Path(self.name), [str(p) for p in self._list_files() if os.path.realpath(p) not in used])
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    def _list_files(self) -> list[Path]:
        """What lies in a local folder, but for hidden files and the page about it."""
        files = (path for path in Path(self.name).rglob("*") if path.is_file())
        return sorted(path for path in files if path.name[0] != "." and path.name != "README.md")
