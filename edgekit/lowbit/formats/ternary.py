"""t2: {-s, 0, s} in two bits, kept exactly; nothing is rounded here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats.packed import CHUNK, Floats, PackedTensor, block_count, in_blocks, row_chunks, shape_of
from edgekit.lowbit.weights import RowWeight, Weight
from edgekit.spec.formats import NATIVE_BLOCK


def detect_ternary(weight: Weight) -> Floats | None:
    """The scales of a weight [N, K] that holds only {-s, 0, s}, or None.

    s may be one number for the tensor (scales [1]), for each row ([N]) or for each 128 columns of a row
    ([N, ceil(K/128)]); the coarsest that fits is returned. A few rows are looked at first, so that an ordinary weight
    costs almost nothing. An all-zero weight counts as ternary with scale 1. Where a checkpoint stores codes and scales,
    those scales are the answer.
    """
    if isinstance(weight, RowWeight) and weight.scales is not None:
        return weight.scales
    if len(weight.shape) != 2 or 0 in weight.shape:
        return None
    if _block_scales(np.asarray(weight[:2], np.float32)) is None:
        return None
    rows, count = weight.shape[0], block_count(weight.shape[1], NATIVE_BLOCK)
    all_scales = np.zeros((rows, count), np.float32)
    for part in row_chunks(rows, weight.shape[1]):
        scales = _block_scales(np.asarray(weight[part], np.float32))
        if scales is None:
            return None
        all_scales[part] = scales
    return _coarsest(all_scales)


def _block_scales(rows: Floats) -> Floats | None:
    """The magnitude of each block of 128, 0 where all are zero; None when a block holds two magnitudes."""
    blocks = np.abs(in_blocks(rows, NATIVE_BLOCK))
    largest: Floats = blocks.max(axis=-1)
    if not np.isfinite(largest).all() or not ((blocks == 0) | (blocks == largest[..., None])).all():
        return None
    return largest


def _coarsest(scales: Floats) -> Floats:
    """[N, blocks] -> [1], [N] or itself; a block of zeros fits any scale."""
    largest = np.float32(scales.max())
    if largest == 0:
        return np.ones(1, np.float32)
    if ((scales == 0) | (scales == largest)).all():
        return np.full(1, largest, np.float32)
    rows = scales.max(axis=1)
    if ((scales == 0) | (scales == rows[:, None])).all():
        return np.where(rows == 0, np.float32(1), rows).astype(np.float32)
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)


def quantize_t2(weight: Weight, block_size: int) -> PackedTensor:
    """Stores a ternary weight exactly; UnsupportedError when it is not ternary (nothing is rounded here)."""
    scales = detect_ternary(weight)
    if scales is None:
        values = len(np.unique(np.abs(np.asarray(weight[: max(1, CHUNK // shape_of(weight)[1])]))))
        raise UnsupportedError(
            f"weight has {values} distinct magnitudes, t2 needs {{-s, 0, s}} per tensor, row or 128 columns"
        )
    return pack_t2(weight, scales)


def pack_t2(weight: Weight, scales: Floats) -> PackedTensor:
    """The signs of a weight [N, K] with the given scales as a packed tensor."""
    (rows, columns), count = shape_of(weight), block_count(shape_of(weight)[1], NATIVE_BLOCK)
    data = np.empty((rows, count, NATIVE_BLOCK // 4), np.uint8)
    for part in row_chunks(rows, columns):
        if isinstance(weight, RowWeight) and weight.codes is not None:
            codes = weight.codes(part.start, part.stop)
        else:
            codes = np.sign(weight[part]).astype(np.int8)
        padded = np.ones((len(codes), count * NATIVE_BLOCK), np.uint8)
        np.add(codes, 1, out=padded[:, :columns], casting="unsafe")
        # Four codes that are neighbours as the bytes of one little-endian number: moved together by shifts.
        quads = padded.view("<u4").reshape(-1, count, NATIVE_BLOCK // 4)
        data[part] = quads | quads >> 6 | quads >> 12 | quads >> 18
    return PackedTensor("t2", (rows, columns), NATIVE_BLOCK, data, scales)


def unpack_t2(packed: PackedTensor) -> NDArray[np.int8]:
    """Codes int8 [N, K] in {-1, 0, 1} of a t2 tensor."""
    data = np.asarray(packed.data, np.uint8)
    codes = np.stack([(data >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1).astype(np.int8) - 1
    return codes.reshape(packed.shape[0], -1)[:, : packed.shape[1]].astype(np.int8)


_T2_VALUES = np.array([[(byte >> shift & 3) - 1 for shift in (0, 2, 4, 6)] for byte in range(256)], np.float32)
"""The four values of each byte."""


def dequantize_t2(packed: PackedTensor) -> Floats:
    assert packed.scales is not None
    scales = packed.scales
    values = _T2_VALUES[packed.data].reshape(packed.shape[0], -1)[:, : packed.shape[1]]
    if scales.ndim == 2:
        values *= np.repeat(scales, NATIVE_BLOCK, axis=1)[:, : packed.shape[1]]
    else:
        values *= scales[:, None] if scales.size > 1 else scales[0]
    return np.ascontiguousarray(values)
