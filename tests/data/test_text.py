import gzip
import json
import socket
import time
from pathlib import Path

import pytest

from babylm_train.data import network, text
from babylm_train.data.corpus import Corpus
from babylm_train.data.hub import HubDataset
from babylm_train.data.text import TextFiles
from babylm_train.errors import InputError

COMMON = {"text_field": "text", "max_words": None, "validation_share": 0.5, "seed": 0, "max_length": 8}


def files(tmp_path: Path, train, validation=None, separator="line", **options) -> TextFiles:
    chosen = {**COMMON, "cache_dir": str(tmp_path / "cache"), **options}
    return TextFiles(train=train, validation=validation, separator=separator, **chosen)


def write(path: Path, content: bytes | str) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def documents(corpus: Corpus) -> list[str]:
    return sorted([*corpus.train, *corpus.validation])


def test_every_format_reads_the_same(tmp_path):
    from pyarrow import Table, parquet

    texts = ["राम घर", "सीता वन", "a b"]
    rows = "".join(json.dumps({"text": t, "source": "s"}) + "\n\n" for t in texts)
    table = tmp_path / "d.parquet"
    parquet.write_table(Table.from_pydict({"text": [*texts, None], "source": ["s"] * 4}), table)
    paths = [
        write(tmp_path / "a.txt", "\ufeff" + "\r\n".join(texts)),
        write(tmp_path / "b.jsonl", rows),
        write(tmp_path / "c.json.gz", rows),
        write(tmp_path / "c.jsonl.gz", rows),
        str(table),
    ]
    for path in paths:
        corpus = files(tmp_path, path).load()
        assert documents(corpus) == sorted(texts)
        assert corpus.train.source_names == ["a.txt" if path.endswith("txt") else "s"]
    assert corpus.report["dropped"]["empty"] == 1  # the null of the parquet file


def test_blank_lines_and_globs(tmp_path):
    folder = tmp_path / "हिन्दी"
    (folder / "deep").mkdir(parents=True)
    write(folder / "a.txt", "एक\nदो\n\n \nतीन")
    write(folder / "deep" / "b.txt", "चार")
    corpus = files(tmp_path, [str(folder / "**/*.txt"), str(folder / "a.txt")], separator="blank_line").load()
    assert documents(corpus) == sorted(["एक\nदो", "तीन", "चार"])
    assert corpus.report["files"] == 2
    assert documents(files(tmp_path, str(folder / "a.txt")).load()) == sorted(["एक", "दो", "तीन"])


