"""Faults at every step by which files below a folder are written: open, mid-write, fsync, rename, link, unlink.

The steps are the calls themselves, replaced from outside: the code under test holds no hook.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

KILL = "SIGKILL"
FAULTS = (KILL, "ENOSPC", "EIO")
GROWING = ("open", "write", "fsync", "link")  # what a full disk refuses; it still renames and removes


class Failpoints(contextlib.ExitStack):
    """Counts the steps below `folder` in `steps`; the step number `at` (from 0) meets `fault`.

    SIGKILL ends this process at once. ENOSPC is met by every later step that needs room, EIO by every later step: a
    disk that is full stays full. Of a write, half the bytes have gone out by then.
    """

    def __init__(self, folder: Path, at: int | None = None, fault: str | None = None) -> None:
        super().__init__()
        self.folder, self.at, self.fault = str(Path(folder).resolve()), at, fault
        self.steps: list[str] = []

    def __enter__(self) -> Failpoints:
        for name in ("fsync", "rename", "replace", "link", "unlink"):
            self.enter_context(mock.patch.object(os, name, partial(self._call, name, getattr(os, name))))
        self.enter_context(mock.patch.object(io, "open", partial(self._open, io.open)))
        return self

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

    def _call(self, name: str, call: Any, what: Any, *rest: Any, **more: Any) -> Any:
        target = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else rest[0] if rest else what
        self.reach(name, os.fspath(target))
        return call(what, *rest, **more)

    def _open(self, real: Any, path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return real(path, mode, *rest, **more)
        self.reach("open", os.fspath(path))
        file = real(path, mode, *rest, **more)
        file.write = partial(self._write, file, file.write, os.fspath(path))
        return file

    def _write(self, file: Any, write: Any, path: str, data: Any) -> int:
        """In two halves."""
        half = len(data) // 2
        write(data[:half])
        file.flush()
        self.reach("write", path)
        return half + write(data[half:])
