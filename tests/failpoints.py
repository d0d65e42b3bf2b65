"""Faults at every step by which files below a folder are written: open, mid-write, fsync, rename, link, unlink.

The steps are the calls themselves, replaced from outside: the code under test holds no hook.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

KILL = "SIGKILL"
FAULTS = (KILL, "ENOSPC", "EIO")
GROWING = ("open", "write", "fsync", "link")  # what a full disk refuses; it still renames and removes


class Failpoints:
    """Counts the steps below `folder` in `steps`; the step number `at` (from 0) meets `fault`.

    SIGKILL ends this process at once. ENOSPC is met by every later step that needs room, EIO by every later step: a
    disk that is full stays full. Of a write, half the bytes have gone out by then.
    """

    def __init__(self, folder: Path, at: int | None = None, fault: str | None = None) -> None:
        self.folder, self.at, self.fault = str(Path(folder).resolve()), at, fault
        self.steps: list[str] = []

    def __enter__(self) -> Failpoints:
        self.real_open, self.patches = io.open, contextlib.ExitStack()
        for name in ("fsync", "rename", "replace", "link", "unlink"):
            self.patches.enter_context(mock.patch.object(os, name, self._guarded(name, getattr(os, name))))
        self.patches.enter_context(mock.patch.object(io, "open", self._open))
        return self

    def __exit__(self, *_: object) -> None:
        self.patches.close()

    def reach(self, step: str, path: str) -> None:
        """A step is about to be taken (a write: is half done)."""
        if not os.path.abspath(path).startswith(self.folder):
            return
        number = len(self.steps)
        self.steps.append(f"{step} {os.path.basename(path)}")
        if self.at is None or number < self.at:
            return
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.at or self.fault == "EIO" or step in GROWING:
            code = getattr(errno, str(self.fault))
            raise OSError(code, os.strerror(code), path)

    def _guarded(self, name: str, call: Any) -> Any:
        def guarded(what: Any, *rest: Any, **more: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else rest[0] if rest else what
            self.reach(name, os.fspath(target))
            return call(what, *rest, **more)

        return guarded

    def _open(self, path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return self.real_open(path, mode, *rest, **more)
        self.reach("open", os.fspath(path))
        return _File(self, self.real_open(path, mode, *rest, **more), os.fspath(path))


class _File:
    """A file whose writes come in two halves."""

    def __init__(self, points: Failpoints, file: Any, path: str) -> None:
        self._points, self._file, self._path = points, file, path

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._points.reach("write", self._path)
        return half + self._file.write(data[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
