"""MatMul, Gemm and Gather on constant weights -> ``ai.edgekit::Linear`` and ``Embedding``, as decoders have them.

MatMul(X, W), MatMul(X, Transpose(W)), Gemm(X, W, C), each with or without a following Add of a constant bias. Products
of two activations and convolutions are left alone.
"""

from __future__ import annotations

import ast

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.initializers import WeightTensor
from edgekit.lowbit.weights import RowWeight
from edgekit.passes.layers import add_constant, put_in_place, rewrite_each
from edgekit.spec.facts import set_plan
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Plan

SCOPES = "pkg.torch.onnx.name_scopes"


class NormalizeLinear(ir.passes.InPlacePass):
    """Rewrites linear and embedding layers of a generic graph; weights keep their [N, K] orientation unread."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        result = rewrite_each(model, {("", "MatMul"): _matmul, ("", "Gemm"): _gemm, ("", "Gather"): _gather})
        if result.modified:
            model.opset_imports.setdefault(EDGEKIT, 1)
        return result


def _matmul(graph: ir.Graph, node: ir.Node) -> bool:
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None or _constant(x) is not None:
        return False
    stored = _matrix(w)
    if stored is None:
        return False
    weight, transposed = stored
    bias, last = _following_bias(node, int(weight.shape[1 if not transposed else 0]))  # type: ignore[index, arg-type]
    rows = weight if transposed else _transposed(graph, weight)
    _replace(graph, node, last, [x, rows] + ([bias] if bias is not None else []), weight)
    return True


def _gemm(graph: ir.Graph, node: ir.Node) -> bool:
    x, w = node.inputs[0], node.inputs[1]
    given = {a.name: a.value for a in node.attributes.values()}
    scaled = given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0
    if x is None or w is None or given.get("transA", 0) or scaled:
        return False
    if _constant(w) is None or _rank(w) != 2 or _constant(x) is not None:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    rows = int(w.shape[0 if given.get("transB", 0) else 1])  # type: ignore[index, arg-type]
    if bias is not None and (_constant(bias) is None or [int(d) for d in bias.shape or ()] != [rows]):  # type: ignore[arg-type]
        return False
    matrix = w if given.get("transB", 0) else _transposed(graph, w)
    _replace(graph, node, node, [x, matrix] + ([bias] if bias is not None else []), w)
    return True


def _gather(graph: ir.Graph, node: ir.Node) -> bool:
    table, ids = node.inputs[0], node.inputs[1]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if table is None or ids is None or axis != 0 or _rank(table) != 2 or _constant(ids) is not None:
        return False
    tensor = _constant(table)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or min(tensor.shape.numpy()) < 8:
        return False
    _replace(graph, node, node, [ids, table], table, op="Embedding")
    return True


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return value.const_value if value.is_initializer() and not value.is_graph_input() else None


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else -1


def _matrix(value: ir.Value) -> tuple[ir.Value, bool] | None:
    """A constant 2-D float weight, and whether it already is [N, K] (it came through a Transpose)."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        order = producer.attributes["perm"].as_ints() if "perm" in producer.attributes else (1, 0)
        inner = producer.inputs[0]
        if tuple(order) == (1, 0) and _is_weight(inner):
            return inner, True
        return None
    return (value, False) if _is_weight(value) else None


def _is_weight(value: ir.Value) -> bool:
    tensor = _constant(value)
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype == ir.DataType.FLOAT


def _following_bias(node: ir.Node, rows: int) -> tuple[ir.Value | None, ir.Node]:
    """The constant [N] that the only reader of ``node`` adds, and the node whose output the layer then has."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None, node
    add = uses[0].node
    other = next((v for v in add.inputs if v is not node.outputs[0]), None)
    if other is None or _constant(other) is None or [int(d) for d in other.shape or ()] != [rows]:  # type: ignore[arg-type]
        return None, node
    return other, add


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """An initializer [N, K] that reads the given [K, N] when it is written."""
    name, tensor = f"{weight.name}.transposed", weight.const_value
    assert tensor is not None
    if name not in graph.initializers:
        columns, rows = (int(size) for size in tensor.shape)  # type: ignore[arg-type]
        turned = RowWeight(
            (rows, columns),
            lambda start, stop: np.ascontiguousarray(tensor.numpy()[:, start:stop].T),
            first=lambda count: tensor.numpy()[:count].T,
        )
        add_constant(graph, name, WeightTensor(turned, name))
    return graph.initializers[name]


def _replace(
    graph: ir.Graph, first: ir.Node, last: ir.Node, inputs: list[ir.Value], weight: ir.Value, op: str = "Linear"
) -> None:
    old = last.outputs[0]
    attributes = [ir.AttrInt64("activation_block_size", -1)] if op == "Linear" else []
    new = ir.Node(EDGEKIT, op, inputs, attributes, num_outputs=1, name=f"node:{old.name}.{op}")
    new.outputs[0].type, new.outputs[0].shape = old.type, old.shape
    set_plan(new, Plan(layer_name(first, str(weight.name))))
    put_in_place(graph, new, [last] if first is last else [last, first])


def layer_name(node: ir.Node, weight: str) -> str:
    """The module path that torch.onnx noted, else the weight's name without its last part."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    if len(scopes) >= 2 and scopes[-2]:
        return str(scopes[-2])
    return weight.removesuffix(".weight")
