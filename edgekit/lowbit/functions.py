"""ONNX function bodies of the operators of ``ai.edgekit``.

:func:`ternary_function` and :func:`int8_function` are what a bundle carries and a runtime without edgekit's library
executes: one ``com.microsoft::MatMulNBits`` with 2 or 8 bits, block_size 128 and accuracy_level 4, which reads the very
bytes of the operator's W. It rounds activations per block of 128, whatever ``activation_block_size`` says, so it equals the
operator up to that rounding; ONNX Runtime runs it fast from 1.28 on. When the library is registered, its kernel wins
over the body.

:func:`block_function` is one such node too, in the operator's own blocks: with activations rounded in these blocks it
computes the same but for the order of float sums.

:func:`sparse_function` writes its weights out as 8-bit codes with standard operators and goes on in the same way. ONNX
Runtime does that once, while it loads the model (constant folding): the model then runs at the speed and size of 8 bits.

:func:`expert_function` goes through the experts that some row goes to, one after the other, with such a node for each; it rounds
X itself, as that node does not where weights are chosen while it runs.

:func:`attention_function` is one ``com.microsoft::GroupQueryAttention``.

:func:`exact_function` is the operator's definition in standard operators, bit for bit, for tests of kernels: slow, and
every weight becomes a float in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.lowbit.reference import SMALLEST
from edgekit.spec.formats import NATIVE_BLOCK
from edgekit.spec.names import (
    CACHED_ATTENTION,
    EDGEKIT,
    EXPERT_MATMUL,
    GROUP_QUERY_ATTENTION,
    INT4_MATMUL,
    INT8_BLOCK_MATMUL,
    INT8_MATMUL,
    MATMUL_NBITS,
    MICROSOFT,
    SPARSE_MATMUL,
    TERNARY_MATMUL,
)

INTS = ("K", "N", "activation_block_size")
ATTENTION_INTS = ("num_heads", "kv_num_heads", "local_window_size", "do_rotary", "rotary_interleaved")
ATTENTION_FLOATS = ("scale", "softcap")
ATTENTION_INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "head_sink",
)  # fmt: skip
_NATIVE_BLOCKS = ir.AttrInt64("block_size", NATIVE_BLOCK)


class _Body:
    """The nodes of one function, in the order in which they are called."""

    def __init__(self, prefix: str = "v") -> None:
        self.nodes: list[ir.Node] = []
        self.prefix = prefix

    def op(self, op: str, *inputs: ir.Value | None, domain: str = "", attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        node = ir.Node(domain, op, inputs, attributes, num_outputs=1)
        node.outputs[0].name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return self.op(op, *inputs, attributes=[ir.AttrInt64(name, value) for name, value in attributes.items()])

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        return self.op("Constant", attributes=[ir.AttrTensor("value", ir.tensor(array))])

    def attribute(self, name: str) -> ir.Value:
        """An int attribute of the function as a tensor int64 [1]."""
        return self.op(
            "Reshape",
            self.op("Constant", attributes=[ir.RefAttr("value_int", name, ir.AttributeType.INT)]),
            self.constant(np.array([1], np.int64)),
        )

    def number(self, *values: int) -> ir.Value:
        """int64, a scalar or a vector."""
        return self.constant(np.array(values if len(values) > 1 else values[0], np.int64))

    def function(
        self, name: str, inputs: Sequence[ir.Value], output: ir.Value, ints: Sequence[str] = INTS
    ) -> ir.Function:
        imports = {"": 21, MICROSOFT: 1}
        graph = ir.Graph(inputs, [output], nodes=self.nodes, opset_imports=imports, name=name)
        attributes = [ir.Attr(number, ir.AttributeType.INT, None) for number in ints]
        return ir.Function(EDGEKIT, name, graph=graph, attributes=attributes)


def ternary_function() -> ir.Function:
    """``TernaryMatMul(X, W, scales, bias?) -> Y``, attributes K, N, activation_block_size; any shape of scales."""
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    four, three = (body.constant(np.array([n], np.int64)) for n in (4, 3))
    quads = body.op("Div", body.op("Add", body.ints("Shape", w, start=1, end=2), three), four)
    # Four zero points of 2 bits a byte: 0b01010101.
    zero = body.op(
        "Expand",
        body.constant(np.array([0x55], np.uint8)),
        body.ints("Concat", body.ints("Shape", w, start=0, end=1), quads, axis=0),
    )
    y = _matmul(body, 2, x, w, _every_scale(body, w, scales), zero, bias)
    return body.function(TERNARY_MATMUL, [x, w, scales, bias], y)


def int8_function() -> ir.Function:
    """``Int8MatMul(X, W, scales, bias?) -> Y``, attributes K, N, activation_block_size; scales [1] or [N]."""
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    y = _matmul(body, 8, x, w, _every_scale(body, w, scales), None, bias)  # codes count from 128, as MatMulNBits has it
    return body.function(INT8_MATMUL, [x, w, scales, bias], y)


def sparse_function() -> ir.Function:
    """``SparseMatMul(X, W, scales, bias?) -> Y``, attributes K, N, bits, activation_block_size; scales [1] or [N]."""
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    codes = _dense_codes(body, w)
    y = _matmul(body, 8, x, codes, _every_scale(body, codes, scales), None, bias)
    return body.function(SPARSE_MATMUL, [x, w, scales, bias], y, (*INTS, "bits"))


def block_function(name: str, bits: int) -> ir.Function:
    """``Int4MatMul`` or ``Int8BlockMatMul(X, W, scales, bias?) -> Y``, attributes K, N, block_size, activation_block_size;
    scales [N, blocks], those of 4 bits also in float16, which ONNX Runtime widens once, while it loads the model."""
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    wide = body.ints("Cast", scales, to=ir.DataType.FLOAT.value) if bits == 4 else scales
    y = _matmul(body, bits, x, w, wide, None, bias, ir.RefAttr("block_size", "block_size", ir.AttributeType.INT))
    return body.function(name, [x, w, scales, bias], y, (*INTS, "block_size"))


def expert_function() -> ir.Function:
    """``ExpertMatMul(X, index, W, scales) -> Y``, attributes K, N, bits, block_size."""
    inputs = x, index, w, scales = [ir.Value(name=n) for n in ("X", "index", "W", "scales")]
    body = _Body()
    k, n, bits, block = (body.attribute(name) for name in ("K", "N", "bits", "block_size"))
    one, last = body.constant(np.array([1], np.int64)), body.constant(np.array([-1], np.int64))
    chosen = body.op("Reshape", index, last)
    by_token = body.op(
        "Reshape", _rounded(body, x, block), body.ints("Concat", body.ints("Shape", index, end=1), last, k, axis=0)
    )
    for_pairs = body.op("Expand", by_token, body.ints("Concat", body.ints("Shape", index), one, axis=0))
    rows = body.op("Reshape", for_pairs, body.ints("Concat", last, k, axis=0))
    nothing = body.constant(np.array(0, np.float32))
    empty = body.op("Expand", nothing, body.ints("Concat", body.ints("Shape", chosen), n, axis=0))
    # A code of zero in every place of a byte, by the number of bits: 0b01010101, 0x88 and 0x80.
    zeros = body.constant(np.array([0, 0, 0x55, 0, 0x88, 0, 0, 0, 0x80], np.uint8))
    blocks = body.op("Mul", body.op("Div", k, block), bits)
    zero_bytes = body.op("Div", body.op("Add", blocks, body.number(7)), body.number(8))
    zero = body.op("Expand", body.ints("Gather", zeros, bits, axis=0), body.ints("Concat", n, zero_bytes, axis=0))

    each = _Body("e")
    before, expert = ir.Value(name="before"), ir.Value(name="expert")
    for value, kind in ((before, ir.DataType.FLOAT), (expert, ir.DataType.INT64)):
        value.type = ir.TensorType(kind)
    places = each.ints("Transpose", each.op("NonZero", each.op("Equal", chosen, expert)))
    own = each.ints("Gather", rows, each.op("Squeeze", places, one), axis=0)
    weight, steps = (each.ints("Gather", stored, expert, axis=0) for stored in (w, scales))
    settings = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in ("bits", "block_size", "K", "N")]
    product = each.op(MATMUL_NBITS, own, weight, steps, zero, domain=MICROSOFT, attributes=settings)
    after = each.op("ScatterND", before, places, product)
    after.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([before, expert], [after], nodes=each.nodes, name="of_one_expert")
    scan = [ir.AttrGraph("body", graph), ir.AttrInt64("num_scan_inputs", 1)]
    flat = body.op("Scan", empty, body.ints("Unique", chosen, sorted=1), attributes=scan)
    y = body.op("Reshape", flat, body.ints("Concat", body.ints("Shape", index), n, axis=0))
    return body.function(EXPERT_MATMUL, inputs, y, ("K", "N", "bits", "block_size"))


def _rounded(body: _Body, x: ir.Value, block: ir.Value) -> ir.Value:
    """X rounded to int8 and back in blocks, which are its rows here: float32 [-1, block]."""
    rows = body.op("Reshape", x, body.ints("Concat", body.constant(np.array([-1], np.int64)), block, axis=0))
    return body.op("Mul", *_codes(body, rows))


def _codes(body: _Body, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Rows rounded to int8, as floats, and their steps."""
    largest = body.ints("ReduceMax", body.op("Abs", rows), body.constant(np.array([-1], np.int64)), keepdims=1)
    largest = body.op("Max", largest, body.constant(np.array(SMALLEST)))
    full = body.constant(np.array(127, np.float32))
    codes = body.op("Round", body.op("Mul", rows, body.op("Div", full, largest)))
    return codes, body.op("Div", largest, full)


