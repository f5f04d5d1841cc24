"""Which rows and columns of a weight hold more than zeros, and weights without others; read a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.lowbit.formats import detect_ternary
from edgekit.lowbit.initializers import WeightTensor, weight_of
from edgekit.lowbit.weights import RowWeight, Weight

CHUNK = 1 << 23
"""Elements of a weight in float32 at a time: 32 MiB."""
PROBES = (16, 128)
"""Rows and columns looked at first: enough for a dense weight, or one with a tenth left; the rest is not read."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Alive:
    """Whether each row [N] and each column [K] of a weight holds anything but zeros."""

    rows: Bools
    columns: Bools


class Scans:
    """Looks at each weight once and only as far as needed: a row with a number in it is alive."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[ir.TensorProtocol, Alive]] = {}  # the tensor is kept, so that its id stays its own

    def of(self, tensor: ir.TensorProtocol, rows_axis: int) -> Alive:
        """A matrix, or a convolution's weight [O, I, ...]; ``rows_axis`` 1 is for a matrix [K, N]."""
        if id(tensor) not in self._found:
            self._found[id(tensor)] = tensor, _scan(tensor)
        alive = self._found[id(tensor)][1]
        return alive if rows_axis == 0 else Alive(alive.columns, alive.rows)

    def has(self, tensor: ir.TensorProtocol) -> bool:
        """Whether it was looked at."""
        return id(tensor) in self._found


def _scan(tensor: ir.TensorProtocol) -> Alive:
    if len(tensor.shape) > 2:  # a convolution
        values = np.asarray(tensor.numpy())
        used = (values != 0).any(axis=tuple(range(2, values.ndim)))
        return Alive(used.any(axis=1), used.any(axis=0))
    weight = weight_of(tensor)
    count, width = weight.shape
    step = max(1, CHUNK // max(1, width))
    rows, columns = np.zeros(count, bool), np.zeros(width, bool)
    for probe in PROBES:
        if not rows.all():
            rows |= (_first(weight, probe) != 0).any(axis=1)
        if not columns.all():
            columns |= (_values(weight, 0, min(probe, step, count)) != 0).any(axis=0)
    for start in range(0, count, step):
        chunk = rows[start : start + step]
        if chunk.all() and columns.all():
            continue
        part = _values(weight, start, min(start + step, count))
        silent, waiting = np.flatnonzero(~chunk), np.flatnonzero(~columns)
        chunk[silent] = (part[silent] != 0).any(axis=1)
        columns[waiting] = (part[:, waiting] != 0).any(axis=0)
    return Alive(rows, columns)


def _first(weight: Weight, count: int) -> NDArray[Any]:
    """The first columns of all rows where they can be had without the others, else none."""
    if not isinstance(weight, RowWeight):
        return np.asarray(weight[:])[:, :count]
    return np.zeros((weight.shape[0], 1), bool) if weight.first is None else np.asarray(weight.first(count))


def _values(weight: Weight, start: int, stop: int) -> NDArray[Any]:
    """Rows as they are stored; of a ternary weight its codes, which are zero where it is."""
    if isinstance(weight, RowWeight) and weight.codes is not None and weight.scales is not None and weight.scales.all():
        return weight.codes(start, stop)
    return np.asarray(weight[start:stop])


def scaled_by_columns(tensor: ir.TensorProtocol) -> bool:
    """Whether a matrix is ternary with a scale for each 128 columns: without some of its columns it would not be."""
    scales = detect_ternary(weight_of(tensor))
    return scales is not None and scales.ndim == 2 and scales.shape[1] > 1


def sliced(tensor: ir.TensorProtocol, rows: Bools, columns: Bools, name: str) -> WeightTensor:
    """A matrix [N, K] without the rows and columns that are False, read when it is written."""
    weight, kept, all_columns = weight_of(tensor), np.flatnonzero(rows), bool(columns.all())

    def pick(read: Callable[[int, int], NDArray[Any]]) -> Callable[[int, int], NDArray[Any]]:
        def part(start: int, stop: int) -> NDArray[Any]:
            chosen = kept[start:stop]
            if not len(chosen):
                return read(0, 0)[:, columns]
            span = read(int(chosen[0]), int(chosen[-1]) + 1)[chosen - chosen[0]]
            return span if all_columns else np.asarray(span[:, columns])

        return part

    shape = len(kept), int(columns.sum())
    # Asked for anew each time: what a tensor gives may be a copy, which should not live until the file is written.
    read = pick(lambda start, stop: np.asarray(weight_of(tensor)[start:stop], np.float32))
    if not isinstance(weight, RowWeight) or weight.codes is None or weight.scales is None:
        return WeightTensor(RowWeight(shape, read), name)
    scales = weight.scales[kept] if len(weight.scales) > 1 else weight.scales
    return WeightTensor(RowWeight(shape, read, pick(weight.codes), scales), name)


def taken(tensor: ir.TensorProtocol, kept: dict[int, Bools], name: str) -> ir.TensorProtocol:
    """A small tensor or convolution without what is False on the given axes."""
    array = tensor.numpy()
    for axis, mask in kept.items():
        array = np.compress(mask, array, axis=axis)
    return ir.tensor(np.ascontiguousarray(array), name=name)


def product_with(tensor: ir.TensorProtocol, rows_axis: int, columns: Ints, constants: NDArray[np.float64]) -> Any:
    """What constant inputs at ``columns`` add to each output: float64 [N]."""
    if len(tensor.shape) > 2:
        values = tensor.numpy()[:, columns].astype(np.float64)
        return values.sum(axis=tuple(range(2, values.ndim))) @ constants
    weight = weight_of(tensor)
    if rows_axis == 1:
        return np.asarray(weight[:])[columns].astype(np.float64).T @ constants
    step = max(1, CHUNK // max(1, weight.shape[1]))
    parts = [
        np.asarray(weight[start : min(start + step, weight.shape[0])])[:, columns].astype(np.float64) @ constants
        for start in range(0, weight.shape[0], step)
    ]
    return np.concatenate(parts)
