"""The ONNX function body of ``ai.edgekit::TernaryMatMul``: what a runtime without edgekit's library executes.

The body is one ``com.microsoft::MatMulNBits`` with bits=2, block_size 128, zero point 1 and accuracy_level 4, which
reads the very bytes of the operator's W. It rounds activations per block of 128, so it equals the operator up to that
rounding; ONNX Runtime runs it fast from 1.28 on. When the library is registered, its kernel wins over the body.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

DOMAIN = "ai.edgekit"
MICROSOFT = "com.microsoft"
TERNARY = "TernaryMatMul"
INTS = ("K", "N", "activation_block_size")


class _Body:
    """Nodes of one function, written in order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def op(self, op: str, *inputs: ir.Value | None, domain: str = "", attributes: Sequence[ir.Attr] = ()) -> ir.Value:
        node = ir.Node(domain, op, inputs, attributes, num_outputs=1)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        return self.op("Constant", attributes=[ir.AttrTensor("value", ir.tensor(array))])


def ternary_function() -> ir.Function:
    """``TernaryMatMul(X, W, scales, bias?) -> Y`` with attributes K, N, activation_block_size, for every shape of scales."""
    x, w, scales, bias = (ir.Value(name=n) for n in ("X", "W", "scales", "bias"))
    body = _Body()
    shape = body.op("Shape", w, attributes=[ir.AttrInt64("start", 0), ir.AttrInt64("end", 2)])  # N, blocks
    first = body.op("Shape", scales, attributes=[ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
    rest = body.constant(np.array([-1], np.int64))
    # [1] -> [1, 1], [N] -> [N, 1], [N, blocks] stays; each then broadcasts to one scale a block.
    columns = body.op("Reshape", scales, body.op("Concat", first, rest, attributes=[ir.AttrInt64("axis", 0)]))
    every = body.op("Expand", columns, shape)
    blocks = body.op("Shape", w, attributes=[ir.AttrInt64("start", 1), ir.AttrInt64("end", 2)])
    quads = body.op(
        "Div", body.op("Add", blocks, body.constant(np.array([3], np.int64))), body.constant(np.array([4], np.int64))
    )
    rows = body.op("Shape", w, attributes=[ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
    # Four zero points of 2 bits a byte: 0b01010101.
    zero = body.op(
        "Expand",
        body.constant(np.array([0x55], np.uint8)),
        body.op("Concat", rows, quads, attributes=[ir.AttrInt64("axis", 0)]),
    )
    settings = [ir.AttrInt64("bits", 2), ir.AttrInt64("block_size", 128), ir.AttrInt64("accuracy_level", 4)]
    sizes = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in ("K", "N")]
    y = body.op("MatMulNBits", x, w, every, zero, None, bias, domain=MICROSOFT, attributes=[*settings, *sizes])
    graph = ir.Graph([x, w, scales, bias], [y], nodes=body.nodes, opset_imports={"": 21, MICROSOFT: 1}, name=TERNARY)
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in INTS]
    return ir.Function(DOMAIN, TERNARY, graph=graph, attributes=attributes)
