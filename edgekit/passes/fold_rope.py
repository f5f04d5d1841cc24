"""RotaryEmbedding on both query and key -> rotation inside GroupQueryAttention."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.spec.names import MICROSOFT


class FoldRope(ir.passes.InPlacePass):
    """Two RotaryEmbedding nodes feeding one attention with the same tables and positions become ``do_rotary=1``.

    Exact: the attention operator counts positions from each row's length, which is how the exporter aligned them.
    Left alone where key and query differ in their tables, where something stands between rotation and attention, and
    where the tables are not a multiple of 8 wide (ONNX Runtime refuses those inside attention, at run time).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain == MICROSOFT and node.op_type == "GroupQueryAttention":
                modified |= _fold(node)
        return ir.passes.PassResult(model, modified=modified)


def _fold(attention: ir.Node) -> bool:
    ropes = [value.producer() if value is not None else None for value in attention.inputs[:2]]
    q, k = ropes
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
    attention.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    attention.attributes["rotary_interleaved"] = ir.AttrInt64(
        "rotary_interleaved", q.attributes["interleaved"].as_int()
    )
    for rope in {id(q): q, id(k): k}.values():
        if not rope.outputs[0].uses():
            rope.graph.remove(rope, safe=True)  # type: ignore[union-attr]
    return True
