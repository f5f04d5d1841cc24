"""Weight formats: the only place where the bytes of a packed weight are defined.

A weight is a matrix [N, K]; N outputs, K inputs. Every format works row by row, so rows of a packed tensor can be cut
and stacked, and a merged layer holds exactly what its parts would.

============  ===========================================  ==================================  ====================
name          data                                         scales                              value of a code
============  ===========================================  ==================================  ====================
fp32          float32 [N, K]                               none                                itself
fp16          float16 [N, K]                               none                                itself
int8          uint8 [N, ceil(K/b), b]                      float32 [N, ceil(K/b)]              (code - 128) * scale
int8-channel  uint8 [N, ceil(K/128), 128]                  float32 [N]                         (code - 128) * scale
int4          uint8 [N, ceil(K/b), b/2], low nibble first  float32 [N, ceil(K/b)]              (code - 8) * scale
t2            uint8 [N, ceil(K/128), 32], 2 bits a code    float32 [1], [N] or [N, ceil(K/b)]  (code - 1) * scale
sparse-int4   uint8 [bytes], see sparse.py                 float32 [N]                         (code - 8) * scale
sparse-int8   uint8 [bytes], see sparse.py                 float32 [N]                         (code - 128) * scale
============  ===========================================  ==================================  ====================

The data of int8, int8-channel, int4 and t2 are as ``com.microsoft::MatMulNBits`` has them (block_size b or 128, K padded
with the code of zero). A row whose values are whole multiples of a step already, at most 127 (int4: 7) of them, has that
step for its scale and is kept exactly (grid.py); so are int4 blocks with a step each, as GPTQ makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UnsupportedError
from edgekit.lowbit import sparse
from edgekit.lowbit.grid import block_steps, grid_steps
from edgekit.lowbit.weights import RowWeight, Weight

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

NATIVE_BLOCK = 128
"""Codes of a block that edgekit's own operators read at a time."""
TERNARY_BLOCK = NATIVE_BLOCK
SPARSE_BITS = {"sparse-int4": 4, "sparse-int8": 8}
"""Formats that store only what is not zero, and the bits of a code."""
CHUNK = 1 << 18
"""Elements handled at a time: temporaries stay in the cache and never grow with the weight."""


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
        if self.format in SPARSE_BITS:
            data: Array = sparse.cut(np.asarray(self.data, np.uint8), start, stop)  # a copy, here
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


@dataclass(frozen=True)
class Format:
    """How one format packs and unpacks; ``bits`` are those of a code alone."""

    name: str
    bits: int
    default_block_size: int
    quantize: Callable[[Weight, int], PackedTensor]
    dequantize: Callable[[PackedTensor], Floats]


