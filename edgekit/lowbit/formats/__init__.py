"""Weight formats: the only place where the bytes of a packed weight are defined, as docs/operators.md has them.

A file a family packs and unpacks; what else is known of a format is its row in spec/formats.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgekit.lowbit.formats.floats import dequantize_float, quantize_fp16, quantize_fp32
from edgekit.lowbit.formats.integers import (
    dequantize_int4,
    dequantize_int8,
    dequantize_int8_channel,
    quantize_int4,
    quantize_int8,
    quantize_int8_channel,
    unpack_int4,
)
from edgekit.lowbit.formats.packed import Floats, PackedTensor, block_count, row_chunks, shape_of
from edgekit.lowbit.formats.sparse import (
    dequantize_sparse,
    quantize_sparse,
    sparse_facts,
    unpack_sparse,
)
from edgekit.lowbit.formats.ternary import dequantize_t2, detect_ternary, pack_t2, quantize_t2, unpack_t2
from edgekit.lowbit.weights import Weight

__all__ = [
    "CODECS", "Codec", "PackedTensor", "block_count", "detect_ternary", "keeps", "pack_t2", "sparse_facts", "unpack_int4",
    "unpack_sparse", "unpack_t2",
]  # fmt: skip


@dataclass(frozen=True)
class Codec:
    """How one format packs a weight in blocks of a given size (0 = its default), and unpacks it."""

    quantize: Callable[[Weight, int], PackedTensor]
    dequantize: Callable[[PackedTensor], Floats]


CODECS: dict[str, Codec] = {
    "fp32": Codec(quantize_fp32, dequantize_float),
    "fp16": Codec(quantize_fp16, dequantize_float),
    "int8": Codec(quantize_int8, dequantize_int8),
    "int8-channel": Codec(quantize_int8_channel, dequantize_int8_channel),
    "int4": Codec(quantize_int4, dequantize_int4),
    "int4-fp16": Codec(partial(quantize_int4, name="int4-fp16"), dequantize_int4),
    "t2": Codec(quantize_t2, dequantize_t2),
    "sparse-int4": Codec(partial(quantize_sparse, "sparse-int4"), dequantize_sparse),
    "sparse-int8": Codec(partial(quantize_sparse, "sparse-int8"), dequantize_sparse),
}


def keeps(name: str, block: int, weight: Weight) -> bool:
    """Whether a format in blocks of so many weights (0 = its default) holds a weight [N, K] bit for bit."""
    rows, columns = shape_of(weight)
    glance = slice(0, min(rows, 4))  # tells nearly always that it does not
    parts = (np.asarray(weight[part], np.float32) for part in (glance, *row_chunks(rows, columns)))
    return all(_keeps(CODECS[name], block, part) for part in parts)


def _keeps(codec: Codec, block: int, rows: Floats) -> bool:
    return np.array_equal(codec.dequantize(codec.quantize(rows, block)), rows)
