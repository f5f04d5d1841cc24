"""What weights cost to store: their distribution, and bits a weight after rounding to multiples of a step.

Bits are given as the entropy of each layer's rounded weights without context, as exp-Golomb codes of their ranks (the
code of BackSlash, arXiv 2504.16968, algorithm 2: the commonest value gets the shortest word), and, where a coder is
given, as it codes them. The table of values is not counted, here as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.gaussian import scale_of, shape_of_moments

MOST_GOLOMB = 12
LARGEST_CODE = 2**31 - 1

Codes = NDArray[np.int32]
Coder = Callable[[Codes], int | None]
"""Bits that it codes whole numbers [n] with; None where it cannot."""


Table = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Values that occur, and how often."""


@dataclass(frozen=True)
class LayerRate:
    """One weight, or all together; bits are for each of its weights."""

    name: str
    count: int
    nu: float  # shape of the generalized Gaussian whose moments the weights have
    scale: float  # and its scale
    deviation: float  # root of the mean square
    zeros: float  # share that is exactly zero
    step: float
    rounded_zeros: float  # share that is zero once rounded
    entropy: float
    golomb: float  # exp-Golomb of order 0
    golomb_order: int  # the best order for this weight
    golomb_best: float
    coded: float | None  # by the coder, if it can


@dataclass(frozen=True)
class RateReport:
    """Weights by name, and ``total``: its bits are those of the layers, each with a table of its own,
    ``pooled`` has one for all."""

    layers: tuple[LayerRate, ...]
    total: LayerRate
    pooled: LayerRate

    def lines(self) -> list[str]:
        """A table for people."""
        width = max(len(row.name) for row in (*self.layers, self.total, self.pooled))
        head = f"{'weight':<{width}} {'count':>10} {'nu':>5} {'scale':>9} {'zeros':>6} {'step':>9} {'rounded 0':>9}"
        head += f" {'entropy':>7} {'EG0':>6} {'best EG':>10} {'coded':>6}"
        rows = [
            f"{r.name:<{width}} {r.count:>10} {r.nu:>5.2f} {r.scale:>9.3g} {r.zeros:>6.1%} {r.step:>9.3g} "
            f"{r.rounded_zeros:>9.1%} {r.entropy:>7.3f} {r.golomb:>6.3f} {r.golomb_best:>6.3f} k={r.golomb_order:<2}"
            f"{'-' if r.coded is None else f'{r.coded:.3f}':>6}"
            for r in (*self.layers, self.total, self.pooled)
        ]
        return [head, *rows, "entropy, EG and coded: bits a weight"]

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and compress.json."""
        layers = [asdict(layer) for layer in self.layers]
        return {"layers": layers, "total": asdict(self.total), "pooled": asdict(self.pooled)}


def rate_report(
    weights: Mapping[str, Tensor], step: float | Mapping[str, float], code: Coder | None = None
) -> RateReport:
    """The rate of ``weights`` (floats of any shape, by name) rounded to multiples of ``step`` (or of a step for each).

    Raises UsageError for no weights or a step that is none, UnsupportedError for weights that are not finite or whose
    rounded values do not fit 32 bits.
    """
    if not weights:
        raise UsageError("weights: none are given; a rate needs at least one")
    steps = step if isinstance(step, Mapping) else dict.fromkeys(weights, step)
    layers, tables, moments = [], [], []
    for name, weight in weights.items():
        codes = rounded(name, weight, steps[name])
        tables.append(_table(codes))
        moments.append(_moments(weight))
        layers.append(_layer(name, moments[-1], steps[name], tables[-1], None if code is None else code(codes)))
    sums = [sum(column) for column in zip(*moments, strict=True)]
    pooled = _layer("(one table)", sums, max(steps.values()), _merged(tables), None)
    return RateReport(tuple(layers), _total(layers, pooled), pooled)


def rounded(name: str, weight: Tensor, step: float) -> Codes:
    """The whole numbers nearest to ``weight / step``, flat. Raises as :func:`rate_report`."""
    if not (math.isfinite(step) and step > 0):
        raise UsageError(f"step: {step} is not above 0; give the distance of neighbouring values, such as 0.001")
    values = weight.detach().float().flatten() / step
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise UnsupportedError(f"{name}: holds NaN or infinity; a model with such weights has no rate")
    if largest > LARGEST_CODE:
        raise UnsupportedError(f"{name}: its largest weight is {largest:.3g} steps of {step:.3g}; give a larger step")
    return np.asarray(values.round_().to(torch.int32).numpy(), np.int32)


def _moments(weight: Tensor) -> tuple[float, float, float, float]:
    """Number of values, of zeros, sum of magnitudes and of squares."""
    values = weight.detach()
    absolute, square = values.abs().sum(dtype=torch.float64), values.square().sum(dtype=torch.float64)
    return values.numel(), int((values == 0).sum()), float(absolute), float(square)


def _table(codes: Codes) -> Table:
    """The values that occur, ascending, and how often."""
    if not codes.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    low, high = int(codes.min()), int(codes.max())
    if high - low < max(1 << 16, 4 * codes.size):
        counts = np.bincount(codes - np.int32(low))
        values = np.flatnonzero(counts)
        return values + low, counts[values].astype(np.int64)
    values, counts = np.unique(codes, return_counts=True)
    return values.astype(np.int64), counts.astype(np.int64)


def _merged(tables: Iterable[Table]) -> Table:
    """One table of several."""
    values, numbers = (np.concatenate(column) for column in zip(*tables, strict=True))
    distinct, places = np.unique(values, return_inverse=True)
    return distinct, np.bincount(places, numbers, len(distinct)).astype(np.int64)


def _layer(name: str, moments: Sequence[float], step: float, table: Table, bits: int | None) -> LayerRate:
    size, zeros, absolute, square = moments
    count = max(1.0, size)
    nu, deviation = shape_of_moments(count, absolute, square), math.sqrt(square / count)
    counts = np.sort(table[1])[::-1]
    order, best = best_golomb(counts)
    return LayerRate(
        name=name,
        count=int(size),
        nu=nu,
        scale=scale_of(nu, deviation),
        deviation=deviation,
        zeros=zeros / count,
        step=step,
        rounded_zeros=float(table[1][table[0] == 0].sum()) / count,
        entropy=entropy(counts),
        golomb=golomb(counts, 0),
        golomb_order=order,
        golomb_best=best,
        coded=None if bits is None else bits / count,
    )


def _total(layers: Sequence[LayerRate], pooled: LayerRate) -> LayerRate:
    """All layers: moments as of one weight, bits added up."""

    def mean(values: Iterable[float]) -> float:
        return sum(row.count * value for row, value in zip(layers, values, strict=True)) / max(1, pooled.count)

    coded = [row.coded for row in layers if row.coded is not None]
    return replace(
        pooled,
        name="total",
        entropy=mean(row.entropy for row in layers),
        golomb=mean(row.golomb for row in layers),
        golomb_best=mean(row.golomb_best for row in layers),
        coded=mean(coded) if len(coded) == len(layers) else None,
    )


def counted(codes: Codes) -> NDArray[np.int64]:
    """How often each value occurs, descending."""
    return np.sort(_table(codes)[1])[::-1]


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits a symbol of values that occur ``counts`` times, coded without context as well as can be."""
    chances = counts[counts > 0] / max(1, counts.sum())
    return float(-(chances * np.log2(chances)).sum()) + 0.0


def golomb(counts: NDArray[np.int64], order: int) -> float:
    """Bits a symbol when the value of rank u (0 the commonest) has the exp-Golomb word of ``order`` for u."""
    ranks = np.arange(len(counts), dtype=np.int64)
    lengths = 2 * np.floor(np.log2((ranks >> order) + 1)) + 1 + order
    return float((counts * lengths).sum() / max(1, counts.sum()))


def best_golomb(counts: NDArray[np.int64]) -> tuple[int, float]:
    """The exp-Golomb order with the fewest bits, and those."""
    bits = [golomb(counts, order) for order in range(MOST_GOLOMB + 1)]
    order = int(np.argmin(bits))
    return order, bits[order]
