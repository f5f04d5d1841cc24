"""fp32 and fp16: the numbers themselves."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats.packed import Floats, PackedTensor, row_chunks, shape_of
from edgekit.lowbit.weights import Weight


def quantize_fp32(weight: Weight, block_size: int) -> PackedTensor:
    return PackedTensor("fp32", shape_of(weight), 0, np.asarray(weight[:], np.float32))


def quantize_fp16(weight: Weight, block_size: int) -> PackedTensor:
    """Rounds to float16; refuses weights beyond its range instead of storing infinity."""
    data = np.empty(shape_of(weight), np.float16)
    for part in row_chunks(*shape_of(weight)):
        rows = np.asarray(weight[part], np.float32)
        largest = float(np.abs(rows).max(initial=0.0))
        if not largest <= float(np.finfo(np.float16).max):
            raise UnsupportedError(
                f"largest weight is {largest:.3g}, float16 holds at most 65504; use fp32 for this layer"
            )
        data[part] = rows
    return PackedTensor("fp16", shape_of(weight), 0, data)


def dequantize_float(packed: PackedTensor) -> Floats:
    return np.asarray(packed.data, np.float32)
