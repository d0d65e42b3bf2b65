"""The picture and the sample of what strategies find difficult."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from babylm_train.tools import difficulty

DOCUMENTS = [f"दस्तावेज़ {n}\nशब्द" for n in range(40)]
WORDS = np.full(40, 3)


def test_equal_scores_share_a_name():
    rising = np.arange(5.0)
    merged = difficulty.merge_equal({"combined": rising, "length": -rising, "dynamic": rising.copy()})
    assert list(merged) == ["combined, dynamic", "length"]
    assert (merged["length"] == -rising).all()


def test_the_picture_shows_spearmans_rank_correlation():
    rng = np.random.default_rng(0)
    first, second, words = rng.random(50), rng.integers(0, 4, 50), rng.integers(1, 9, 50)  # the second with ties
    figure = difficulty.draw({"a": first, "b": second, "same": np.ones(50)}, words)
    (heatmap,) = (axis for axis in figure.findobj(lambda part: hasattr(part, "images")) if axis.images)
    shown = [text.get_text() for text in heatmap.texts]
    assert len(shown) == 16
    assert shown[1] == f"{spearmanr(first, second).statistic:.2f}"
    assert shown[3] == f"{spearmanr(first, words).statistic:.2f}"
    assert shown[2] == "nan"


@pytest.mark.parametrize("count", [7, 40])
def test_ten_of_each_place(count):
    scores = np.arange(float(count))[::-1]  # the last document is the easiest
    parts = difficulty.sample({"length": scores}, DOCUMENTS[:count], WORDS[:count]).split("\n\n")[2:]
    shown = [[int(line.split()[3]) for line in part.splitlines()[1:]] for part in parts]
    if count == 40:
        assert shown == [list(range(39, 29, -1)), list(range(24, 14, -1)), list(range(9, -1, -1))]
    else:
        assert all(place == list(range(count - 1, -1, -1)) for place in shown)


def test_a_document_is_one_line_cut_between_words():
    lines = difficulty.sample({"length": np.zeros(2)}, ["शब्द " * 100, "a\x1b[31m\nb"], np.array([100, 2])).splitlines()
    assert "2 documents, 102 words" in lines[0]
    at = lines.index("-- easiest")
    assert lines[at + 1].endswith("शब्द …")
    assert len(lines[at + 1]) <= difficulty.WIDTH + 25
    assert lines[at + 2].split() == ["0.0000", "2", "a\\x1b[31m", "b"]


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["difficulty", *words])
    with pytest.raises(SystemExit) as ended:
        difficulty.main()
    return ended.value.code


@pytest.mark.parametrize(("word", "named"), [("seed=1,2", "sweep"), ("out=", "out"), ("--out=there", "--out")])
def test_a_mistake_is_one_line_and_exit_2(monkeypatch, capsys, word, named):
    assert run(monkeypatch, word) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_the_command(tmp_path, monkeypatch, capsys):
    """Every strategy that ranks is scored, and overrides of the chosen strategy are its alone."""
    cache = tmp_path / "cache"
    where = [f"out={tmp_path / 'out'}", f"data.cache_dir={cache}"]
    overrides = ["curriculum/strategy=length", "curriculum.strategy.max_length=7", "seed=3", "data.words=2000"]
    assert run(monkeypatch, *where, *overrides) == 0
    picture, text = tmp_path / "out" / "difficulty.png", tmp_path / "out" / "difficulty.txt"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(picture), str(text)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = text.read_text(encoding="utf8")
    names = {name for line in content.splitlines() if line.startswith("== ") for name in line[3:].split(", ")}
    assert names == {"length", "frequency", "morphological", "combined", "dynamic", "random"}
    assert "== combined, dynamic" in content
    length = content.partition("== length")[2].partition("== ")[0]
    assert max(float(line.split()[0]) for line in length.splitlines() if line[:1] == " " and line.strip()) == 7
    assert len(list(cache.glob("scores-*"))) == len(names)  # dynamic's are stored beside combined's
