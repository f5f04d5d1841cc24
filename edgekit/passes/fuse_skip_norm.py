"""Add + (Simplified)LayerNormalization -> Skip(Simplified)LayerNormalization."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.passes.layers import rewrite_each
from edgekit.spec.names import MICROSOFT

FUSED = {
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


class FuseSkipNorm(ir.passes.InPlacePass):
    """The residual addition before a norm over the last axis becomes part of it; its sum stays available.

    Only where both addends are activations of the same three-dimensional shape: the fused operator broadcasts neither.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return rewrite_each(model, {("", norm): _fuse for norm in FUSED})


def _fuse(graph: ir.Graph, norm: ir.Node) -> bool:
    total = norm.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or add.op_type != "Add" or add.domain != "" or total.is_graph_output():
        return False
    if norm.attributes["axis"].as_int() != -1 or any(output.uses() for output in norm.outputs[1:]):
        return False
    a, b = add.inputs
    if a is None or b is None or not _same_activations(a, b):
        return False
    fused_sum = ir.Value(name=f"{total.name}.sum", type=total.type, shape=total.shape)
    result = ir.Value(name=norm.outputs[0].name, type=norm.outputs[0].type, shape=norm.outputs[0].shape)
    outputs = [result, ir.Value(name=""), ir.Value(name=""), fused_sum]
    inputs, epsilon = [a, b, *norm.inputs[1:]], norm.attributes["epsilon"]
    fused = ir.Node(MICROSOFT, FUSED[norm.op_type], inputs, [epsilon], outputs=outputs, name=norm.name)
    graph.insert_after(norm, fused)
    ir.convenience.replace_all_uses_with(norm.outputs[0], result, replace_graph_outputs=True)
    name = total.name
    graph.remove(norm, safe=True)
    ir.convenience.replace_all_uses_with(total, fused_sum)
    graph.remove(add, safe=True)
    fused_sum.name = name  # so that taps recorded by name still find it
    return True


def _same_activations(a: ir.Value, b: ir.Value) -> bool:
    if a.is_initializer() or b.is_initializer() or a.shape is None or b.shape is None:
        return False
    return len(a.shape) == 3 and list(a.shape) == list(b.shape)
