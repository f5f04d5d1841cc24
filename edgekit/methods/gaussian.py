"""The generalized Gaussian: how trained weights are distributed, and how its shape is read off their moments.

Density f(x) = nu / (2 a Gamma(1/nu)) exp(-(|x| / a)^nu); nu = 2 is the normal, nu = 1 the Laplace distribution.
Source: BackSlash (Wu, Wen, Han; arXiv 2504.16968), moment matching after Mallat.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

LEAST_SHAPE, MOST_SHAPE, STEP = 0.10, 3.00, 0.01


def moment_ratio(nu: float) -> float:
    """E[x^2] / E[|x|]^2 of a generalized Gaussian of shape ``nu`` > 0: 2 for Laplace, pi / 2 for normal."""
    return math.exp(math.lgamma(1 / nu) + math.lgamma(3 / nu) - 2 * math.lgamma(2 / nu))


@cache
def _table() -> tuple[Tensor, Tensor]:
    count = round((MOST_SHAPE - LEAST_SHAPE) / STEP) + 1
    shapes = [LEAST_SHAPE + STEP * index for index in range(count)]
    ratios = [moment_ratio(nu) for nu in shapes]
    return torch.tensor(shapes, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64)


def shape_of_moments(count: float, absolute: float, square: float) -> float:
    """The shape in 0.10, 0.11, ... 3.00 whose moment ratio is nearest to that of ``count`` values.

    ``absolute`` is the sum of their magnitudes, ``square`` of their squares. All zeros give the least shape.
    """
    if absolute <= 0.0 or count <= 0:
        return LEAST_SHAPE
    shapes, ratios = _table()
    return float(shapes[(ratios - count * square / absolute**2).abs().argmin()])


def scale_of(nu: float, deviation: float) -> float:
    """The scale a of a generalized Gaussian of shape ``nu`` whose standard deviation is ``deviation``."""
    return deviation * math.exp(0.5 * (math.lgamma(1 / nu) - math.lgamma(3 / nu)))
