"""Checkpoints that survive: written aside, synced, renamed, hashed; read back only if they verify.

A checkpoint is one torch file of tensors and plain types, loaded with `weights_only=True`. Beside it stands
`NAME.sha256`, in the format of sha256sum. While a file is being replaced its .sha256 names the old and the new hash, so
at every moment, a kill included, the file on disk is one that its .sha256 knows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from babylm_train.errors import InputError, StorageError

log = logging.getLogger(__name__)

BEST = "checkpoint_best.pt"
ROWS = ("trainer.batch_size", "trainer.gradient_accumulation_steps")  # their product is what an update sees
SAME_UPDATES = {*ROWS, *(f"trainer.{k}" for k in ("device", "compile", "gradient_checkpointing", "deterministic"))}

# What zipfile and torch raise for files that are hashed and yet none of torch's.
UNREADABLE = (zipfile.BadZipFile, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: created when the first one is saved.
        keep_last: how many of the newest step and epoch checkpoints stay; the best always stays.
    """

    def __init__(self, directory: Path, keep_last: int) -> None:
        if keep_last < 1:
            raise InputError(f"trainer.keep_last must be at least 1, got {keep_last}")
        self.directory, self.keep_last = Path(directory), keep_last

    def check(self, size: int, saves: int) -> None:
        """Before training: can the checkpoints that will exist at a time, of about `size` bytes, be written here?

        Args:
            size: bytes of one. saves: the most that the run can write.

        Raises:
            StorageError: no permission, or not enough room.
        """
        with _storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
            _write(probe := self.directory / f".probe.{os.getpid()}.tmp", b"x")
            probe.unlink()
        have = sum(p.stat().st_size for p in self.directory.glob("*.pt"))
        count = min(self.keep_last, saves) + 2  # the best, and one that is being written
        if (free := shutil.disk_usage(self.directory).free) + have < size * count:
            raise StorageError(
                f"{self.directory}: {free / 2**20:,.0f} MiB free, but {count} checkpoints of "
                f"{size / 2**20:,.0f} MiB are needed"
            )

    def save(self, content: dict[str, Any], names: Sequence[str]) -> Path:
        """Writes `content` under the first name, links it under the others, and prunes.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getbuffer()
        digest = hashlib.sha256(data).hexdigest()
        first = self.directory / names[0]
        with _storage_errors(first):
            self.directory.mkdir(parents=True, exist_ok=True)
            _replace(first, digest, lambda aside: _write(aside, data))
            for name in names[1:]:
                _replace(self.directory / name, digest, lambda aside: _link(first, aside))
            self._prune(keep=set(names))
        return first

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, else the best, and its content; says which it had to pass over."""
        for path in [*self._by_age(), *self.directory.glob(BEST)]:
            content = self._verified(path)
            if content is not None:
                return path, content
        return None

    def best(self, update: int) -> tuple[Path, dict[str, Any]]:
        """The best checkpoint, which must be of `update`, and its content.

        Raises:
            StorageError: it is missing, damaged or another one.
        """
        for path in [self.directory / BEST, *self._by_age()]:
            content = self._verified(path) if path.exists() else None
            if content is not None and content["state"]["updates"] == update:
                return path, content
        raise StorageError(
            f"{self.directory / BEST} of update {update} is missing or damaged, and no other copy of it is left: "
            f"delete {self.directory.parent} to run again"
        )

    def adopt_best(self, source: Path) -> None:
        """Makes `source`, a checkpoint that verified, the best one here."""
        target = self.directory / BEST
        with _storage_errors(target):
            self.directory.mkdir(parents=True, exist_ok=True)
            _replace(target, hashlib.sha256(source.read_bytes()).hexdigest(), lambda aside: _link(source, aside))

    def forget_after(self, update: int) -> None:
        """Removes step and epoch checkpoints of later updates, so that a run taken back does not jump ahead again."""
        for path in self._by_age():
            content = self._verified(path)
            if content is not None and content["state"]["updates"] > update:
                path.unlink()
                _hash_file(path).unlink(missing_ok=True)

    def _by_age(self) -> list[Path]:
        files = [p for p in self.directory.glob("checkpoint_*.pt") if p.name != BEST]
        return sorted(files, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)

    def _verified(self, path: Path) -> dict[str, Any] | None:
        try:
            return load(path)
        except InputError as error:
            log.warning("%s; passed over", error)
            return None

    def _prune(self, keep: set[str]) -> None:
        inodes = {(self.directory / name).stat().st_ino for name in keep}
        kept = len(inodes)
        for path in self._by_age():
            inode = path.stat().st_ino
            if inode in inodes:
                continue
            if kept < self.keep_last:
                inodes.add(inode)
                kept += 1
            else:
                path.unlink()
                _hash_file(path).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, if its bytes are those that were written.

    Raises:
        InputError: missing, without its .sha256, or changed since it was written.
    """
    try:
        data, known = path.read_bytes(), _known_hashes(path)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint: {error.filename} is missing") from error
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() not in known:
        raise InputError(f"{path} is damaged: its sha256 is not the one in {_hash_file(path).name}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch.save compresses nothing: no room for a bomb
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise InputError(f"{path} unpacks to more than it holds: it is not loaded")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors and plain values: it is not loaded") from error
    except UNREADABLE as error:
        raise InputError(f"{path} is no checkpoint: {type(error).__name__}") from error
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("updates"), int):
        raise InputError(f"{path} is no checkpoint of this program")
    return content


def find_checkpoint(resume: str) -> Path:
    """What `resume` names: a checkpoint, or the folder of checkpoints of a run's directory.

    Raises:
        InputError: there is none.
    """
    path = Path(resume)
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    try:
        if any(folder.glob("checkpoint_*.pt")):
            return folder
        if path.is_file():
            return path
    except OSError as error:  # a name longer than the file system takes
        raise InputError(f"resume={resume}: no checkpoint there: {error.strerror}") from error
    raise InputError(f"resume={resume}: no checkpoint there")


def refuse_other_run(identity: dict[str, Any], content: dict[str, Any], threads: int) -> None:
    """Holds a checkpoint against the identity of the run that is to go on from it.

    Raises:
        InputError: it is of another corpus, tokenizer or configuration; names what differs.
    """
    for name, mine in identity.get("hashes", {}).items():
        if (theirs := content.get("hashes", {}).get(name)) != mine:
            raise InputError(f"the checkpoint is of another {name}: its hash is {theirs} there, {mine} here")
    refuse_other(identity.get("config", {}), content.get("config", {}), "the checkpoint")
    if content["threads"] != threads:
        warn = "the checkpoint was made with %d threads, now there are %d: same updates, not bitwise"
        log.warning(warn, content["threads"], threads)


def refuse_other(mine: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    """Holds the configuration of a run against the one it is to go on from, both as `key.key: value`.

    Keys that only change how the same updates are computed may differ; the run is then not bitwise the same.

    Raises:
        InputError: naming up to three keys that differ.
    """
    changed = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    rows, rows_there = ([c.get(key, 1) for key in ROWS] for c in (mine, theirs))
    if not set(changed) <= SAME_UPDATES or rows[0] * rows[1] != rows_there[0] * rows_there[1]:
        shown = "; ".join(f"{key} is {theirs.get(key)} there, {mine.get(key)} here" for key in changed[:3])
        raise InputError(f"{where} is of another configuration: {shown}")
    if changed:
        log.warning("%s was made with another %s: same updates, not bitwise", where, ", ".join(changed))


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _known_hashes(path: Path) -> list[str]:
    lines = _hash_file(path).read_text(encoding="ascii", errors="replace").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _replace(path: Path, digest: str, write: Any) -> None:
    """Puts what `write` makes under `path`, by rename; the .sha256 is valid before, between and after."""
    hashes = _hash_file(path)
    old = _known_hashes(path) if hashes.exists() and path.exists() else []
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        if old:
            _write_text(hashes, "".join(f"{h}  {path.name}\n" for h in dict.fromkeys([digest, *old])))
        else:
            _write_text(hashes, f"{digest}  {path.name}\n")
        os.rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    if old:
        _write_text(hashes, f"{digest}  {path.name}\n")


def _write(path: Path, data: memoryview | bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(aside, text.encode())
        os.rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _link(source: Path, aside: Path) -> None:
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(source, aside)  # another file system, or one without hard links


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; earlier checkpoints are intact") from error


def rng_state() -> dict[str, Any]:
    """Python's, NumPy's, torch's and CUDA's global generators, as tensors and plain types."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is what a user's code may draw from
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *(float(x) for x in rest)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what rng_state returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:  # fewer devices may be visible now
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
