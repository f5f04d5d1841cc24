"""Where(IsNaN(Softmax(x)), 0, Softmax(x)) @ v -> the same guard behind the product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.passes.layers import add_constant, put_in_place, rewrite_each


class GuardProducts(ir.passes.InPlacePass):
    """PyTorch's attention makes rows zero that are masked whole, whose softmax is not a number. Such a row is not a number
    from its first element on, and its product with the values is made zero instead, which is as long as a head, not as the
    text. With finite values no bit changes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return rewrite_each(model, {("", "MatMul"): _guard_behind})


def _guard_behind(graph: ir.Graph, product: ir.Node) -> bool:
    where = product.inputs[0].producer() if product.inputs[0] is not None else None
    if where is None or where.op_type != "Where" or len(where.outputs[0].uses()) != 1:
        return False
    condition, zero, rows = where.inputs
    guard, softmax = (value.producer() if value is not None else None for value in (condition, rows))
    if (
        rows is None
        or guard is None
        or guard.op_type != "IsNaN"
        or guard.inputs[0] is not rows
        or len(guard.outputs[0].uses()) != 1
    ):
        return False
    if softmax is None or softmax.op_type != "Softmax" or softmax.attributes.get_int("axis", -1) != -1:
        return False
    if where.outputs[0].is_graph_output() or zero is None or zero.const_value is None:
        return False
    if zero.const_value.shape.rank() != 0 or zero.const_value.numpy() != 0:
        return False
    bounds = [_bound(graph, n) for n in (0, 1, -1)]
    first = ir.Node("", "Slice", [rows, *bounds], num_outputs=1, name=f"{guard.name}.first")
    of_rows = ir.Node("", "IsNaN", [first.outputs[0]], num_outputs=1, name=f"{guard.name}.of_rows")
    multiplied = ir.Node("", "MatMul", [rows, product.inputs[1]], num_outputs=1, name=f"{product.name}.unguarded")
    made = (first, of_rows, multiplied)
    for node, like in zip(made, (rows, guard.outputs[0], product.outputs[0]), strict=True):
        node.outputs[0].name, node.outputs[0].type = node.name, like.type
    graph.insert_before(product, made)
    guarded = ir.Node("", "Where", [of_rows.outputs[0], zero, multiplied.outputs[0]], num_outputs=1, name=product.name)
    guarded.outputs[0].type, guarded.outputs[0].shape = product.outputs[0].type, product.outputs[0].shape
    put_in_place(graph, guarded, [product])
    graph.remove([where, guard], safe=True)
    return True


def _bound(graph: ir.Graph, number: int) -> ir.Value:
    name = f"edgekit.bound.{number}"
    return graph.initializers.get(name) or add_constant(graph, name, np.array([number]))
