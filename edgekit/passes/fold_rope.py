"""RotaryEmbedding on both query and key -> rotation inside GroupQueryAttention."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.passes.layers import rewrite_each
from edgekit.spec.names import MICROSOFT


class FoldRope(ir.passes.InPlacePass):
    """Two RotaryEmbedding nodes feeding one attention with the same tables and positions become ``do_rotary=1``.

    Exact: the attention operator counts positions from each row's length, which is how the exporter aligned them.
    Left alone where key and query differ in their tables, where something stands between rotation and attention, and
    where the tables are not a multiple of 8 wide (ONNX Runtime refuses those inside attention, at run time).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return rewrite_each(model, {(MICROSOFT, "GroupQueryAttention"): _fold})


def _fold(graph: ir.Graph, attention: ir.Node) -> bool:
    q, k = (value.producer() if value is not None else None for value in attention.inputs[:2])
    if q is None or k is None or any(r.op_type != "RotaryEmbedding" or r.domain != MICROSOFT for r in (q, k)):
        return False
    if q.inputs[1:4] != k.inputs[1:4] or q.attributes["interleaved"].value != k.attributes["interleaved"].value:
        return False
    cos, sin = q.inputs[2:4]
    if cos is None or cos.shape is None or int(cos.shape[1]) % 8:  # type: ignore[arg-type]
        return False
    attention.replace_input_with(0, q.inputs[0])
    attention.replace_input_with(1, k.inputs[0])
    attention.resize_inputs(max(9, len(attention.inputs)))
    attention.replace_input_with(7, cos)
    attention.replace_input_with(8, sin)
    for name, number in (("do_rotary", 1), ("rotary_interleaved", q.attributes["interleaved"].as_int())):
        attention.attributes[name] = ir.AttrInt64(name, number)
    for rope in {id(q): q, id(k): k}.values():
        if not rope.outputs[0].uses():
            graph.remove(rope, safe=True)
    return True
