"""Checkpoints that survive: written aside, synced and renamed; read back only if every byte is as it was.

A checkpoint is one file of torch.save: a zip archive of tensors and plain types, with a CRC-32 of each of its members.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
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
UNREADABLE = (  # what zipfile, its decompressors and torch raise for bytes that are no checkpoint
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, LookupError),
    *(ValueError, TypeError, AttributeError, OverflowError),
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
    processes: int = 1
    hashes: dict[str, str] = {}
    config: dict[str, Any] = {}


class Checkpoints:
    """The checkpoints of one run: `keep_last` of the newest of steps and epochs stay, and always the best."""

    def __init__(self, directory: Path, keep_last: int) -> None:
        self.directory, self.keep_last, self.tried = Path(directory), keep_last, False

    def check(self, size: int, saves: int) -> None:
        """Is there room for what `saves` checkpoints of about `size` bytes leave? Raises StorageError."""
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
            have = sum(p.stat().st_size for p in self.directory.glob("*.pt"))
            free = shutil.disk_usage(self.directory).free
        count = min(self.keep_last, saves) + 2  # the best, and one that is being written
        if free + have < size * count:
            sizes = f"{free / 2**20:,.0f} MiB free, but {count} checkpoints of {size / 2**20:,.0f} MiB are needed"
            raise StorageError(f"{self.directory}: {sizes}")

    def save(self, content: dict[str, Any], names: Sequence[str]) -> Path:
        """Writes `content` under the first name, links it under the others, and prunes.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints are untouched.
            InputError: at the first one, its content would not load again.
        """
        buffer, first = io.BytesIO(), self.directory / names[0]
        torch.save(content, buffer)
        if not self.tried:
            try:
                buffer.seek(0)
                torch.load(buffer, map_location="meta", weights_only=True)  # takes no memory
            except pickle.UnpicklingError as error:
                what = one_line(error).partition("WeightsUnpickler error: ")[2][:100]
                raise InputError(f"the state of this run is not of tensors and plain types alone: {what}") from error
            self.tried = True
        with storage_errors(first):
            self.directory.mkdir(exist_ok=True)
            write_bytes(first, buffer.getbuffer())
            for name in names[1:]:
                self.link_as(name, first)
            self._prune(keep=names)
        return first

    def newest(self, update: int | None = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint (of `update`) that verifies, else the best, and its content; tells what is passed over.

        Raises:
            InputError: it was written by another version of this program, or another program.
        """
        for path in [*self._by_age(), *self.directory.glob(BEST)]:
            content = _load_intact(path)
            if content is not None and update in (None, content["state"]["updates"]):
                return path, content
        return None

    def best(self, update: int) -> tuple[Path, dict[str, Any]]:
        """The best checkpoint, which is of `update`, and its content. Raises StorageError: it is missing or damaged."""
        if (found := self.newest(update)) is None:
            raise StorageError(f"{self.directory / BEST} of update {update} is gone or damaged: delete the run folder")
        return found

    def link_as(self, name: str, source: Path) -> None:
        """Puts `source`, a checkpoint that verified, here under `name`. Raises StorageError."""
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)  # without its parent: that may have been deleted
        with replaced(self.directory / name) as aside:
            link(source, aside)

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

    def _prune(self, keep: Sequence[str]) -> None:
        kept = {(self.directory / name).stat().st_ino for name in keep}  # a file may have several names
        for path in self._by_age():
            inode = path.stat().st_ino
            if inode not in kept and len(kept) >= self.keep_last:
                path.unlink()
            else:
                kept.add(inode)


class NoCheckpoints(Checkpoints):
    """Of a process that writes nothing."""

    def save(self, content: dict[str, Any], names: Sequence[str]) -> Path:
        return self.directory


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, if its bytes are those that were written.

    Raises:
        DamagedError: they are not. InputError: the file cannot be read, or is of another program or version.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            bomb = sum(entry.file_size for entry in archive.infolist()) > len(raw)  # torch.save compresses nothing
            if bomb or archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise DamagedError(f"{path} is damaged, or no checkpoint: {type(error).__name__}") from error
    known = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in PARTS)
    if not known or content["state"].keys() != {field.name for field in fields(RunState)}:
        raise InputError(f"{path} is no checkpoint of this version of this program")
    plain: Plain = check_record({k: content[k] for k in Plain.model_fields if k in content}, Plain, str(path))
    return {**content, "state": asdict(plain.state)}


def _load_intact(path: Path) -> dict[str, Any] | None:
    try:
        return load(path)
    except DamagedError as error:
        log.warning("%s; passed over", error)
        return None


def find_checkpoint(resume: str) -> Path:
    """What `resume` names: a checkpoint, or the folder of checkpoints of a run's directory. Raises InputError."""
    path = Path(resume)
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if os.path.isdir(folder):  # unlike pathlib's, of a name too long it is no error
        return folder
    if os.path.isfile(path):
        return path
    raise InputError(f"resume={resume}: no checkpoint there")


def refuse_other_run(identity: dict[str, Any], content: dict[str, Any], threads: int, processes: int = 1) -> list[str]:
    """What else a checkpoint was made with that changes no update, but perhaps its last bits.

    Raises InputError: it is of another corpus, tokenizer or configuration; names what differs.
    """
    for name, mine in identity.get("hashes", {}).items():
        if (theirs := content.get("hashes", {}).get(name)) != mine:
            what = f"its hash is {theirs} there, {mine} here; another study= begins anew"
            raise InputError(f"the checkpoint is of another {name}: {what}")
    others = [f"another {key}" for key in _refuse_other_config(identity.get("config", {}), content.get("config", {}))]
    saved = (content["threads"], content.get("processes", 1))
    for name, mine, theirs in zip(("threads", "processes"), (threads, processes), saved, strict=True):
        others += [f"{theirs} {name}, now there are {mine}"] * (mine != theirs)
    return others


@contextlib.contextmanager
def refuse_misfits() -> Iterator[None]:
    """What torch, or a state's owner, raises for a state that is not one of its own becomes an InputError."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if is_memory_error(error):
            raise
        raise InputError(f"the checkpoint does not fit this run: {type(error).__name__}: {one_line(error)}") from error


def _refuse_other_config(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys of two configurations, `key.key: value`, that differ and only change how the same updates are computed.

    Raises InputError: others differ; names up to three.
    """
    changed = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    if not set(changed) <= SAME_UPDATES or _rows_an_update(mine) != _rows_an_update(theirs):
        shown = "; ".join(f"{key} is {theirs.get(key)} there, {mine.get(key)} here" for key in changed[:3])
        raise InputError(f"the checkpoint is of another configuration: {shown}")
    return changed


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
