"""Text files as a corpus: .txt, JSON lines and parquet, plain or compressed, read with bounds and checked."""

import glob
import gzip
import json
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from babylm_train.data.corpus import Corpus, check_options, load_corpus, there, unusable
from babylm_train.errors import InputError, printable
from babylm_train.files import file_digest
from babylm_train.state import Document

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
MAX_LINE_BYTES = 100_000_000  # of a line, and of a document of several lines
MAX_FILE_BYTES = 2 << 30  # after decompression
MAX_RATIO = 200  # of decompression, after 1 MiB: text compresses to a fifth, a bomb to a thousandth


@dataclass(frozen=True)
class TextFiles:
    """Files and globs; `.json.gz` holds one JSON object a line, as `.jsonl` does.

    A JSON object's `source`, if it is a string, names the document's source; otherwise the file's name does.

    Args:
        train: a file, a glob (`**` goes into folders) or a list of them.
        validation: the same, or None: a share of the documents is set aside.
        text_field: the field or column that holds the text.
        separator: how a .txt is cut into documents: at each `line`, or at each `blank_line`.
        max_words: at most so many training words, or None.
        validation_share: share of the documents set aside, in (0, 1).
        seed: draws the validation documents and the order in which `max_words` takes documents.
        max_length: tokens a row that the model is trained on (the tokenizer and the packing read it here).
        cache_dir: where the clean corpus is kept.

    Raises:
        InputError: a file is missing, a glob matches nothing, a suffix is not known, an option is out of range.
    """

    train: str | list[str]
    validation: str | list[str] | None
    text_field: str
    separator: Literal["line", "blank_line"]
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
        if self.separator not in ("line", "blank_line"):
            raise InputError(f"data.separator must be line or blank_line, got {printable(self.separator)}")
        self._files()

    def load(self) -> Corpus:
        """Read, check, clean and split, or open what an earlier run stored.

        Raises:
            InputError: naming the path, the line and the byte.
            StorageError: the cache cannot be written.
        """
        train, validation = self._files()
        named = [[(path.name, _digest(path)) for path in files or ()] for files in (train, validation)]
        identity = {
            "files": named[0] + named[1],
            "validation": named[1] if validation is not None else None,
            "text_field": self.text_field,
            "separator": self.separator,
        }
        return load_corpus(
            lambda: (self._read(train), None if validation is None else self._read(validation)),
            identity=identity,
            cache_dir=self.cache_dir,
            validation_share=self.validation_share,
            seed=self.seed,
            max_words=self.max_words,
        )

    def _files(self) -> tuple[list[Path], list[Path] | None]:
        train = find_files("data.train", self.train)
        return train, None if self.validation is None else find_files("data.validation", self.validation)

    def _read(self, files: Sequence[Path]) -> Iterator[Document]:
        return read_files(files, self.text_field, self.separator)


def read_files(
    files: Sequence[Path], text_field: str, separator: Literal["line", "blank_line"], key: str = "data.text_field"
) -> Iterator[Document]:
    """The documents of `files`, as they stand there; `key` is what `text_field` is called in a message.

    Raises:
        InputError: naming the path, the line and the byte.
    """
    for path in files:
        if path.suffix == ".parquet":
            yield from _parquet(path, text_field, key)
        elif _suffix(path).startswith(".txt"):
            yield from _text(path, separator)
        else:
            yield from _json_lines(path, text_field, key)


def find_files(key: str, patterns: str | Sequence[str]) -> list[Path]:
    """The files that `patterns` name, each once, in the order of the patterns and sorted within a glob.

    Raises:
        InputError: naming `key` and the path, where nothing is found or a file's suffix is not known.
    """
    files: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        found = [path]
        if not there(key, path):
            if not glob.has_magic(pattern):
                raise InputError(f"{key}: no such file: {printable(pattern)}")
            found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if not Path(p).is_dir()]
            if not found:
                raise InputError(f"{key}: no file matches {printable(pattern)}")
        elif path.is_dir():
            raise InputError(f"{key}: {printable(pattern)} is a folder; give a glob, as {printable(path / '*.txt')}")
        for file in found:
            if not file.is_file():  # reading a pipe or a device need not end
                raise InputError(f"{key}: {printable(file)} is no regular file")
            if not _suffix(file):
                raise InputError(f"{key}: {printable(file)} does not end in one of {' '.join(SUFFIXES)}")
            files[file] = None
    if not files:
        raise InputError(f"{key} names no file")
    return list(files)


