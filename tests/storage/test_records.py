"""Files that are read back, whatever they hold: one line that names the file, or a cache that is built again."""

import dataclasses
import itertools
import os

import pytest

from babylm_train.errors import InputError
from babylm_train.files import cached, read, read_lines, write_json
from babylm_train.metrics import Record


@dataclasses.dataclass
class Known:
    status: str
    updates: int
    losses: list[float] = dataclasses.field(default_factory=list)


GOOD = b'{"status": "finished", "updates": 3}'
VALUES = [b"three", b"null", b"3.5", b"[3]", b"1e999", b"NaN", b"{}"]
DAMAGED = [
    *(GOOD.replace(b"3", value) for value in VALUES),
    *(GOOD.replace(b"finished", b"\\ud800"), GOOD.replace(b"finished", b"\xc3("), GOOD.replace(b'"finished"', b"7")),
    *(b"", b"null", b"[]", b"{}", b"[1, 2", GOOD[:-1], GOOD + GOOD, b"\x00" * 64, b"\xff\xfe{}", b'{"updates": 3}'),
    *(b'{"losses": ["a"], "status": "x", "updates": 3}', b"[" * 100_000, b'{"a":' * 100_000),
]
JSON = [GOOD.replace(b"3", b"9" * 5000), b"{'status': 1}"]
LAUGHS = [f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n" for old, new in itertools.pairwise("abcdefghijk")]
YAML = [
    *("".join(["a: &a [x, x]\n", *LAUGHS]).encode(), b"a: &a [*a]", b"a: !!python/object/apply:os.mkdir [canary]"),
    *(b"a: b: c", b"\ta: 1", b"a: [1", b"%", b"? [1, 2]\n: 3", b"status: 2026-11-25\nupdates: 3"),
    b"status: finished\nupdates: " + b"9" * 5000,
]


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".jsonl"])
def test_whatever_a_file_holds_it_is_one_line_that_names_it(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"record{suffix}"
    for content in DAMAGED + (YAML if suffix == ".yaml" else JSON):
        path.write_bytes(content + b"\n" * (suffix == ".jsonl"))
        with pytest.raises(InputError, match=path.name):
            read_lines(path, Known) if suffix == ".jsonl" else read(path, Known)
    assert os.listdir(tmp_path) == [path.name]


def test_a_place_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "folder.json", "loop.json", "endless.json", "missing.json"):
        for reader in (read, read_lines):
            with pytest.raises(InputError, match=name):
                reader(tmp_path / name, Known)


def test_what_is_right_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"status": "पूरा", "updates": 3, "more": 1})
    assert read(tmp_path / "a.json", Known) == Known("पूरा", 3)
    write_json(tmp_path / "b.json", {"status": "\x1b[2J\x9b", "updates": 3})
    assert read(tmp_path / "b.json", Known).status == "\x1b[2J\x9b"
    assert (tmp_path / "b.json").read_text(encoding="utf8").replace("\n", "").isprintable()
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + GOOD + b"\n" + GOOD[:9])
    assert read_lines(tmp_path / "a.jsonl", Known) == [Known("finished", 3)] * 2
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n{}\n")
    with pytest.raises(InputError, match="line 2"):
        read_lines(tmp_path / "a.jsonl", Known)


def test_a_record_goes_on_where_its_checkpoint_was_taken(tmp_path):
    record = Record(tmp_path)
    record.start()
    record.log(step=1)
    offset = record.offset()
    record.log(step=2)
    record.start(offset)
    record.log(step=3)
    assert [line["step"] for line in record.lines()] == [1, 3]
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        record.start(1000)


def test_a_cached_folder_that_is_damaged_is_made_anew(tmp_path):
    made = []

    def build(folder):
        made.append(folder)
        (folder / "a.txt").write_text("a")

    folder = cached(tmp_path, "kind", "key", build)
    (folder / "a.txt").unlink()
    for name, text in (("manifest.json", "{}"), ("manifest.json", '{"a.'), ("a.txt", "b"), ("b", "")):
        for _ in range(2):
            assert cached(tmp_path, "kind", "key", build) == folder
        assert (folder / "a.txt").read_text() == "a"
        (folder / name).write_text(text)
    cached(tmp_path, "kind", "key", build)
    assert len(made) == 6
