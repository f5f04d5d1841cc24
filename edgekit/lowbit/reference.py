"""Exact numpy models of what the operators compute: slow, obviously right, and what every kernel is compared with.

The text to read beside this is ``docs/operators.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.lowbit.formats import PackedTensor, block_count, unpack_int4, unpack_sparse, unpack_t2
from edgekit.spec.formats import NATIVE_BLOCK

Floats = NDArray[np.float32]

SMALLEST = np.float32(1e-30)
"""The least that a block's absmax counts as: 127 / absmax then stays finite, and a block of zeros needs no branch."""


def activation_codes(x: Floats, block_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Rounds rows of ``x`` float32 [M, K] to int8 in blocks of ``block_size`` (0 = the whole row).

    Returns codes int8 [M, K] in -127..127 and steps float32 [M, blocks]; the last block may be short. With
    ``a = max(absmax, 1e-30)``: code = x * (127 / a), rounded half to even, and step = a / 127, all in float32. This is
    BitNet's own arithmetic (127 / absmax is divided once, then multiplied), and bit for bit that of
    ``com.microsoft::MatMulNBits`` with accuracy_level 4 on x86 (MLAS, measured in ``tests/conformance``).
    """
    rows, columns = x.shape
    block = block_size or max(1, columns)
    count = block_count(columns, block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :columns] = x
    blocks = padded.reshape(rows, count, block)
    largest = np.maximum(np.abs(blocks).max(axis=-1, initial=0), SMALLEST)
    codes = np.rint(blocks * (np.float32(127) / largest)[..., None]).astype(np.int8)
    return codes.reshape(rows, count * block)[:, :columns], largest / np.float32(127)


def quantize_activations(x: Floats, block_size: int) -> Floats:
    """``x`` float32 [M, K] after rounding to int8 and back; see :func:`activation_codes`."""
    codes, steps = activation_codes(x, block_size)
    block = block_size or max(1, x.shape[1])
    return codes.astype(np.float32) * np.repeat(steps, block, axis=1)[:, : x.shape[1]]


def ternary_matmul(
    x: Floats, weight: PackedTensor, bias: Floats | None = None, activation_block_size: int = 0
) -> Floats:
    """``ai.edgekit::TernaryMatMul``: float32 [M, K] by a t2 weight [N, K] -> float32 [M, N].

    K is walked in pieces over which both the activations' step and the weight's scale are constant: the whole row, or
    128 columns. Sums of codes are exact integers (int64 here; int32 suffices for K < 2**24). Each becomes float32, is
    multiplied by the float32 product step * scale, and is added to the pieces before it in float32; bias comes last.
    ``activation_block_size`` is 0 or 128.
    """
    assert weight.scales is not None
    return _matmul(x, unpack_t2(weight).astype(np.int64), weight.scales, bias, activation_block_size)


def _matmul(
    x: Floats,
    weight: NDArray[np.int64],
    scales: Floats,
    bias: Floats | None,
    activation_block_size: int,
    block: int = NATIVE_BLOCK,
) -> Floats:
    """``x`` by integers [N, K] and their scales [1], [N] or [N, blocks of ``block``]."""
    assert activation_block_size in (0, block)
    codes, steps = activation_codes(x, activation_block_size)
    columns = x.shape[1]
    grouped = scales.ndim == 2
    piece = block if grouped or activation_block_size else max(1, columns)
    out = np.zeros((len(x), weight.shape[0]), np.float32)
    for index, start in enumerate(range(0, columns, piece)):
        part = slice(start, start + piece)
        sums = codes[:, part].astype(np.int64) @ weight[:, part].T
        step = steps[:, index if activation_block_size else 0]
        scale = scales[:, index] if grouped else scales
        out += sums.astype(np.float32) * (step[:, None] * scale)
    return out if bias is None else out + bias


def int8_matmul(x: Floats, weight: PackedTensor, bias: Floats | None = None, activation_block_size: int = 0) -> Floats:
    """``ai.edgekit::Int8MatMul``: float32 [M, K] by int8 codes uint8 [N, blocks of 128, 128] -> float32 [M, N].

    ``weight`` has scales [1] or [N]. The rules are those of :func:`ternary_matmul` with (code - 128) for (code - 1).
    """
    assert weight.scales is not None
    return _matmul(x, _signed_int8(weight), weight.scales, bias, activation_block_size)


def sparse_matmul(
    x: Floats, weight: PackedTensor, bias: Floats | None = None, activation_block_size: int = 0
) -> Floats:
    """``ai.edgekit::SparseMatMul``: float32 [M, K] by a sparse-int4 or sparse-int8 weight [N, K] -> float32 [M, N].

    ``weight`` has scales [1] or [N]. The rules are those of :func:`ternary_matmul`; what is not stored is zero.
    """
    assert weight.scales is not None
    return _matmul(x, unpack_sparse(weight).astype(np.int64), weight.scales, bias, activation_block_size)


def block_matmul(x: Floats, weight: PackedTensor, bias: Floats | None = None, activation_block_size: int = 0) -> Floats:
    """``ai.edgekit::Int4MatMul`` and ``Int8BlockMatMul``: float32 [M, K] by an int4 or int8 weight [N, K] in blocks of b
    -> float32 [M, N].

    The rules are those of :func:`ternary_matmul` with scales [N, blocks of b] and (code - 8) or (code - 128) for (code - 1);
    ``activation_block_size`` is 0 or b. Scales of float16 (int4-fp16) are widened first.
    """
    assert weight.scales is not None
    codes = _signed_int8(weight) if weight.format == "int8" else unpack_int4(weight).astype(np.int64)
    return _matmul(x, codes, weight.scales.astype(np.float32), bias, activation_block_size, weight.block_size)


def expert_matmul(x: Floats, index: NDArray[np.int64], weight: PackedTensor, experts: int) -> Floats:
    """``ai.edgekit::ExpertMatMul``: float32 [T, K] or [T, k, K], each row by the weight of the expert that ``index`` [T, k] gives
    for it -> float32 [T, k, N].

    ``weight`` [E N, K] is the ``experts`` weights, one below the other, t2, int4 or int8 with scales [E N, blocks]. The rules are
    those of :func:`block_matmul` and :func:`ternary_matmul`, with activations rounded in its blocks.
    """
    rows = weight.shape[0] // experts
    multiply = ternary_matmul if weight.format == "t2" else block_matmul
    out = np.zeros((*index.shape, rows), np.float32)
    for (token, place), chosen in np.ndenumerate(index):
        expert = int(chosen)
        row = x[token] if x.ndim == 2 else x[token, place]
        part = weight.rows(expert * rows, (expert + 1) * rows)
        out[token, place] = multiply(row[None], part, None, weight.block_size)[0]
    return out


def _signed_int8(weight: PackedTensor) -> NDArray[np.int64]:
    """Codes [N, K] of an int8 tensor in blocks, counted from 0."""
    return weight.data.reshape(weight.shape[0], -1)[:, : weight.shape[1]].astype(np.int64) - 128
