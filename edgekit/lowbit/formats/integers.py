"""int8, int8-channel, int4 and int4-fp16: whole numbers times a scale for each block or row, as MatMulNBits has them.

A row whose values are whole multiples of a step already, at most 127 (int4: 7) of them, has that step for its scale and is
kept exactly (grid.py); so are int4 blocks with a step each, as GPTQ makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats.packed import (
    Array,
    Floats,
    PackedTensor,
    block_count,
    divisors,
    finite_rows,
    in_blocks,
    on_grid,
    row_chunks,
    scaled,
    shape_of,
)
from edgekit.lowbit.grid import block_steps
from edgekit.lowbit.step_search import search_scales
from edgekit.lowbit.weights import Weight
from edgekit.spec.formats import FORMATS, NATIVE_BLOCK

Codes = NDArray[np.uint8]
FLOAT16_MOST, FLOAT16_LEAST = np.float32(65504), np.float32(2**-24)


def by_blocks(
    name: str, weight: Weight, block_size: int, scale_of: Callable[[Floats], Floats], pack: Callable[[Codes], Array]
) -> PackedTensor:
    """A weight in blocks with a scale each, which ``scale_of`` gives [n, blocks] for values [n, blocks, b]; codes of ``bits``
    bits count from half their range, and ``pack`` puts them [n, blocks, b] into bytes."""
    kind = FORMATS[name]
    block, most, shape = block_size or kind.block_size, (1 << (kind.bits - 1)) - 1, shape_of(weight)
    count = block_count(shape[1], block)
    data = np.empty((shape[0], count, block * kind.bits // 8), np.uint8)
    scales = np.empty((shape[0], count), f"float{kind.scale_bits}")
    for part in row_chunks(*shape):
        values = finite_rows(weight, part)
        blocks = in_blocks(values, block)
        scale = on_grid(values, scale_of(blocks), most)
        scales[part] = scale = scale if kind.scale_bits == 32 else _halves(scale, blocks)
        data[part] = pack((np.clip(np.rint(blocks / scale[..., None]), -most - 1, most) + (most + 1)).astype(np.uint8))
    return PackedTensor(name, shape, block, data, scales)


def quantize_int8(weight: Weight, block_size: int) -> PackedTensor:
    """Symmetric: scale = absmax / 127 of each block, codes 1 to 255."""
    return by_blocks(
        "int8", weight, block_size, lambda b: divisors(np.abs(b).max(axis=-1) / np.float32(127)), lambda c: c
    )


def dequantize_int8(packed: PackedTensor) -> Floats:
    return scaled(packed, packed.data, 128)


def quantize_int8_channel(weight: Weight, block_size: int) -> PackedTensor:
    """Symmetric: scale = absmax / 127 of each row, codes 1 to 255."""
    (rows, columns), count = shape_of(weight), block_count(shape_of(weight)[1], NATIVE_BLOCK)
    data = np.full((rows, count * NATIVE_BLOCK), 128, np.uint8)
    scales = np.empty(rows, np.float32)
    for part in row_chunks(rows, columns):
        values = finite_rows(weight, part)
        scales[part] = on_grid(values, divisors(np.abs(values).max(axis=-1, initial=0) / np.float32(127)), 127)
        data[part, :columns] = np.rint(values / scales[part, None]) + 128
    return PackedTensor("int8-channel", (rows, columns), NATIVE_BLOCK, data.reshape(rows, count, -1), scales)


def dequantize_int8_channel(packed: PackedTensor) -> Floats:
    assert packed.scales is not None
    return scaled(replace(packed, scales=packed.scales[:, None]), packed.data, 128)


def quantize_int4(weight: Weight, block_size: int, moments: Floats | None = None, name: str = "int4") -> PackedTensor:
    """Symmetric, codes 0 to 15 for -8 to 7; the weight of largest magnitude in a block becomes -8 exactly.

    With ``moments`` float32 [K], the mean squares of the layer's inputs, each block has the scale with which its outputs
    lose least instead (step_search.py). ``name`` int4-fp16: scales are float16. Raises UnsupportedError for weights beyond
    its range.
    """

    def searched(blocks: Floats) -> Floats:
        assert moments is not None
        return search_scales(blocks, in_blocks(moments[None], blocks.shape[-1])[0], _int4_scales(blocks), 7)

    scale_of = _int4_scales if moments is None else searched
    return by_blocks(name, weight, block_size, scale_of, lambda codes: codes[..., 0::2] | codes[..., 1::2] << 4)


def _halves(scales: Floats, blocks: Floats) -> Floats:
    """The nearest numbers that float16 holds, not zero, as float32.

    A block of whole multiples of a float16 step may have been found with several of it, which float16 does not hold.
    """
    if np.abs(scales).max(initial=0) > FLOAT16_MOST:
        most = np.abs(scales).max()
        raise UnsupportedError(
            f"needs scales of up to {most:.3g}, float16 holds at most 65504; use int4, whose scales are float32"
        )
    largest = np.abs(blocks).max(axis=-1)
    for part in (3, 5, 7):
        finer = scales / np.float32(part)
        fits = (scales.astype(np.float16) != scales) & (finer.astype(np.float16) == finer)
        scales = np.where(fits & (largest <= 7.5 * np.abs(finer)), finer, scales)
    halves = scales.astype(np.float16)
    return np.where(halves == 0, np.copysign(FLOAT16_LEAST, scales), halves).astype(np.float32)


def _int4_scales(blocks: Floats) -> Floats:
    high, low, steps = blocks.max(axis=-1), blocks.min(axis=-1), block_steps(blocks, 7)
    return np.where(steps > 0, steps, divisors(np.where(high > -low, high, low) / np.float32(-8)))


def dequantize_int4(packed: PackedTensor) -> Floats:
    return scaled(packed, _int4_codes(packed), 8)


def unpack_int4(packed: PackedTensor) -> NDArray[np.int8]:
    """Codes int8 [N, K] in -8..7 of an int4 tensor."""
    return _int4_codes(packed).reshape(packed.shape[0], -1)[:, : packed.shape[1]].astype(np.int8) - np.int8(8)


def _int4_codes(packed: PackedTensor) -> Codes:
    """As stored, [N, blocks, b]."""
    data = np.asarray(packed.data, np.uint8)
    codes = np.empty((*data.shape[:-1], packed.block_size), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = data & 15, data >> 4
    return codes
