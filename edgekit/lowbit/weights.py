"""Weights that are read a few rows at a time, so that a large one never exists in float32.

Packing and everything else that looks at a weight's values takes a :class:`Weight`: a numpy array [N, K] is one, and so
is a :class:`RowWeight`, which reads its rows from a checkpoint whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


class Weight(Protocol):
    """A matrix [N, K] whose rows ``weight[start:stop]`` are floats."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> NDArray[np.generic]: ...


@dataclass(frozen=True)
class RowWeight:
    """A weight [N, K] read on demand: ``read(start, stop)`` gives float32 [stop - start, K].

    A weight known to be ternary also has ``codes`` (int8, -1, 0 or 1, read likewise) and ``scales`` float32 [1] or [N];
    its values are their products. ``first(count)`` looks at the first columns of all rows, [N, count], without reading the
    rest: zero where the weight is, of whatever dtype and scale.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], Floats]
    codes: Callable[[int, int], Codes] | None = None
    scales: Floats | None = None
    first: Callable[[int], NDArray[np.generic]] | None = None

    def __getitem__(self, rows: slice) -> Floats:
        start, stop, _ = rows.indices(self.shape[0])
        return self.read(start, stop)


def stacked(weights: Sequence[Weight]) -> RowWeight:
    """The given weights [n, K], [m, K], ... one below the other; ternary where all are known to be."""
    starts = np.cumsum([0, *(w.shape[0] for w in weights)]).tolist()

    def parts(start: int, stop: int) -> list[tuple[Weight, int, int]]:
        spans = [(w, max(start - at, 0), min(stop - at, w.shape[0])) for w, at in zip(weights, starts, strict=False)]
        return [span for span in spans if span[1] < span[2]]

    def read(start: int, stop: int) -> Floats:
        return np.concatenate([np.asarray(w[a:b], np.float32) for w, a, b in parts(start, stop)])

    shape = (starts[-1], weights[0].shape[1])
    known = [w for w in weights if isinstance(w, RowWeight) and w.codes is not None and w.scales is not None]
    if len(known) < len(weights):
        return RowWeight(shape, read)

    def codes(start: int, stop: int) -> Codes:
        return np.concatenate([w.codes(a, b) for w, a, b in parts(start, stop)])  # type: ignore[attr-defined]

    scales = np.concatenate([np.broadcast_to(w.scales, w.shape[0]) for w in known])  # type: ignore[arg-type]
    same = bool((scales == scales[0]).all())
    return RowWeight(shape, read, codes, scales[:1].copy() if same else scales)
