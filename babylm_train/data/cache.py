"""Results that are computed once: a folder per content hash, safe when two runs start together."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from babylm_train.errors import StorageError

MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """Hash of a JSON-able value, independent of key order: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(root: Path, kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `root/kind-key`, built by `build(folder)` if it is missing or damaged.

    Built aside and renamed, under a lock, so a killed or a second process never shows a half-written folder.
    A manifest holds each file's sha256 and is verified at every opening.

    Raises:
        StorageError: the folder cannot be written.
    """
    target = root / f"{kind}-{key}"
    if _intact(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind}-{key}.lock"):
            if _intact(target):
                return target
            aside = root / f".{kind}-{key}.{os.getpid()}"
            for left in root.glob(f".{kind}-{key}.[0-9]*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            aside.mkdir()
            try:
                build(aside)
                hashes = {str(p.relative_to(aside)): file_digest(p) for p in sorted(aside.rglob("*")) if p.is_file()}
                (aside / MANIFEST).write_text(json.dumps(hashes, indent=1))
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write the cache {target}: {error.strerror or error}") from error
    return target


def _intact(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        return all(file_digest(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError):
        return False
