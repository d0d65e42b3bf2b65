"""What conf/data names: files of every kind give the same documents, and what cannot be read names its place."""

import bz2
import gzip
import json
import lzma
import os
import re
import socket
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from babylm_train.data import network, read
from babylm_train.data.corpus import Corpus
from babylm_train.data.read import HubDataset, Stories, TextFiles, read_stories
from babylm_train.errors import InputError, one_line

COMMON = {"text_field": "text", "max_words": None, "validation_share": 0.5, "seed": 0, "max_length": 8}
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACK[".zst"] = lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True)
TEXTS = ["राम घर", "सीता वन", "a b"]
ROWS = "".join(json.dumps({"text": t, "source": "s"}) + "\n\n" for t in TEXTS)
CSV = 'source,text\r\ns,राम घर\r\n"s, t","सीता वन"\r\n"",a b\r\n'


def files(tmp_path: Path, train, validation=None, separator="line", **options) -> TextFiles:
    chosen = {**COMMON, "cache_dir": str(tmp_path / "cache"), **options}
    return TextFiles(train=train, validation=validation, separator=separator, **chosen)


def hub(tmp_path: Path, name: str, **options) -> HubDataset:
    chosen = {**COMMON, "revision": None, "config_name": None, "train_split": "train", "validation_split": None}
    return HubDataset(name=name, **{**chosen, "cache_dir": str(tmp_path / "cache"), **options})


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(PACK.get(path.suffix, bytes)(data))
    return str(path)


def documents(corpus: Corpus) -> list[str]:
    return sorted([*corpus.train, *corpus.validation])


