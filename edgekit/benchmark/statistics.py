"""Medians, percentiles, spread, and the ratio of two interleaved series with its interval. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that holds the true value with 95 % confidence."""

    value: float
    low: float
    high: float


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the samples lie."""
    return float(np.quantile(np.asarray(samples, np.float64), share))


def spread(medians: Sequence[float]) -> float:
    """The middle half of the rounds' medians, as a share of their median: what one odd round cannot spoil."""
    low, middle, high = np.quantile(np.asarray(medians, np.float64), (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """How many times larger ``first`` is than ``second``, round by round, and its interval.

    Both hold one median for each interleaved round, so that what disturbed a round disturbed both. Percentile bootstrap
    over rounds of the median ratio, with a fixed seed.
    """
    each = np.log(np.asarray(first, np.float64) / np.asarray(second, np.float64))
    random = np.random.default_rng(0)
    drawn = np.median(each[random.integers(0, len(each), (RESAMPLES, len(each)))], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(float(np.exp(np.median(each))), float(np.exp(low)), float(np.exp(high)))
