"""The statistics against scipy and against published examples."""

import math

import pytest

from babylm_train.study.statistics import compare_pairs, compare_ratios, detectable_effect, holm, summarise

# Extra hours of sleep under two drugs, the ten patients of Student (1908), "The probable error of a mean"; R's `sleep`.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_student_s_sleep_data():
    """As R prints `t.test(extra ~ group, data = sleep, paired = TRUE)`."""
    found = compare_pairs(FIRST, SECOND)
    assert (found.n, round(found.mean, 10)) == (10, -1.58)
    assert (round(found.low, 7), round(found.high, 7)) == (-2.4598858, -0.7001142)
    assert round(found.p, 6) == 0.002833
    assert found.mean / found.sd * math.sqrt(10) == pytest.approx(-4.0621, abs=5e-5)


def test_holm_on_a_published_example():
    """The example of HDLSSkST 2.1.0 (an R package)."""
    p = [0.50, 0.01, 0.001, 0.69, 0.02, 0.05, 0.0025]
    assert holm(p) == pytest.approx([1.0, 0.05, 0.007, 1.0, 0.08, 0.15, 0.015])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # never decreases
    assert holm([math.nan, 0.02, 0.03])[1:] == pytest.approx([0.04, 0.04])  # what was not tested does not count


def test_detectable_effect_inverts_published_powers():
    """Cohen (1988): d = 0.2, n = 60, alpha 0.10 has power .46 (p. 47); 40 pairs at d = 0.559 have .93 (p. 50)."""
    assert round(detectable_effect(60, alpha=0.10, power=0.46), 2) == 0.2
    d = 8 / (16 * math.sqrt(2 * (1 - 0.6)))
    assert detectable_effect(40, power=0.9315248) == pytest.approx(d, abs=1e-6)
    assert detectable_effect(34) < 0.5 < detectable_effect(33)  # the textbook's 34 pairs for d = 0.5


def test_a_ratio_by_hand():
    """Half, half and an eighth: 2 ** -5/3; the standard error of their base-2 logarithms -1, -1, -3 is 2/3."""
    found, t = compare_ratios([1, 2, 1], [2, 4, 8]), 4.302652729911275  # Student's, 97.5 %, 2 degrees of freedom
    assert found.mean == pytest.approx(2 ** (-5 / 3) - 1)
    assert (found.low, found.high) == pytest.approx((2 ** ((-5 - 2 * t) / 3) - 1, 2 ** ((-5 + 2 * t) / 3) - 1))
    assert compare_ratios([3.0], [4.0]).mean == pytest.approx(-0.25)
    assert math.isnan(compare_ratios([1.0, 0.0], [1.0, 2.0]).mean)
    assert compare_ratios([1.0, 1e300], [1.0, 1.0]).high == math.inf


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_said_is_nan_and_without_spread_there_is_no_test():
    few = compare_pairs([4.0], [2.0])
    assert (few.n, few.mean) == (1, 2.0)
    assert all(map(math.isnan, (few.sd, few.low, few.high, few.p)))
    for values in ([1.0, math.nan], [1.0, math.inf], []):
        assert math.isnan(summarise(values).mean)
    same = compare_pairs([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (same.mean, same.sd, same.low, same.high) == (0, 0, 0, 0)
    shifted = compare_pairs([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])  # their differences vary in the 16th digit only
    assert shifted.sd == 0
    assert math.isnan(shifted.p)
    assert summarise([5, 5, 5]).low == 5
