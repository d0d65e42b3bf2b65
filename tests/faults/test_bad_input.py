"""Bad input of every kind through the command line: one line that names the culprit, the right code, nothing written.

tests/test_cli.py holds as many mistakes in keys and values; these are the stranger ones, and those in files.
"""

import gzip
import os
import pickle
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from forked import SMALL, command

from babylm_train.checkpoint import load
from babylm_train.errors import InputError

SECONDS = 10  # at most, each


@pytest.fixture
def refused(tmp_path):
    """`refused(arguments, code)`: the line on standard error; nothing but a cache may have been written."""

    def call(arguments: list[str], code: int = 2, **environment: str) -> str:
        before = contents(tmp_path)
        child = command([*SMALL, *arguments], tmp_path, tmp_path / "cache/said", **environment)
        assert child.wait(60) == code, child.err
        assert child.seconds < SECONDS
        lines = [line for line in child.err.splitlines() if not line.startswith("WARNING: ")]
        assert len(lines) == 1, child.err
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert "\x1b" not in child.out
        assert contents(tmp_path) == before
        return lines[0]

    return call


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_relative_to(folder / "cache")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != ".lock"}


CONFIGS = {
    "study=../../x": "study=../../x: the name of a directory is needed",
    "study=.hidden": "study=.hidden: the name of a directory is needed",
    "study=": "study=: the name of a directory is needed",
    "study='a\x1b[31m'": "study='a\\x1b[31m' holds a control character",
    "data.validation_share=nan": "validation_share",
    "trainer.epochs=99999999999999999999": "trainer.epochs must be at most 100000, got 99999999999999999999",
    "trainer.max_steps=99999999999999999999": "trainer.max_steps must be at most 100000000",
    "trainer.batch_size=99999999999999999999": "trainer.batch_size must be at most 1000000",
    "data.max_length=99999999999": "data.max_length must be at most 1000000, got",
    "tokenizer.vocab_size=99999999999": "tokenizer.vocab_size must be at most 1000000, got",
    "seed=99999999999999999999999": "seed must be at most 4294967295, got",
    "model.config.n_layer=99999999": "model.config.n_layer must be at most 10000, got 99999999",
    "optimizer.lr=nan": "optimizer: Invalid learning rate: nan",
    "optimizer.lr=${nothing}": "Interpolation key 'nothing' not found full_key: optimizer.lr",
    "optimizer.lr=${optimizer.lr}": "Recursive interpolation detected full_key: optimizer.lr",
    "optimizer.lr=${oc.env:NO_SUCH_VARIABLE}": "Environment variable 'NO_SUCH_VARIABLE' not found",
    "trainer.max_grad_norm=nan": "trainer.max_grad_norm must be positive, got nan",
    "model.config.n_embd=0": "model: ",
    "experiment=nothing": "experiment=nothing: no such option (there are",
    "hydra/launcher=nothing": "hydra/launcher=nothing: no such option",
    "--config-name nothing": "Cannot find primary config 'nothing'",
    "-m seed=1": "unrecognized arguments: seed=1: --multirun (-m) and other options stand before the first key=value",
    "tokenizer=pretrained": "tokenizer.vocab_size: the chosen options have no such key",
    "resume=" + "क" * 100: "no checkpoint there",
    "hydra.run.dir=out/${seed": "mismatched input '{'",
}


@pytest.mark.parametrize("arguments", CONFIGS)
def test_configurations(refused, arguments):
    line = refused(["data.words=1500", *arguments.split()])
    assert CONFIGS[arguments] in line


def text_file(tmp_path: Path, name: str, content: bytes) -> list[str]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return ["data=text", f"data.train='{path}'"]