def attention_function() -> ir.Function:
    """``CachedAttention(*ATTENTION_INPUTS) -> output, present_key, present_value`` with the attributes above."""
    inputs = [ir.Value(name=name) for name in ATTENTION_INPUTS]
    kinds = [(name, ir.AttributeType.INT) for name in ATTENTION_INTS]
    kinds += [(name, ir.AttributeType.FLOAT) for name in ATTENTION_FLOATS]
    references = [ir.RefAttr(name, name, kind) for name, kind in kinds]
    *given, sink = inputs  # what the stock operator takes between them, positions and a bias, is left out
    node = ir.Node(MICROSOFT, GROUP_QUERY_ATTENTION, [*given, None, None, sink], references, num_outputs=3)
    for output, name in zip(node.outputs, ("output", "present_key", "present_value"), strict=True):
        output.name = name
    imports = {"": 21, MICROSOFT: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports, name=CACHED_ATTENTION)
    attributes = [ir.Attr(name, kind, None) for name, kind in kinds]
    return ir.Function(EDGEKIT, CACHED_ATTENTION, graph=graph, attributes=attributes)


FUNCTIONS: dict[str, Callable[[], ir.Function]] = {
    TERNARY_MATMUL: ternary_function,
    INT8_MATMUL: int8_function,
    SPARSE_MATMUL: sparse_function,
    INT4_MATMUL: partial(block_function, INT4_MATMUL, 4),
    INT8_BLOCK_MATMUL: partial(block_function, INT8_BLOCK_MATMUL, 8),
    EXPERT_MATMUL: expert_function,
    CACHED_ATTENTION: attention_function,
}
"""What makes the body of each operator."""


