"""Commands in this process and an empty folder."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from babylm_train import cli


@pytest.fixture
def cache(tmp_path_factory) -> Path:
    """Corpora, tokenizers and tokens, kept for all tests of this process."""
    return Path(os.environ.get("BABYLM_TEST_CACHE", tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cache) -> Callable[..., tuple[int, str, str]]:
    """`run(*arguments)` -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        own = any(argument.startswith("data.cache_dir=") for argument in arguments)
        monkeypatch.setattr(sys, "argv", ["babylm-train", *arguments, *([] if own else [f"data.cache_dir={cache}"])])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run, tmp_path) -> Callable[..., str]:
    """`refused(*arguments, code=2)`: the one line on standard error; nothing may have been written."""

    def call(*arguments: str, code: int = 2) -> str:
        before = contents(tmp_path)  # lock files as well
        ended, out, err = run(*arguments)
        lines = [line for line in err.splitlines() if line.strip() and not line.startswith("WARNING: ")]
        assert (ended, len(lines)) == (code, 1), err + out
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert "\x1b" not in out
        assert contents(tmp_path) == before
        return lines[0]

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}
