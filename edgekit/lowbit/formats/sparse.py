"""sparse-int4 and sparse-int8: a bit for each weight, and codes for those that are not zero (sparse_rows.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgekit.lowbit.formats import sparse_rows
from edgekit.lowbit.formats.packed import Floats, PackedTensor, divisors, finite_rows, on_grid, row_chunks, shape_of
from edgekit.lowbit.weights import Weight
from edgekit.spec.formats import FORMATS, NATIVE_BLOCK


def sparse_codes(weight: Weight, bits: int) -> Iterator[tuple[NDArray[np.int8], Floats]]:
    """A weight [N, K] rounded per row, some rows at a time: signed codes int8 [n, K] and scales float32 [n].

    As in the dense formats: absmax / 127, and with 4 bits the row's weight of largest magnitude becomes -8 exactly.
    """
    most = (1 << (bits - 1)) - 1
    for part in row_chunks(*shape_of(weight)):
        rows = finite_rows(weight, part)
        high, low = rows.max(axis=1, initial=0), rows.min(axis=1, initial=0)
        if bits == 4:
            scale = divisors(np.where(high > -low, high, low) / np.float32(-most - 1))
        else:
            scale = divisors(np.maximum(high, -low) / np.float32(most))
        scale = on_grid(rows, scale, most)
        yield np.clip(np.rint(rows / scale[:, None]), -most - 1, most).astype(np.int8), scale


def quantize_sparse(name: str, weight: Weight, block_size: int) -> PackedTensor:
    parts = list(sparse_codes(weight, FORMATS[name].bits))
    data = sparse_rows.pack((codes for codes, _ in parts), weight.shape[0], FORMATS[name].bits)
    scales = np.concatenate([scale for _, scale in parts])
    return PackedTensor(name, shape_of(weight), NATIVE_BLOCK, data, scales)


def sparse_facts(weight: Weight, bits: int) -> tuple[float, int]:
    """The share of a weight's codes that are zero after rounding, and the bytes that storing the others takes."""
    zeros, sizes = 0, []
    for codes, _ in sparse_codes(weight, bits):
        zeros += int(codes.size - np.count_nonzero(codes))
        sizes.append(sparse_rows.row_bytes(codes, bits))
    return zeros / max(1, weight.shape[0] * weight.shape[1]), sparse_rows.total_bytes(np.concatenate(sizes))


def unpack_sparse(packed: PackedTensor) -> NDArray[np.int8]:
    """Signed codes int8 [N, K] of a sparse tensor. Raises BundleError when its bytes contradict each other."""
    return sparse_rows.unpack(np.asarray(packed.data, np.uint8), *packed.shape, FORMATS[packed.format].bits)


def dequantize_sparse(packed: PackedTensor) -> Floats:
    assert packed.scales is not None
    values = unpack_sparse(packed).astype(np.float32)
    values *= packed.scales[:, None] if packed.scales.size > 1 else packed.scales[0]
    return values
