"""The picture and the sample of what strategies find difficult."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from babylm_train.errors import InputError
from babylm_train.tools import difficulty

DOCUMENTS = [f"दस्तावेज़ {n}\nशब्द" for n in range(40)]
WORDS = np.full(40, 3)


def test_equal_scores_share_a_name():
    rising = np.arange(5.0)
    merged = difficulty.merge_equal({"combined": rising, "length": -rising, "dynamic": rising.copy()})
    assert list(merged) == ["combined, dynamic", "length"]
    assert (merged["length"] == -rising).all()


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.integers(0, 4, 50)  # the second with ties
    matrix = difficulty.rank_correlations({"a": first, "b": second, "minus a": -first})
    assert matrix[0, 1] == pytest.approx(spearmanr(first, second).statistic)
    assert matrix[0, 2] == pytest.approx(-1)
    assert np.allclose(matrix, matrix.T)


def test_equal_values_have_no_rank_correlation():
    matrix = difficulty.rank_correlations({"a": np.arange(4.0), "same": np.ones(4)})
    assert np.isnan(matrix[0, 1])
    assert matrix[0, 0] == 1
    difficulty.draw({"a": np.arange(4.0), "same": np.ones(4)}, np.ones(4, dtype=int))  # and can be drawn


def test_ten_of_each_place():
    scores = np.arange(40.0)[::-1]  # the last document is the easiest
    places = difficulty.places(np.argsort(scores, kind="stable"))
    assert places["easiest"].tolist() == list(range(39, 29, -1))
    assert places["median"].tolist() == list(range(24, 14, -1))
    assert places["hardest"].tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize("count", [1, 7, 10])
def test_short_corpora_show_what_they_have(count):
    places = difficulty.places(np.arange(count))
    assert {name: len(chosen) for name, chosen in places.items()} == dict.fromkeys(places, count)


def test_sample_lines():
    lines = difficulty.sample({"length": np.arange(40.0)}, DOCUMENTS, WORDS).splitlines()
    assert "40 documents, 120 words" in lines[0]
    at = lines.index("-- easiest")
    assert lines[at + 1].split() == ["0.0000", "3", "दस्तावेज़", "0", "शब्द"]
    assert len([line for line in lines if "दस्तावेज़" in line]) == 30


def test_shortened_between_words_and_without_control_characters():
    text = "शब्द " * 100
    short = difficulty.shorten(text)
    assert short.endswith("शब्द …")
    assert len(short) <= difficulty.WIDTH + 2
    assert difficulty.shorten("a\x1b[31mb") == "a\\x1b[31mb"


def test_out_is_no_override():
    assert difficulty.out_directory(["seed=1"]) == (difficulty.OUT, ["seed=1"])
    assert difficulty.out_directory(["out=there", "seed=1"]) == (Path("there"), ["seed=1"])
    with pytest.raises(InputError, match="out= needs a directory"):
        difficulty.out_directory(["out="])


def test_a_sweep_is_refused():
    with pytest.raises(InputError, match="not at a sweep"):
        difficulty.strategies(["seed=1,2"])


def test_the_command(tmp_path, monkeypatch, capsys):
    """Every fragment that ranks is scored, and overrides of the chosen strategy are its alone."""
    found, strategies = {}, difficulty.strategies

    def recorded(*arguments):
        built, each = strategies(*arguments)
        found.update(each)
        return built, each

    monkeypatch.setattr(difficulty, "strategies", recorded)
    overrides = ["curriculum/strategy=length", "curriculum.strategy.max_length=7", "seed=3", "data.words=2000"]
    where = [f"out={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr("sys.argv", ["difficulty", *where, *overrides])
    difficulty.main()

    assert set(found) >= {"length", "frequency", "morphological", "combined", "dynamic", "random", "anti"}
    assert "none" not in found
    assert found["length"].max_length == 7
    assert found["random"].seed == 3
    assert (found["anti"].reverse, found["combined"].reverse) == (True, False)
    picture, text = tmp_path / "out" / "difficulty.png", tmp_path / "out" / "difficulty.txt"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(picture), str(text)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = text.read_text(encoding="utf8")
    assert "== combined, dynamic" in content
    assert content.count("-- hardest") == content.count("== ") == len(found) - 1
    assert len(list((tmp_path / "cache").glob("scores-*"))) == len(found)  # dynamic's are stored beside combined's