def _suffix(path: Path) -> str:
    """The longest known suffix of the file's name, or nothing."""
    return max((s for s in SUFFIXES if path.name.endswith(s)), key=len, default="")


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"cannot read {printable(path)}: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers from 1, decoded; memory is bounded whatever the file holds.

    Raises:
        InputError: naming the path, the line and the byte.
    """
    try:
        with path.open("rb") as raw, cast(IO[bytes], gzip.open(raw) if path.suffix == ".gz" else raw) as file:
            number = position = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield number, _decode(path, number, position, line)
                position += len(line)
                if position > MAX_FILE_BYTES:
                    raise InputError(f"{printable(path)} holds more than {MAX_FILE_BYTES:,} bytes of text: cut it up")
                if position > (1 << 20) + MAX_RATIO * raw.tell():
                    raise InputError(
                        f"{printable(path)}, line {number}: unpacks to {MAX_RATIO} times its size: no text"
                    )
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or printable(error)
        raise InputError(f"cannot read {printable(path)}: {reason}") from error


def _decode(path: Path, number: int, position: int, line: bytes) -> str:
    where = f"{printable(path)}, line {number}"
    if number == 1 and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise InputError(f"{printable(path)} is UTF-16: convert it to UTF-8")
    if (nul := line.find(b"\0")) >= 0:
        raise InputError(f"{where}, byte {nul + 1} (offset {position + nul} in the file): NUL, this is no text")
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = error.start + len(line) - len(error.object)  # a byte order mark is not in `object`
        raise InputError(
            f"{where}, byte {bad + 1} (offset {position + bad} in the file): not UTF-8 (0x{line[bad]:02x})"
        ) from error


def _text(path: Path, separator: str) -> Iterator[Document]:
    if separator == "line":
        # A lone carriage return or U+2028 is white space here: documents that are lines have one line.
        yield from (Document(" ".join(line.split()), path.name) for _, line in read_lines(path))
        return
    held: list[str] = []
    size = 0
    for number, line in read_lines(path):
        if line.strip():
            held.append(line)
            size += len(line.encode())
            if size > MAX_LINE_BYTES:
                raise InputError(
                    f"{printable(path)}, line {number}: this document has more than {MAX_LINE_BYTES:,} bytes; "
                    "a blank line ends a document"
                )
        elif held:
            yield Document("".join(held), path.name)
            held, size = [], 0
    if held:
        yield Document("".join(held), path.name)


def _json_lines(path: Path, field: str, key: str) -> Iterator[Document]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: broken JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or nested as deep
            raise InputError(f"{where}: JSON that cannot be read: {printable(error)}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: a JSON object a line is expected, this is a {type(record).__name__}")
        if field not in record:
            raise InputError(_missing(where, field, key, list(record)))
        source = record.get("source")
        yield _document(where, field, record[field], source if isinstance(source, str) else path.name)


def _parquet(path: Path, field: str, key: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{printable(path)}: parquet needs the hub extra: pip install 'babylm-train[hub]'") from error
    row = 0
    try:
        with parquet.ParquetFile(path, read_dictionary=[field]) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise InputError(_missing(printable(path), field, key, names))
            groups = (file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            if sum(groups) > MAX_FILE_BYTES:
                raise InputError(f"{printable(path)} holds more than {MAX_FILE_BYTES:,} bytes: cut it up")
            columns = [field, "source"] if "source" in names and field != "source" else [field]
            size, most = 0, min(MAX_FILE_BYTES, (1 << 20) + MAX_RATIO * path.stat().st_size)
            for batch in file.iter_batches(1024, columns=columns):
                for cells in zip(
                    *batch.columns, strict=True
                ):  # one value at a time: a dictionary may repeat a long one
                    row += 1
                    text, source = cells[0].as_py(), cells[-1].as_py() if len(cells) > 1 else None
                    size += len(text) if isinstance(text, str) else 0
                    if size > most:
                        raise InputError(f"{printable(path)}, row {row}: unpacks to more than {most:,} letters")
                    name = source if isinstance(source, str) else path.name
                    yield _document(f"{printable(path)}, row {row}", field, text, name)
    except UnicodeDecodeError as error:
        raise InputError(f"{printable(path)}, after row {row}: not UTF-8") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {printable(path)}: {printable(error)}") from error


def _document(where: str, field: str, text: Any, source: str) -> Document:
    """A null counts as an empty document."""
    if text is not None and not isinstance(text, str):
        raise InputError(f"{where}: field {printable(field)} is a {type(text).__name__}, not text")
    if text and (reason := unusable(text)):
        raise InputError(f"{where}: {reason}")
    return Document(text or "", source)


def _missing(where: str, field: str, key: str, present: Sequence[str]) -> str:
    there = ", ".join(printable(name)[:40] for name in present[:10])
    return f"{where}: no field {printable(field)} ({key}); there are: {there or 'none'}"
