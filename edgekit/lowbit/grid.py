"""Rows that lie on a coarse grid already: whole multiples of a step, at most so many, which a format then keeps exactly.

Without it a row of {-2s, 0, 3s} would be stored with the scale 3s / 127 and come back rounded. The step must be a number
whose multiples float32 holds exactly (:func:`short`), as rate-aware quantization chooses them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
GLANCE = 128
"""Values of a row that tell nearly always that it lies on no grid."""
MANTISSA = 16
"""Bits of a step: its multiples up to 255 have at most 24."""


def short(step: float) -> float:
    """The nearest number of 16 significant bits: float32 holds its multiples up to 255 exactly."""
    mantissa, exponent = np.frexp(step)
    return float(np.ldexp(np.rint(np.ldexp(mantissa, MANTISSA)), exponent - MANTISSA))


def grid_steps(rows: Floats, most: int) -> Floats:
    """The largest step of each row [n, K] of which all its values are whole multiples, ``most`` at most; 0 where there is none.

    Steps are float32 [n], and code * step is each value, bit for bit.
    """
    steps = np.zeros(len(rows), np.float32)
    left = np.flatnonzero(_ratios(rows[:, :GLANCE])[1] <= most + 0.5)  # hardly ever an ordinary row
    if not left.size:
        return steps
    largest, ratio = _ratios(rows[left])
    for part in range(1, most + 1):  # the row's smallest value may be so many steps
        count = np.rint(ratio * part)
        here = np.flatnonzero((count <= most) & (np.abs(ratio * part - count) < 1e-3 * count) & (steps[left] == 0))
        if not (ratio * part <= most + 0.5).any():
            break
        for row in here:
            step = np.float32(largest[row] / count[row])
            if _fits(rows[left[row]], step):
                steps[left[row]] = step
    return steps


def block_steps(blocks: Floats, most: int) -> Floats:
    """The same for each block of rows [n, blocks, b]: steps float32 [n, blocks], 0 where there is none.

    Only rows whose first block has few levels are looked at: where one block lies on a grid, all do. A block may reach
    one level further than ``most``, as int4 does on one side; its scale is known without this.
    """
    rows, count, size = blocks.shape
    steps = np.zeros((rows, count), np.float32)
    if not count:
        return steps
    here = np.flatnonzero(_ratios(blocks[:, 0])[1] <= most + 1.5)
    steps[here] = grid_steps(blocks[here].reshape(-1, size), most).reshape(-1, count)
    return steps


def _ratios(rows: Floats) -> tuple[Floats, NDArray[np.float64]]:
    """Each row's largest magnitude, and how many times its smallest one that is not zero; 0 without any."""
    bits = np.ascontiguousarray(rows).view(np.uint32) & np.uint32(0x7FFFFFFF)  # ordered as magnitudes are
    largest = bits.max(axis=1, initial=0).view(np.float32)
    bits -= np.uint32(1)  # zeros become the largest number
    smallest = (bits.min(axis=1, initial=0xFFFFFFFE) + np.uint32(1)).view(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return largest, np.where(largest > 0, largest / smallest.astype(np.float64), 0.0)


def _fits(row: Floats, step: np.float32) -> bool:
    return bool(step > np.finfo(np.float32).tiny * 256 and (np.rint(row / step) * step == row).all())
