"""Checkpoints that survive: written aside, synced and renamed; read back only if every byte is as it was.

A checkpoint is one file of torch.save: a zip archive of tensors and plain types, with a CRC-32 of each of its members.
It is loaded with `weights_only=True`, after all the checksums have been found right.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import pickle
import random
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from babylm_train.errors import InputError, StorageError, is_memory_error, one_line
from babylm_train.files import check_record, link, replaced, storage_errors, write_bytes
from babylm_train.state import RunState

log = logging.getLogger(__name__)

BEST = "checkpoint_best.pt"
ROWS = ("trainer.batch_size", "trainer.gradient_accumulation_steps")  # their product is what an update sees
SAME_UPDATES = {*ROWS, *(f"trainer.{k}" for k in ("device", "compile", "gradient_checkpointing", "deterministic"))}

# What zipfile, its decompressors and torch raise for bytes that are no checkpoint.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, LookupError, ValueError),
    *(TypeError, AttributeError, OverflowError),
)


class DamagedError(InputError):
    """A checkpoint whose bytes are not those that were written."""


PARTS = ("state", "model", "optimizer", "scheduler", "scaler", "curriculum", "average", "rng")


class Plain(pydantic.BaseModel):
    """What a checkpoint holds beside its tensors and the states that their owners check."""

    state: RunState
    metrics_bytes: pydantic.NonNegativeInt
    seconds: float
    threads: int
    hashes: dict[str, str] = {}
    config: dict[str, Any] = {}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: created when the first one is saved.
        keep_last: how many of the newest step and epoch checkpoints stay; the best always stays.
    """

    def __init__(self, directory: Path, keep_last: int) -> None:
        self.directory, self.keep_last = Path(directory), keep_last

    def check(self, size: int, saves: int) -> None:
        """Before training: can the checkpoints that will exist at a time, of about `size` bytes, be written here?

        Args:
            size: bytes of one. saves: the most that the run can write.

        Raises:
            StorageError: no permission, or not enough room.
        """
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
            write_bytes(self.directory / ".probe", b"x")
            (self.directory / ".probe").unlink()
            have = sum(p.stat().st_size for p in self.directory.glob("*.pt"))
            free = shutil.disk_usage(self.directory).free
        count = min(self.keep_last, saves) + 2  # the best, and one that is being written
        if free + have < size * count:
            raise StorageError(
                f"{self.directory}: {free / 2**20:,.0f} MiB free, but {count} checkpoints of "
                f"{size / 2**20:,.0f} MiB are needed"
            )

    def save(self, content: dict[str, Any], names: Sequence[str]) -> Path:
        """Writes `content` under the first name, links it under the others, and prunes.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        buffer, first = io.BytesIO(), self.directory / names[0]
        torch.save(content, buffer)
        with storage_errors(first):
            self.directory.mkdir(exist_ok=True)
            write_bytes(first, buffer.getbuffer())
            for name in names[1:]:
                self._link(first, name)
            self._prune(keep=names)
        return first

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, else the best, and its content; says which it had to pass over.

        Raises:
            InputError: it was written by another version of this program, or another program.
        """
        for path in [*self._by_age(), *self.directory.glob(BEST)]:
            if (content := _load_intact(path)) is not None:
                return path, content
        return None

    def best(self, update: int) -> tuple[Path, dict[str, Any]]:
        """The best checkpoint, which must be of `update`, and its content.

        Raises:
            StorageError: it is missing, damaged or another one.
        """
        for path in [*self.directory.glob(BEST), *self._by_age()]:
            content = _load_intact(path)
            if content is not None and content["state"]["updates"] == update:
                return path, content
        raise StorageError(
            f"{self.directory / BEST} of update {update} is missing or damaged, and no other copy of it is left: "
            f"delete {self.directory.parent} to run again"
        )

    def adopt_best(self, source: Path) -> None:
        """Makes `source`, a checkpoint that verified, the best one here."""
        with storage_errors(self.directory / BEST):
            self.directory.mkdir(exist_ok=True)
            self._link(source, BEST)

    def forget_after(self, update: int) -> None:
        """Before a run goes on from `update`: removes what is later, damaged, or left to prune."""
        with storage_errors(self.directory):
            for path in self._by_age():
                content = _load_intact(path)
                if content is None or content["state"]["updates"] > update:
                    path.unlink()
            self._prune(keep=())

    def _by_age(self) -> list[Path]:
        """Step and epoch checkpoints, the newest first; of one moment, the one with the larger number."""
        files = [p for p in self.directory.glob("checkpoint_*.pt") if p.name != BEST]
        return sorted(files, key=lambda p: (p.stat().st_mtime_ns, len(p.name), p.name), reverse=True)

    def _link(self, source: Path, name: str) -> None:
        with replaced(self.directory / name) as aside:
            link(source, aside)

    def _prune(self, keep: Sequence[str]) -> None:
        kept = {(self.directory / name).stat().st_ino for name in keep}  # a file may have several names
        for path in self._by_age():
            inode = path.stat().st_ino
            if inode not in kept and len(kept) >= self.keep_last:
                path.unlink()
            else:
                kept.add(inode)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, if its bytes are those that were written.

    Raises:
        DamagedError: missing, or changed since it was written. InputError: it cannot be read, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing: no room for a bomb
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise DamagedError(f"{path} unpacks to more than it holds: it is not loaded")
            if (member := archive.testzip()) is not None:
                raise DamagedError(f"{path} is damaged: {member} does not fit its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedError(f"no checkpoint: {path} is missing") from error
    except pickle.UnpicklingError as error:
        raise DamagedError(f"{path} holds more than tensors and plain values: it is not loaded") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of a place in the archive that is none
            raise DamagedError(f"{path} is no checkpoint: {error}") from error
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise DamagedError(f"{path} is no checkpoint: {type(error).__name__}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in PARTS):
        raise InputError(f"{path} is no checkpoint of this program")
    if odd := sorted(map(str, content["state"].keys() ^ {field.name for field in fields(RunState)})):
        raise InputError(f"{path} is of another version of this program: state.{odd[0]}")
    for key, value in content["state"].items():
        if isinstance(value, int) and not -1 <= value < 2**63:
            raise InputError(f"{path} is damaged: state.{key} is {value}")
    plain: Plain = check_record({k: content[k] for k in Plain.model_fields if k in content}, Plain, str(path))
    return {**content, "state": asdict(plain.state)}


def _load_intact(path: Path) -> dict[str, Any] | None:
    try:
        return load(path)
    except DamagedError as error:
        log.warning("%s; passed over", error)
        return None


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


@contextlib.contextmanager
def refuse_misfits() -> Iterator[None]:
    """What torch, or a state's owner, raises for a state that is not one of its own becomes an InputError."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if is_memory_error(error):
            raise
        raise InputError(f"the checkpoint does not fit this run: {type(error).__name__}: {one_line(error)}") from error


def refuse_other(mine: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    """Holds the configuration of a run against the one it is to go on from, both as `key.key: value`.

    Keys that only change how the same updates are computed may differ; the run is then not bitwise the same.

    Raises:
        InputError: naming up to three keys that differ.
    """
    changed = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if not set(changed) <= SAME_UPDATES or _rows_an_update(mine) != _rows_an_update(theirs):
        shown = "; ".join(f"{key} is {theirs.get(key)} there, {mine.get(key)} here" for key in changed[:3])
        raise InputError(f"{where} is of another configuration: {shown}")
    if changed:
        log.warning("%s was made with another %s: same updates, not bitwise", where, ", ".join(changed))


def _rows_an_update(config: dict[str, Any]) -> Any:
    rows, times = (config.get(key, 1) for key in ROWS)
    return rows * times if isinstance(rows, int) and isinstance(times, int) else (rows, times)


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
