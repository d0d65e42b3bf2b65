"""The one place that writes files aside and renames them, and that reads back what may be damaged."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from babylm_train.errors import InputError, StorageError, explain_invalid, printable

T = TypeVar("T")

MANIFEST = "manifest.json"
DAMAGE = (ValueError, RecursionError, yaml.YAMLError)  # ValueError: of json, pydantic and decoding, too


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """An OSError inside becomes a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a name to write a file or a folder under, which at the end is synced and renamed to `path`.

    A kill at any moment leaves the old content or the new one. Raises StorageError: no room, no right, no such folder.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            path.parent.stat()  # a run whose directory was deleted is not to make another one
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # by a process that was killed
                _remove(left)
            yield aside
            for file in [aside, *aside.rglob("*")]:
                _sync(file)
            if aside.is_dir():
                _remove(path)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file aside and renames it, as write_text and write_json do. Raises StorageError."""
    with replaced(path) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """See write_bytes; what is no Unicode, or what a terminal would obey, is written as an escape."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
    write_bytes(path, text.encode("utf8", "backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def link(source: Path | str, target: Path | str) -> None:
    """A hard link at `target`, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases, of which a few lines can unfold to more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def read(path: Path, kind: type[T] | Any) -> T:
    """What a .json or .yaml file holds, as a `kind`: a type, dataclass or pydantic model. Raises InputError: unfit."""
    try:
        text = _read_text(path, "strict")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged: {printable(error)[:200]}") from error
    return check_record(value, kind, str(path))


def read_lines(path: Path, kind: type[T] | Any) -> list[T]:
    """What the lines of a .jsonl file hold, each a `kind`, without a last one that a kill has cut. Errors as `read`."""
    values = {}
    for number, line in enumerate(_read_text(path, "surrogateescape").split("\n")[:-1], 1):
        try:
            values[f"line {number}"] = json.loads(line)
        except DAMAGE as error:
            raise InputError(f"{path}, line {number} is damaged: {printable(error)[:200]}") from error
    return list(check_record(values, dict[str, kind], str(path)).values())  # type: ignore[valid-type]


def _read_text(path: Path, errors: str) -> str:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file")  # a pipe would never end
        return path.read_text(encoding="utf8", errors=errors)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def check_record(value: Any, kind: type[T] | Any, where: str) -> T:
    """`value` as a `kind`. Raises InputError: it does not fit, or holds text that is no Unicode; names the field."""
    try:
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
        return TypeAdapter(kind).validate_python(value)
    except DAMAGE as error:
        why = explain_invalid(error) if isinstance(error, ValidationError) else printable(error)[:200]
        raise InputError(f"{where} is damaged: {why}") from error


def digest(value: Any) -> str:
    """Hash of a JSON-able value, independent of key order: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(root: Path, kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `root/kind-key`; where it does not fit the hashes in its manifest, `build(folder)` makes it anew."""
    target = root / f"{kind}-{key}"
    if _intact(target):
        return target
    with storage_errors(target):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind}-{key}.lock"):
            if not _intact(target):
                with replaced(target) as aside:
                    aside.mkdir()
                    build(aside)
                    (aside / MANIFEST).write_text(json.dumps(_hash_files(aside), indent=1))
    return target


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def _intact(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes()) == _hash_files(folder))
    except (OSError, ValueError, RecursionError):
        return False