WORDS = "राम घर गया\nसीता वन गई\nमोहन शहर गया\n"
CORPORA = {  # name: (content, what the line says)
    "empty.txt": (b"", "data.train holds no document"),
    "blank.txt": (b" \n\xe2\x80\x8b\n\n", "data.train holds no document (dropped: 3 empty)"),
    "latin1.txt": ("राम\n".encode() + b"caf\xe9\n", "latin1.txt, line 2, byte 4: not UTF-8 (0xe9)"),
    "utf16.txt": (WORDS.encode("utf-16"), "utf16.txt, line 1: this is UTF-16"),
    "nul.txt": (b"ok\na\0b\n", "nul.txt, line 2, byte 2: NUL"),
    "one.txt": (b"one document\n", "data: one document cannot be split"),
    "same.txt": (b"the same\n" * 9, "data: one document cannot be split"),
    "escape.txt": (b"a \x1b[2J b\n" * 3, "data.train holds no document (dropped: 3 control characters)"),
    "\x1b[2J.txt": (b"\xff", "\\x1b[2J.txt' holds a control character"),
    "words.doc": (b"words", "words.doc does not end in one of .txt"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": "b"\n', "broken.jsonl, line 2: broken JSON"),
    "field.jsonl": ('{"पाठ": "क"}\n'.encode(), "field.jsonl, line 1: no field text (data.text_field); there are: पाठ"),
    "number.jsonl": (b'{"text": 1}\n', "number.jsonl, line 1: the text field is a int, not text"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "half.jsonl, line 1: a NUL or half a surrogate pair"),
    "array.json.gz": (b'[{"text": "a"}]', "array.json.gz, line 1: a JSON object a line is expected, this is a list"),
    "none.parquet": (b"PAR1", "cannot read"),
    "हिन्दी पाठ/टूटी हुई.txt": (b"ok\n\xe0\xa4\n", "/हिन्दी पाठ/टूटी हुई.txt, line 2, byte 1: not UTF-8"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(refused, tmp_path, name):
    content, message = CORPORA[name]
    assert message in refused(text_file(tmp_path, name, content))


def test_files_that_are_none(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder.txt").mkdir()
    for name, message in {
        "pipe.txt": "pipe.txt is no regular file",
        "zero.txt": "zero.txt is no regular file",
        "loop.txt": "loop.txt is no regular file",
        "folder.txt": "folder.txt is a folder",
        f"{'क' * 100}.txt": "no such file",
    }.items():
        line = refused(["data=text", f"data.train='{name}'"])
        assert "data.train" in line
        assert message in line
    good = text_file(tmp_path, "good.txt", WORDS.encode())
    assert "data.validation: no such file" in refused([*good, "data.validation=none.txt"])
    empty = text_file(tmp_path, "empty.txt", b"")[1].partition("=")[2]
    assert "data.validation holds no document" in refused([*good, f"data.validation={empty}"])


class Touch:
    """Unpickled, it would leave a file `canary`."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def test_checkpoints(refused, tmp_path):
    folder = tmp_path / "other/checkpoints"
    folder.mkdir(parents=True)
    path = folder / "checkpoint_step_1.pt"
    for make, message in (
        (lambda: torch.save({"state": {"updates": 1}}, path), "is no checkpoint of this program"),
        (lambda: path.write_bytes(pickle.dumps(Touch())), "is no checkpoint: BadZipFile"),
        (lambda: torch.save({"state": Touch()}, path), "holds more than tensors and plain values"),
        (lambda: torch.save([1, 2], path), "is no checkpoint of this program"),
    ):
        make()
        with pytest.raises(InputError, match=message):
            load(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "no checkpoint there verifies" in refused(["data.words=1500", f"resume={folder}"])
    assert not (tmp_path / "canary").exists()


def test_directories(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write file" in refused(["data.words=1500", "hydra.run.dir=file"], code=4)
    assert "cannot write" in refused(["data.words=1500", "hydra.run.dir=file/below"], code=4)
    assert "cannot write" in refused(["data.words=1500", "hydra.run.dir=/proc/none"], code=4)
    assert "cannot write the cache" in refused(["data.words=1500", "data.cache_dir=file/below"], code=4)
    assert "File name too long" in refused(["data.words=1500", f"hydra.run.dir='{'क' * 100}'"], code=4)
    (tmp_path / "used").mkdir()
    with FileLock(tmp_path / "used/.lock"):
        assert "used is in use by another run" in refused(["data.words=1500", "hydra.run.dir=used"])
