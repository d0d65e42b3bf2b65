"""What a few seeds say about a mean and about a difference, and what they cannot say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
ROUNDING = 1e-12  # a spread below this share of the values is their rounding, not a spread


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds, in the unit of the values; NaN for whatever so many values do not determine.

    sd: with n - 1. low, high: a 95 % interval, from Student's t with n - 1 degrees of freedom. Of a difference also p:
    of the two-sided paired t test that it is 0, not adjusted; detectable: the smallest that this test finds with 80 %
    power, if the spread is the one seen.
    """

    n: int
    mean: float
    sd: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    detectable: float = np.nan


def summarise(values: Sequence[float]) -> Estimate:
    """Mean of what cannot be negative; the interval is that of the geometric mean, so that it stays above 0."""
    found, data = _describe(values, values), np.asarray(values, float)
    if not found.sd > 0 or data.min() <= 0:
        return found
    logs = np.log(data)
    low, high = np.exp(stats.t.interval(CONFIDENCE, len(data) - 1, logs.mean(), stats.sem(logs)))
    return Estimate(found.n, found.mean, found.sd, float(low), float(high))


def compare_pairs(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean of `values` - `baseline`, one a seed, in one order."""
    a, b = np.asarray(values, float), np.asarray(baseline, float)
    with np.errstate(invalid="ignore"):  # of two infinities
        found = _describe(a - b, [*a, *b])
    if not found.sd > 0:
        return found
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(CONFIDENCE)
    least = found.sd * detectable_effect(found.n)
    return Estimate(found.n, found.mean, found.sd, float(low), float(high), float(test.pvalue), least)


def compare_ratios(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The geometric mean of `values` / `baseline`, less 1: -0.1 is 10 % less; NaN where a value is not above 0."""
    logs = [[math.log(value) if value > 0 else np.nan for value in side] for side in (values, baseline)]
    found = compare_pairs(*logs)
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.expm1(log)) for log in (found.mean, found.low, found.high))
    return Estimate(found.n, mean, found.sd, low, high, found.p)


def detectable_effect(n: int, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The smallest mean difference, in standard deviations, that a paired t test over `n` >= 2 seeds finds.

    The statistic is noncentral t with noncentrality d sqrt(n) (Cohen 1988, section 2.5); the other tail is left out.
    """
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(special.nctdtrinc(n - 1, 1 - power, critical) / np.sqrt(n))


def _describe(values: Sequence[float] | np.ndarray, scale: Sequence[float]) -> Estimate:
    """Mean and spread; a spread that is but the rounding of numbers as large as `scale` is 0."""
    data = np.asarray(values, float)
    mean = float(data.mean()) if len(data) and np.isfinite(scale).all() else np.nan
    if len(data) < 2 or np.isnan(mean):
        return Estimate(len(data), mean)
    sd = float(data.std(ddof=1))
    if sd <= ROUNDING * float(np.abs(scale).max()):
        return Estimate(len(data), mean, 0.0, mean, mean)
    return Estimate(len(data), mean, sd)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down procedure (Holm 1979, Scand. J. Statist. 6, 65-70).

    NaN stands for a test that was not made: it stays NaN and does not count.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN sorts last
    values[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return [float(value) for value in values]
