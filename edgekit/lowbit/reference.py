"""Exact numpy models of what the operators compute: slow, obviously right, and what every kernel is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.lowbit.formats import PackedTensor, block_count, unpack_t2

Floats = NDArray[np.float32]


def activation_codes(x: Floats, block_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Rounds rows of ``x`` float32 [M, K] to int8 in blocks of ``block_size`` (0 = the whole row).

    Returns codes int8 [M, K] in -127..127 and scales float32 [M, blocks]: scale = absmax / 127, round half to even, the
    last block may be short. An all-zero block has codes 0 and scale 0. Source: BitNet b1.58 training tips (per token);
    ``com.microsoft::MatMulNBits`` with accuracy_level 4 (per block).
    """
    rows, columns = x.shape
    block = block_size or max(1, columns)
    count = block_count(columns, block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :columns] = x
    blocks = padded.reshape(rows, count, block)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.clip(np.rint(blocks * inverse[..., None]), -127, 127).astype(np.int8)
    return codes.reshape(rows, -1)[:, :columns], scales


def quantize_activations(x: Floats, block_size: int) -> Floats:
    """``x`` float32 [M, K] after rounding to int8 and back; see :func:`activation_codes`."""
    codes, scales = activation_codes(x, block_size)
    block = block_size or max(1, x.shape[1])
    return codes.astype(np.float32) * np.repeat(scales, block, axis=1)[:, : x.shape[1]]


def ternary_matmul(
    x: Floats, weight: PackedTensor, bias: Floats | None = None, activation_block_size: int = 0
) -> Floats:
    """``ai.edgekit::TernaryMatMul``: float32 [M, K] by a t2 weight [N, K] -> float32 [M, N].

    Integer sums are exact (int64 here, int32 suffices for K < 2**24). Where scales change along K, each block's sum is
    scaled in float64 before they are added, which is the value that float32 kernels approximate.
    """
    assert weight.scales is not None
    codes, steps = activation_codes(x, activation_block_size)
    ternary = unpack_t2(weight).astype(np.int64)
    columns = x.shape[1]
    block = min(128 if weight.scales.ndim == 2 else columns, activation_block_size or columns) or 1
    out = np.zeros((len(x), weight.shape[0]), np.float64)
    for start in range(0, columns, block):
        part = slice(start, min(start + block, columns))
        sums = codes[:, part].astype(np.int64) @ ternary[:, part].T
        step = steps[:, start // (activation_block_size or max(1, columns))][:, None].astype(np.float64)
        scale = weight.scales[:, start // 128] if weight.scales.ndim == 2 else weight.scales
        out += sums * step * scale.astype(np.float64)
    if bias is not None:
        out += bias
    return out.astype(np.float32)