def _dense_codes(body: _Body, w: ir.Value) -> ir.Value:
    """A sparse W (lowbit/formats/sparse_rows.py) as uint8 [N, blocks, 128], codes from 128."""
    n, k, bits = (body.attribute(name) for name in ("N", "K", "bits"))
    one, two, eight, last = body.number(1), body.number(2), body.number(8), body.constant(np.array([-1], np.int64))
    blocks = body.op("Div", body.op("Add", k, body.number(NATIVE_BLOCK - 1)), body.number(NATIVE_BLOCK))
    own = body.op("Mul", blocks, body.number(NATIVE_BLOCK // 8))  # bytes of a row's mask
    firsts = _row_starts(body, w, n)

    spread = body.op("Range", body.number(0), body.op("Squeeze", own), one)
    mask = body.ints("Gather", w, body.op("Add", firsts, spread), axis=0)
    shifts = body.constant(np.arange(8, dtype=np.uint8))
    shifted = body.op(
        "BitShift", body.op("Unsqueeze", mask, last), shifts, attributes=[ir.AttrString("direction", "RIGHT")]
    )
    bit = body.op("BitwiseAnd", shifted, body.constant(np.array(1, np.uint8)))
    halves = body.ints("Concat", n, blocks, body.constant(np.array([2, 64], np.int64)), axis=0)
    stored = body.ints("Cast", body.op("Reshape", bit, halves), to=ir.DataType.INT64.value)

    # Codes of 8 bits follow one another over the whole row; those of 4 bits in each half of the bytes for itself.
    count = body.ints("ReduceSum", stored, last, keepdims=0)
    in_halves = body.ints("CumSum", count, one, exclusive=1)
    in_row = body.op("Reshape", count, body.ints("Concat", n, last, axis=0))
    in_row = body.op("Reshape", body.ints("CumSum", in_row, one, exclusive=1), body.ints("Shape", count))
    apart = body.op("Equal", bits, body.number(4))
    before = body.op("Where", apart, in_halves, in_row)
    start = body.op("Add", before, body.op("Unsqueeze", body.op("Add", firsts, own), last))
    rank = body.ints("CumSum", stored, body.number(3), exclusive=1)
    place = body.op("Add", body.op("Unsqueeze", start, last), rank)
    byte = body.ints("Cast", body.ints("Gather", w, place, axis=0), to=ir.DataType.INT64.value)
    up = body.op("Sub", eight, bits)  # of the second half's codes in their bytes
    above = body.op("Pow", two, body.op("Mul", up, body.constant(np.array([[0], [1]], np.int64))))
    range_ = body.op("Pow", two, bits)
    code = body.op("Mod", body.op("Div", byte, above), range_)
    value = body.op("Mul", body.op("Sub", code, body.op("Div", range_, two)), stored)
    from_128 = body.ints("Cast", body.op("Add", value, body.number(128)), to=ir.DataType.UINT8.value)
    shape = body.ints("Concat", n, blocks, body.constant(np.array([NATIVE_BLOCK], np.int64)), axis=0)
    return body.op("Reshape", from_128, shape)


def _row_starts(body: _Body, w: ir.Value, n: ir.Value) -> ir.Value:
    """int64 [N, 1]: the first N numbers of 32 bits."""
    bytes_ = body.op("Slice", w, body.constant(np.array([0], np.int64)), body.op("Mul", n, body.number(4)))
    wide = body.ints("Cast", bytes_, to=ir.DataType.INT64.value)
    quads = body.op("Reshape", wide, body.constant(np.array([-1, 4], np.int64)))
    weighted = body.op("Mul", quads, body.number(1, 1 << 8, 1 << 16, 1 << 24))
    return body.ints("ReduceSum", weighted, body.constant(np.array([1], np.int64)), keepdims=1)


def _every_scale(body: _Body, w: ir.Value, scales: ir.Value) -> ir.Value:
    """Scales of any shape, one for each block of each row."""
    first = body.ints("Shape", scales, start=0, end=1)
    # [1] -> [1, 1], [N] -> [N, 1], [N, blocks] stays; each then broadcasts to one scale a block.
    columns = body.op("Reshape", scales, body.ints("Concat", first, body.constant(np.array([-1], np.int64)), axis=0))
    return body.op("Expand", columns, body.ints("Shape", w, start=0, end=2))  # N, blocks


def _matmul(
    body: _Body,
    bits: int,
    x: ir.Value,
    w: ir.Value,
    scales: ir.Value,
    zero: ir.Value | None,
    bias: ir.Value,
    block_size: ir.Attr = _NATIVE_BLOCKS,
) -> ir.Value:
    settings = [ir.AttrInt64("bits", bits), block_size, ir.AttrInt64("accuracy_level", 4)]
    sizes = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in ("K", "N")]
    return body.op(MATMUL_NBITS, x, w, scales, zero, None, bias, domain=MICROSOFT, attributes=[*settings, *sizes])


def exact_function(with_bias: bool) -> ir.Function:
    """The operator with activation_block_size 0 and scales [1] or [N], bit for bit, in standard operators.

    Codes are integers held in float32, so the product is exact while 127 K < 2**24 (K up to 132,104), in any order.
    Standard operators cannot tell an input that was left out, hence ``with_bias``.
    """
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    codes, step = _codes(body, x)
    sums = body.op("MatMul", codes, body.ints("Transpose", _decoded(body, w)))
    y = body.op("Mul", sums, body.op("Mul", step, scales))
    if with_bias:
        y = body.op("Add", y, bias)
    return body.function(TERNARY_MATMUL, [x, w, scales, bias] if with_bias else [x, w, scales], y)


def _decoded(body: _Body, w: ir.Value) -> ir.Value:
    """W uint8 [N, blocks, 32] as float32 [N, K] of -1, 0, 1."""
    shifts = body.constant(np.array([0, 2, 4, 6], np.uint8))
    spread = body.op("Unsqueeze", w, body.constant(np.array([-1], np.int64)))
    shifted = body.op("BitShift", spread, shifts, attributes=[ir.AttrString("direction", "RIGHT")])
    codes = body.op("BitwiseAnd", shifted, body.constant(np.array(3, np.uint8)))
    numbers = body.ints("Cast", codes, to=ir.DataType.FLOAT.value)
    signs = body.op("Sub", numbers, body.constant(np.array(1, np.float32)))
    rows = body.op("Concat", body.attribute("N"), body.constant(np.array([-1], np.int64)),
                   attributes=[ir.AttrInt64("axis", 0)])  # fmt: skip
    matrix = body.op("Reshape", signs, rows)
    zero, one = (body.constant(np.array([n], np.int64)) for n in (0, 1))
    return body.op("Slice", matrix, zero, body.attribute("K"), one)