def test_what_changed_is_read_again(tmp_path):
    path = write(tmp_path / "a.txt", "एक\nदो")
    first = files(tmp_path, path).load()
    assert files(tmp_path, path).load().fingerprint == first.fingerprint
    write(tmp_path / "a.txt", "एक\nतीन")
    assert documents(files(tmp_path, path).load()) == sorted(["एक", "तीन"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "data.train holds no document"),
        ("a.txt", b"ok\nab\xffc\n", "a.txt, line 2, byte 3 (offset 5 in the file): not UTF-8 (0xff)"),
        ("a.txt", b"\xef\xbb\xbfab\xffc\n", "a.txt, line 1, byte 6 (offset 5 in the file): not UTF-8 (0xff)"),
        ("a.txt", b"\xff\xfe\x00abc\n", "a.txt is UTF-16: convert it to UTF-8"),
        ("a.txt.gz", b"ok\nab\x00", "a.txt.gz, line 2, byte 3 (offset 5 in the file): NUL"),
        ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n', "a.jsonl, line 2, column 10: broken JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl, line 2: a JSON object a line is expected, this is a list"),
        (
            "a.jsonl",
            b'{"t\\u001bx": "a", "body": 1}\n',
            "line 1: no field text (data.text_field); there are: t\\x1bx, body",
        ),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl, line 1: field text is a int, not text"),
        ("a.jsonl", b'{"text": "a\\u0000"}\n', "a.jsonl, line 1: a NUL character"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl, line 1: half a surrogate pair"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl, line 1: JSON that cannot be read"),
        ("a.parquet", b"PAR1 not at all", "cannot read"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(InputError) as caught:
        files(tmp_path, write(tmp_path / name, content)).load()
    shown = str(caught.value)
    assert message in shown
    assert shown.isprintable()


def test_broken_archives(tmp_path):
    whole = gzip.compress(b"some text\n" * 1000)
    for data in (whole[:-12], b"no archive"):
        path = tmp_path / "a.txt.gz"
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"cannot read .*a\.txt\.gz: "):
            files(tmp_path, str(path)).load()


def test_reading_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(text, "MAX_FILE_BYTES", 50_000)
    line = write(tmp_path / "line.txt.gz", b"short\n" + b"a" * 1001)
    with pytest.raises(InputError, match=r"line\.txt\.gz, line 2 is longer than 1,000 bytes"):
        files(tmp_path, line).load()
    document = write(tmp_path / "doc.txt", b"some words\n" * 100)
    with pytest.raises(InputError, match=r"doc\.txt, line 91: this document has more than 1,000 bytes"):
        files(tmp_path, document, separator="blank_line").load()
    bomb = write(tmp_path / "bomb.txt.gz", b"aaaaaaa\n" * 100_000)
    with pytest.raises(InputError, match=r"bomb\.txt\.gz holds more than 50,000 bytes"):
        files(tmp_path, bomb).load()


def test_wrong_names_are_found_at_once(tmp_path):
    good = write(tmp_path / "a.txt", "एक\nदो")
    write(tmp_path / "b.csv", "x")
    for train, validation, options, message in [
        (str(tmp_path / "none.txt"), None, {}, "data.train: no such file: "),
        (str(tmp_path / "*.jsonl"), None, {}, "data.train: no file matches "),
        (str(tmp_path), None, {}, "is a folder; give a glob"),
        (str(tmp_path / "*"), None, {}, "b.csv does not end in one of .txt"),
        ([], None, {}, "data.train names no file"),
        (good, str(tmp_path / "x\x1b.txt"), {}, "data.validation: no such file: "),
        (good, None, {"separator": "page"}, "data.separator must be line or blank_line, got page"),
        (good, None, {"max_length": 1}, "data.max_length must be at least 2"),
    ]:
        with pytest.raises(InputError) as caught:
            files(tmp_path, train, validation, **options)
        assert message in str(caught.value)
        assert str(caught.value).isprintable()


def hub(tmp_path: Path, name: str, **options) -> HubDataset:
    chosen = {**COMMON, "revision": None, "config_name": None, "train_split": "train", "validation_split": None}
    return HubDataset(name=name, **{**chosen, "cache_dir": str(tmp_path / "cache"), **options})


def test_hub_dataset_from_local_paths(tmp_path):
    from datasets import Dataset, DatasetDict

    texts = ["राम घर", "सीता वन"]
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "train.jsonl", "".join(json.dumps({"text": t, "source": "s"}) + "\n" for t in texts))
    assert documents(hub(tmp_path, str(folder)).load()) == texts
    data = Dataset.from_dict({"text": texts})
    DatasetDict({"train": data, "validation": Dataset.from_dict({"text": ["ab"]})}).save_to_disk(tmp_path / "saved")
    saved = hub(tmp_path, str(tmp_path / "saved"), validation_split="validation").load()
    assert (list(saved.train), list(saved.validation)) == (texts, ["ab"])
    for options, message in [
        ({"validation_split": "test"}, "split test: "),
        ({"text_field": "body"}, "no column body (data.text_field); there are: text, source"),
    ]:
        with pytest.raises(InputError) as caught:
            hub(tmp_path, str(folder), **options).load()
        assert message in str(caught.value)
    with pytest.raises(InputError, match="no such path"):
        hub(tmp_path, "./nowhere")
    with pytest.raises(InputError, match="is a local path and has no revision"):
        hub(tmp_path, str(folder), revision="main")


def test_no_network_is_told_within_five_seconds(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(network, "TIMEOUT", 0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for revision in (None, "a" * 40):
            began = time.monotonic()
            with pytest.raises(InputError, match=r"data\.name=owner/name: .* does not answer"):
                hub(tmp_path, "owner/name", revision=revision).load()
            assert time.monotonic() - began < 5
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="40 digits of a commit"):
        hub(tmp_path, "owner/name").load()
