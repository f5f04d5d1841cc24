"""A packed weight, and how weights are read to be packed: a few rows at a time, so temporaries stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats import sparse_rows
from edgekit.lowbit.grid import grid_steps
from edgekit.lowbit.weights import Weight
from edgekit.spec.formats import FORMATS

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

CHUNK = 1 << 18
"""Elements handled at a time."""


@dataclass(frozen=True)
class PackedTensor:
    """One weight [N, K] in a format; arrays as in the table above."""

    format: str
    shape: tuple[int, int]
    block_size: int  # 0 where the format has no blocks
    data: Array
    scales: Floats | None = None

    def rows(self, start: int, stop: int) -> PackedTensor:
        """Rows start to stop as a packed tensor of their own (views, no copy, unless sparse)."""
        scales = self.scales
        if scales is not None and scales.size != 1:
            scales = scales[start:stop]
        if FORMATS[self.format].layout == "sparse":
            data: Array = sparse_rows.cut(np.asarray(self.data, np.uint8), start, stop)  # a copy, here
        else:
            data = self.data[start:stop]
        return replace(self, shape=(stop - start, self.shape[1]), data=data, scales=scales)

    @property
    def nbytes(self) -> int:
        """Bytes stored, scales and padding included."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each of the N * K weights, scales and padding included."""
        return 8.0 * self.nbytes / max(1, self.shape[0] * self.shape[1])


def block_count(size: int, block: int) -> int:
    """Blocks that ``size`` elements fill, the last one perhaps in part."""
    return -(-size // block)


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def in_blocks(weight: Floats, block: int) -> Floats:
    """[n, K] as [n, ceil(K/b), b], padded with zeros."""
    count = block_count(weight.shape[1], block)
    padded = weight
    if weight.shape[1] != count * block:
        padded = np.zeros((weight.shape[0], count * block), np.float32)
        padded[:, : weight.shape[1]] = weight
    return padded.reshape(weight.shape[0], count, block)


def finite_rows(weight: Weight, part: slice) -> Floats:
    rows = np.ascontiguousarray(weight[part], dtype=np.float32)
    if not np.isfinite(rows).all():
        raise UnsupportedError("weight holds NaN or infinity; a model with such weights cannot be quantized")
    return rows


def divisors(scale: Floats) -> Floats:
    """Scales with zeros (all-zero blocks, or too small to divide by) replaced by one."""
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny * 256, np.float32(1), scale).astype(np.float32)


def on_grid(rows: Floats, scales: Floats, most: int) -> Floats:
    """Scales [n, ...] of rows [n, K], where a row lies on a grid already its step: it is then kept exactly."""
    steps = grid_steps(rows, most).reshape(-1, *[1] * (scales.ndim - 1))
    return np.where(steps > 0, steps, scales)


def scaled(packed: PackedTensor, codes: Array, zero: int) -> Floats:
    """(codes - zero) * scale as float32 [N, K]."""
    assert packed.scales is not None
    rows, columns = packed.shape
    values = codes.astype(np.float32)
    values -= np.float32(zero)
    values *= packed.scales[..., None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def shape_of(weight: Weight) -> tuple[int, int]:
    return int(weight.shape[0]), int(weight.shape[1])
