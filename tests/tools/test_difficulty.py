"""What strategies find difficult, as text."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from babylm_train.tools import difficulty


def rows_below(text, title):
    """The lines below a heading, in words."""
    return [line.split() for line in text.partition(f"== {title}")[2].partition("\n\n")[0].splitlines()[1:]]


def test_quantiles_and_spearmans_rank_correlation():
    rng = np.random.default_rng(0)
    first, second, words = rng.random(50), rng.integers(0, 4, 50), rng.integers(1, 9, 50)  # the second with ties
    text = difficulty.describe_scores({"a": first, "b": second}, ["x"] * 50, words)
    expected = [f"{spearmanr(first, other).statistic:.2f}" for other in (second, words)]
    assert rows_below(text, "rank correlation")[1] == ["a", "1.00", *expected]
    assert rows_below(text, "quantiles")[4][:2] == ["0.50", f"{np.median(first):.4g}"]


def test_ten_of_each_place_one_line_each():
    scores = np.arange(40.0)[::-1]  # the last document is the easiest
    text = difficulty.describe_scores({"length": scores}, [f"दस्तावेज़ {n}\nशब्द" for n in range(40)], np.full(40, 3))
    shown = [[int(row[3]) for row in rows_below(text, f"length, {p}")] for p in ("easiest", "median", "hardest")]
    assert shown == [list(range(39, 29, -1)), list(range(24, 14, -1)), list(range(9, -1, -1))]
    hostile = difficulty.describe_scores({"length": np.zeros(1)}, ["a\x1b[31m\nb"], np.array([2]))
    assert rows_below(hostile, "length, easiest") == [["0.0000", "2", "a\\x1b[31m", "b"]]


def test_the_command(tmp_path, monkeypatch, capsys):
    """Every strategy that ranks is scored, and overrides of the chosen strategy are its alone."""
    where = [f"out={tmp_path / 'out'}", f"data.cache_dir={tmp_path / 'cache'}"]
    overrides = ["curriculum/strategy=length", "curriculum.strategy.max_length=7", "seed=3", "data.words=2000"]
    monkeypatch.setattr("sys.argv", ["difficulty", *where, *overrides])
    with pytest.raises(SystemExit, match="0"):
        difficulty.main()
    path = tmp_path / "out" / "difficulty.txt"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    text = path.read_text(encoding="utf8")
    names = ["length", "frequency", "morphological", "combined", "random"]
    assert all(f"== {name}, hardest" in text for name in names)
    assert max(float(row[0]) for row in rows_below(text, "length, hardest")) == 7
    assert len(list((tmp_path / "cache").glob("scores-*"))) == len(names)