@pytest.mark.parametrize("suffix", ["", *PACK])
@pytest.mark.parametrize("name", ["a.txt", "A.TRAIN", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_every_kind_of_file_gives_the_same(tmp_path, name, suffix):
    contents = {".json": ROWS, ".jsonl": ROWS, ".csv": CSV, ".tsv": CSV.replace(",", "\t")}
    content = contents.get(name[1:], "\ufeff" + "\r\n".join(TEXTS))
    corpus = files(tmp_path, write(tmp_path / (name + suffix), content)).load()
    assert (documents(corpus), corpus.report["read"]) == (sorted(TEXTS), 3)
    if suffix:
        for damaged in (b"no archive", PACK[suffix](os.urandom(99).hex().encode() * 9)[:-12]):
            (tmp_path / (name + suffix)).write_bytes(damaged)
            with pytest.raises(InputError, match=rf"cannot read .*{name}{suffix}: "):
                files(tmp_path, str(tmp_path / (name + suffix))).load()


def test_blank_lines_end_documents_whatever_cannot_be_seen_on_them(tmp_path):
    path = write(tmp_path / "a.txt", "एक\nदो\n\n \nतीन\n\ufeff\nचार\n \u200b\t\r\nपाँच\n\u2060\u00ad\nछह\n\n")
    by_blank = files(tmp_path, path, separator="blank_line")
    assert documents(by_blank.load()) == sorted(["एक\nदो", "तीन", "चार", "पाँच", "छह"])
    assert documents(files(tmp_path, path).load()) == sorted(["एक", "दो", "तीन", "चार", "पाँच", "छह"])


def test_a_cell_of_several_lines_is_one_document(tmp_path):
    poems = 'title,poem\nFog,"The fog comes\non little ""cat"" feet.\n\nIt sits"\nSnow,x\nGone\n'
    corpus = files(tmp_path, write(tmp_path / "poems.csv", poems), text_field="poem").load()
    assert documents(corpus) == ['The fog comes\non little "cat" feet.\nIt sits', "x"]
    assert corpus.report["dropped"] == {"empty": 1}


def test_globs_and_folders_whose_names_look_like_globs(tmp_path):
    written = {"हिन्दी/a.txt": "एक", "हिन्दी/deep/b.txt": "दो", "b [v2]/c [1].txt": "तीन", "b v/d.txt": "चार"}
    for name, text in written.items():
        write(tmp_path / name, text)
    patterns = {"हिन्दी/**/*.txt": ["एक", "दो"], "b [v2]/*.txt": ["तीन"], "b [uv]/*.txt": ["चार"]}
    for pattern, found in patterns.items():
        both = files(tmp_path, [str(tmp_path / pattern), write(tmp_path / "more.txt", "x")], str(tmp_path / pattern))
        assert list(both.load().validation) == found
    write(tmp_path / "more.txt", "y")
    assert list(both.load().train) == ["y"]  # what changed is read again


def test_text_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        archive.writestr("train/b.train", "दो")
        archive.writestr("notes.md", "not this")
        archive.writestr("c.jsonl", '{"text": "x"}')
    assert documents(files(tmp_path, str(tmp_path / "corpus.zip")).load()) == ["x", "दो"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"PK no zip", "cannot read"),
        ("a.txt", b"ok\nab\xffc\n", "a.txt, line 2, byte 3: not UTF-8 (0xff)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n', "a.jsonl, line 2: broken JSON: Expecting value: column 10"),
        ("a.jsonl", b'{"t\\u001bx": "a", "body": 1}\n', "line 1: no field text (data.text_field); there are: t\\x1bx, body"),
        ("a.csv", b"title,body\na,b\n", "a.csv, line 2: no field text (data.text_field); there are: title, body"),
        ("a.csv", b"text,text\na,b\n", "a.csv has 2 columns text"),
        ("a.csv", b'text\n"a\n', "a.csv, after line 1: unexpected end of data"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl, line 1: half a surrogate pair"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(InputError) as caught:
        files(tmp_path, write(tmp_path / name, content)).load()
    assert message in one_line(caught.value)


@pytest.mark.parametrize(
    "texts", [[*TEXTS, None], pyarrow.array([*TEXTS, ""]).dictionary_encode()], ids=["null", "coded"]
)
def test_columns_of_parquet(tmp_path, texts):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": [{"b": "inner"}] * 4, "a.b": [1] * 4, "text": texts}), path)
    assert documents(files(tmp_path, str(path)).load()) == sorted(TEXTS)


def test_reading_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 50_000)
    with pytest.raises(InputError, match=r"line\.txt\.gz, line 2 is longer than 1,000 bytes"):
        files(tmp_path, write(tmp_path / "line.txt.gz", b"short\n" + b"a" * 1001)).load()
    with pytest.raises(InputError, match=r"bomb\.txt\.xz holds more than 50,000 bytes"):
        files(tmp_path, write(tmp_path / "bomb.txt.xz", b"aaaaaaa\n" * 100_000)).load()


def test_wrong_names_are_found_at_once(tmp_path):
    good = write(tmp_path / "a.txt", "एक\nदो")
    write(tmp_path / "b.doc", "x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name, message in [
        ("*.jsonl", "data.validation: no such file: "),
        ("", "is no readable file; give a file, or a glob as "),
        ("pipe.txt", "pipe.txt is no readable file"),
        ("zero.txt", "zero.txt is no readable file"),
        ("b.doc", "b.doc does not end in one of .txt"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            files(tmp_path, good, [good, str(tmp_path / name)])


def test_hub_dataset_from_a_local_folder(tmp_path, capsys):
    folder = tmp_path / "files"
    write(folder / "train.jsonl", ROWS.replace("\n\n", "\n"))
    write(folder / "wiki.txt", "left\n")
    write(folder / "README.md", "about")
    assert documents(hub(tmp_path, str(folder)).load()) == sorted(TEXTS)
    said = capsys.readouterr().out
    assert ("wiki.txt" in said, "README" in said) == (True, False)
    for name, options, message in [
        (str(folder), {"validation_split": "test"}, "split test: "),
        (str(folder), {"revision": "main"}, "is a local path and has no revision"),
        ("./nowhere", {}, "data.name: no such folder"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            hub(tmp_path, name, **options).load()


def test_no_network_is_told_instead_of_waited_for(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(network, "TIMEOUT", 0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for revision in (None, "a" * 40):
            with pytest.raises(InputError, match=r"data\.name=owner/name.* does not answer"):
                hub(tmp_path, "owner/name", revision=revision).load()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"data\.revision=main is no commit"):
        hub(tmp_path, "owner/name").load()


def test_stories_take_the_first_words_and_set_documents_aside_by_the_seed(tmp_path):
    def load(words: int, seed: int) -> Corpus:
        options = {"validation_share": 0.1, "max_length": 8, "cache_dir": str(tmp_path)}
        return Stories(words=words, seed=seed, **options).load()

    one, other, more = load(2000, 0), load(2000, 1), load(4000, 0)
    assert documents(one) == documents(other) == sorted(read_stories(2000))
    assert list(one.validation) != list(other.validation)
    assert len(one.validation) == round(0.1 * len(documents(one)))
    assert set(documents(one)) < set(documents(more))
    assert 2000 <= one.train.words.sum() + one.validation.words.sum() < 2100
    assert sum(len(text.split()) for text in read_stories(read.STORY_WORDS)) >= read.STORY_WORDS
    assert len(one.pairs) == 1000
