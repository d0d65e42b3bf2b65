"""The statistics of a study: what a few seeds say about a mean and about a difference, and what they cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
ROUNDING = 1e-12  # a spread below this share of the values is their rounding, not a spread


@dataclass(frozen=True)
class Summary:
    """A mean over seeds, in the unit of the values; NaN for whatever `n` values do not determine.

    sd: with n - 1. low, high: a 95 % interval, from Student's t with n - 1 degrees of freedom.
    """

    n: int
    mean: float
    sd: float = np.nan
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True)
class Difference(Summary):
    """A mean of paired differences, and the paired t test that it is 0.

    effect: d_z, the mean over the standard deviation of the differences (Cohen 1988, section 2.3.5). p: two-sided,
    not adjusted; NaN without a spread to test against.
    """

    effect: float = np.nan
    p: float = np.nan


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of what cannot be negative, and the interval of its geometric mean.

    The interval is computed on the log scale, so that it stays above 0; NaN where a value is 0. NaN throughout where a
    value is NaN or infinite.
    """
    data = np.asarray(values, float)
    mean = float(data.mean()) if len(data) and np.isfinite(data).all() else np.nan
    if len(data) < 2 or np.isnan(mean):
        return Summary(len(data), mean)
    sd = _spread(data, float(np.abs(data).max()))
    if not sd:
        return Summary(len(data), mean, 0.0, mean, mean)
    if data.min() <= 0:
        return Summary(len(data), mean, sd)
    logs = np.log(data)
    low, high = np.exp(stats.t.interval(CONFIDENCE, len(data) - 1, logs.mean(), stats.sem(logs)))
    return Summary(len(data), mean, sd, float(low), float(high))


def compare_pairs(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The differences `values` - `baseline`, one a seed, in one order. Raises ValueError: they differ in length."""
    a, b = np.asarray(values, float), np.asarray(baseline, float)
    mean = float((a - b).mean()) if len(a) and np.isfinite([a, b]).all() else np.nan
    if len(a) < 2 or np.isnan(mean):
        return Difference(len(a), mean)
    sd = _spread(a - b, float(max(np.abs(a).max(), np.abs(b).max())))
    if not sd:
        return Difference(len(a), mean, 0.0, mean, mean)
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(len(a), mean, sd, float(interval.low), float(interval.high), mean / sd, float(test.pvalue))


def _spread(data: np.ndarray, scale: float) -> float:
    """Standard deviation with n - 1; 0 where it is only the rounding of numbers as large as `scale`."""
    sd = float(data.std(ddof=1))
    return sd if sd > ROUNDING * scale else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down procedure (Holm 1979, Scand. J. Statist. 6, 65-70).

    NaN stands for a test that was not made: it stays NaN and does not count.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN sorts last
    values[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in values]


def detectable_effect(n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest d_z that a two-sided paired t test over `n` seeds finds with probability `power`; NaN below 2 seeds.

    The test statistic is noncentral t with n - 1 degrees of freedom and noncentrality d_z sqrt(n) (Cohen 1988, section
    2.5); that it is significant in the wrong direction is left out, as it is far below any rounding here.
    """
    if n < 2:
        return np.nan
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(special.nctdtrinc(n - 1, 1 - power, critical) / np.sqrt(n))