def block_count(size: int, block: int) -> int:
    """Blocks that ``size`` elements fill, the last one perhaps in part."""
    return -(-size // block)


def _row_chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _blocks(weight: Floats, block: int) -> Floats:
    """[n, K] as [n, ceil(K/b), b], padded with zeros."""
    count = block_count(weight.shape[1], block)
    padded = weight
    if weight.shape[1] != count * block:
        padded = np.zeros((weight.shape[0], count * block), np.float32)
        padded[:, : weight.shape[1]] = weight
    return padded.reshape(weight.shape[0], count, block)


def _rows(weight: Weight, part: slice) -> Floats:
    rows = np.ascontiguousarray(weight[part], dtype=np.float32)
    if not np.isfinite(rows).all():
        raise UnsupportedError("weight holds NaN or infinity; a model with such weights cannot be quantized")
    return rows


def _safe(scale: Floats) -> Floats:
    """Scales with zeros (all-zero blocks, or too small to divide by) replaced by one."""
    return np.where(np.abs(scale) < np.finfo(np.float32).tiny * 256, np.float32(1), scale).astype(np.float32)


def _gridded(rows: Floats, scales: Floats, most: int) -> Floats:
    """Scales [n, ...] of rows [n, K], where a row lies on a grid already its step: it is then kept exactly."""
    steps = grid_steps(rows, most).reshape(-1, *[1] * (scales.ndim - 1))
    return np.where(steps > 0, steps, scales)


def quantize_fp32(weight: Weight, block_size: int) -> PackedTensor:
    return PackedTensor("fp32", _shape(weight), 0, np.asarray(weight[:], np.float32))


def quantize_fp16(weight: Weight, block_size: int) -> PackedTensor:
    """Rounds to float16; refuses weights beyond its range instead of storing infinity."""
    data = np.empty(_shape(weight), np.float16)
    for part in _row_chunks(*_shape(weight)):
        rows = np.asarray(weight[part], np.float32)
        largest = float(np.abs(rows).max(initial=0.0))
        if not largest <= float(np.finfo(np.float16).max):
            raise UnsupportedError(
                f"largest weight is {largest:.3g}, float16 holds at most 65504; use fp32 for this layer"
            )
        data[part] = rows
    return PackedTensor("fp16", _shape(weight), 0, data)


def dequantize_float(packed: PackedTensor) -> Floats:
    return np.asarray(packed.data, np.float32)


def quantize_int8(weight: Weight, block_size: int) -> PackedTensor:
    """Symmetric: scale = absmax / 127 of each block, codes 1 to 255."""
    block = block_size or FORMATS["int8"].default_block_size
    rows, count = _shape(weight)[0], block_count(_shape(weight)[1], block)
    data, scales = np.empty((rows, count, block), np.uint8), np.empty((rows, count), np.float32)
    for part in _row_chunks(rows, weight.shape[1]):
        values = _rows(weight, part)
        blocks = _blocks(values, block)
        scale = _gridded(values, _safe(np.abs(blocks).max(axis=-1) / np.float32(127)), 127)
        data[part] = (np.rint(blocks / scale[..., None]) + 128).astype(np.uint8)
        scales[part] = scale
    return PackedTensor("int8", _shape(weight), block, data, scales)


def dequantize_int8(packed: PackedTensor) -> Floats:
    return _scaled(packed, packed.data, 128)


def quantize_int8_channel(weight: Weight, block_size: int) -> PackedTensor:
    """Symmetric: scale = absmax / 127 of each row, codes 1 to 255."""
    (rows, columns), count = _shape(weight), block_count(_shape(weight)[1], NATIVE_BLOCK)
    data = np.full((rows, count * NATIVE_BLOCK), 128, np.uint8)
    scales = np.empty(rows, np.float32)
    for part in _row_chunks(rows, columns):
        values = _rows(weight, part)
        scales[part] = _gridded(values, _safe(np.abs(values).max(axis=-1, initial=0) / np.float32(127)), 127)
        data[part, :columns] = np.rint(values / scales[part, None]) + 128
    return PackedTensor("int8-channel", (rows, columns), NATIVE_BLOCK, data.reshape(rows, count, -1), scales)


def dequantize_int8_channel(packed: PackedTensor) -> Floats:
    assert packed.scales is not None
    return _scaled(replace(packed, scales=packed.scales[:, None]), packed.data, 128)


def quantize_int4(weight: Weight, block_size: int) -> PackedTensor:
    """Symmetric, codes 0 to 15 for -8 to 7; the weight of largest magnitude in a block becomes -8 exactly.

    Searching a smaller range for the least squared error was tried and costs accuracy: it clips the largest weights,
    which matter most (docs/adr/0011).
    """
    block = block_size or FORMATS["int4"].default_block_size
    rows, count = _shape(weight)[0], block_count(_shape(weight)[1], block)
    data, scales = np.empty((rows, count, block // 2), np.uint8), np.empty((rows, count), np.float32)
    for part in _row_chunks(rows, weight.shape[1]):
        values = _rows(weight, part)
        blocks = _blocks(values, block)
        high, low = blocks.max(axis=-1), blocks.min(axis=-1)
        scale = _safe(np.where(high > -low, high, low) / np.float32(-8))
        steps = block_steps(blocks, 7)
        scale = _gridded(values, np.where(steps > 0, steps, scale), 7)
        codes = (np.clip(np.rint(blocks / scale[..., None]), -8, 7) + 8).astype(np.uint8)
        data[part] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        scales[part] = scale
    return PackedTensor("int4", _shape(weight), block, data, scales)


def dequantize_int4(packed: PackedTensor) -> Floats:
    data = np.asarray(packed.data, np.uint8)
    codes = np.empty((*data.shape[:-1], packed.block_size), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = data & 15, data >> 4
    return _scaled(packed, codes, 8)


def _scaled(packed: PackedTensor, codes: Array, zero: int) -> Floats:
    """(codes - zero) * scale as float32 [N, K]."""
    assert packed.scales is not None
    rows, columns = packed.shape
    values = codes.astype(np.float32)
    values -= np.float32(zero)
    values *= packed.scales[..., None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


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
    rows, count = weight.shape[0], block_count(weight.shape[1], TERNARY_BLOCK)
    found = np.zeros((rows, count), np.float32)
    for part in _row_chunks(rows, weight.shape[1]):
        scales = _block_scales(np.asarray(weight[part], np.float32))
        if scales is None:
            return None
        found[part] = scales
    return _coarsest(found)


def _block_scales(rows: Floats) -> Floats | None:
    """The magnitude of each block of 128, 0 where all are zero; None when a block holds two magnitudes."""
    blocks = np.abs(_blocks(rows, TERNARY_BLOCK))
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
        values = len(np.unique(np.abs(np.asarray(weight[: max(1, CHUNK // _shape(weight)[1])]))))
        raise UnsupportedError(
            f"weight has {values} distinct magnitudes, t2 needs {{-s, 0, s}} per tensor, row or 128 columns"
        )
    return pack_t2(weight, scales)


def pack_t2(weight: Weight, scales: Floats) -> PackedTensor:
    """The signs of a weight [N, K] with the given scales as a packed tensor."""
    (rows, columns), count = _shape(weight), block_count(_shape(weight)[1], TERNARY_BLOCK)
    data = np.empty((rows, count, TERNARY_BLOCK // 4), np.uint8)
    for part in _row_chunks(rows, columns):
        if isinstance(weight, RowWeight) and weight.codes is not None:
            codes = weight.codes(part.start, part.stop)
        else:
            codes = np.sign(weight[part]).astype(np.int8)
        padded = np.ones((len(codes), count * TERNARY_BLOCK), np.uint8)
        np.add(codes, 1, out=padded[:, :columns], casting="unsafe")
        # Four codes that are neighbours as the bytes of one little-endian number: moved together by shifts.
        quads = padded.view("<u4").reshape(-1, count, TERNARY_BLOCK // 4)
        data[part] = quads | quads >> 6 | quads >> 12 | quads >> 18
    return PackedTensor("t2", (rows, columns), TERNARY_BLOCK, data, scales)


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
        values *= np.repeat(scales, TERNARY_BLOCK, axis=1)[:, : packed.shape[1]]
    else:
        values *= scales[:, None] if scales.size > 1 else scales[0]
    return np.ascontiguousarray(values)


def sparse_codes(weight: Weight, bits: int) -> Iterator[tuple[NDArray[np.int8], Floats]]:
    """A weight [N, K] rounded per row, some rows at a time: signed codes int8 [n, K] and scales float32 [n].

    As in the dense formats: absmax / 127, and with 4 bits the row's weight of largest magnitude becomes -8 exactly.
    """
    most = (1 << (bits - 1)) - 1
    for part in _row_chunks(*_shape(weight)):
        rows = _rows(weight, part)
        high, low = rows.max(axis=1, initial=0), rows.min(axis=1, initial=0)
        if bits == 4:
            scale = _safe(np.where(high > -low, high, low) / np.float32(-most - 1))
        else:
            scale = _safe(np.maximum(high, -low) / np.float32(most))
        scale = _gridded(rows, scale, most)
        yield np.clip(np.rint(rows / scale[:, None]), -most - 1, most).astype(np.int8), scale


def _quantize_sparse(name: str, weight: Weight) -> PackedTensor:
    parts = list(sparse_codes(weight, SPARSE_BITS[name]))
    data = sparse.pack((codes for codes, _ in parts), weight.shape[0], SPARSE_BITS[name])
    scales = np.concatenate([scale for _, scale in parts])
    return PackedTensor(name, _shape(weight), NATIVE_BLOCK, data, scales)


def sparse_facts(weight: Weight, bits: int) -> tuple[float, int]:
    """The share of a weight's codes that are zero after rounding, and the bytes that storing the others takes."""
    zeros, sizes = 0, []
    for codes, _ in sparse_codes(weight, bits):
        zeros += int(codes.size - np.count_nonzero(codes))
        sizes.append(sparse.row_bytes(codes, bits))
    return zeros / max(1, weight.shape[0] * weight.shape[1]), sparse.total_bytes(np.concatenate(sizes))


def quantize_sparse_int4(weight: Weight, block_size: int) -> PackedTensor:
    return _quantize_sparse("sparse-int4", weight)


def quantize_sparse_int8(weight: Weight, block_size: int) -> PackedTensor:
    return _quantize_sparse("sparse-int8", weight)


def unpack_sparse(packed: PackedTensor) -> NDArray[np.int8]:
    """Signed codes int8 [N, K] of a sparse tensor. Raises BundleError when its bytes contradict each other."""
    return sparse.unpack(np.asarray(packed.data, np.uint8), *packed.shape, SPARSE_BITS[packed.format])


def dequantize_sparse(packed: PackedTensor) -> Floats:
    assert packed.scales is not None
    values = unpack_sparse(packed).astype(np.float32)
    values *= packed.scales[:, None] if packed.scales.size > 1 else packed.scales[0]
    return values


def _shape(weight: Weight) -> tuple[int, int]:
    return int(weight.shape[0]), int(weight.shape[1])


FORMATS: dict[str, Format] = {
    "fp32": Format("fp32", 32, 0, quantize_fp32, dequantize_float),
    "fp16": Format("fp16", 16, 0, quantize_fp16, dequantize_float),
    "int8": Format("int8", 8, 64, quantize_int8, dequantize_int8),
    "int8-channel": Format("int8-channel", 8, NATIVE_BLOCK, quantize_int8_channel, dequantize_int8_channel),
    "int4": Format("int4", 4, 64, quantize_int4, dequantize_int4),
    "t2": Format("t2", 2, TERNARY_BLOCK, quantize_t2, dequantize_t2),
    "sparse-int4": Format("sparse-int4", 4, NATIVE_BLOCK, quantize_sparse_int4, dequantize_sparse),
    "sparse-int8": Format("sparse-int8", 8, NATIVE_BLOCK, quantize_sparse_int8, dequantize_sparse),
}
