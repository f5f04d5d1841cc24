"""Layers with weights: they read channels and make new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.attention import product_of_heads
from edgekit.passes.dead_units.channels import Channels, Flow, Product, Rule, array_of, called, constant_of
from edgekit.passes.dead_units.constants import applied, is_padded, number, whole
from edgekit.passes.dead_units.cuts import CountCut, ParameterCut
from edgekit.spec.facts import plan_of
from edgekit.spec.names import EDGEKIT


def _product(flow: Flow, node: ir.Node, x: Channels, axis: int, **facts: Any) -> None:
    """Registers a layer: its weight is input 1, its bias input 2."""
    value = node.inputs[1]
    tensor, rank = constant_of(value), _rank(node.outputs[0]) or x.rank
    assert value is not None and tensor is not None
    rows_axis = facts["rows_axis"]
    count, bias = int(tensor.shape[rows_axis]), node.inputs[2] if len(node.inputs) > 2 else None
    y = flow.fresh(count, axis, rank)
    layer = plan_of(node).layer or str(value.name).removesuffix(".weight")
    product = Product(node, layer, x=x, y=y, tensor=tensor, scans=flow.scans, **facts)
    shared = len(value.uses()) > 1
    if shared:
        for channels in (x, y):
            flow.pin(channels.ids, f"the weight {value.name} is shared with another layer")
    elif not node.outputs[0].is_graph_output():
        silent = array_of(bias) if bias is not None else np.zeros(count)
        if silent is not None and silent.shape == (count,):
            y = replace(y, constant=np.where(product.alive.rows, np.nan, silent))
            product.y = y
    flow.products.append(product)
    flow.give(node.outputs[0], y)


def _rank(value: ir.Value) -> int | None:
    return len(value.shape) if value.shape is not None else None


def _bias_fits(node: ir.Node, count: int) -> bool:
    """No bias, or a constant one for each output."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = constant_of(bias)
    return bias is None or (tensor is not None and list(tensor.shape.numpy()) == [count])


def linear(flow: Flow, node: ir.Node) -> None:
    weight, block = constant_of(node.inputs[1]), whole(node, "activation_block_size", -1)
    if weight is None or node.inputs[0] is None or not _bias_fits(node, int(weight.shape[0])):  # type: ignore[arg-type]
        return flow.opaque(node)
    x = flow.known(node.inputs[0], int(weight.shape[1]), -1, _rank(node.inputs[0]))  # type: ignore[arg-type]
    why = "" if block < 0 else "the layer rounds its input by the largest value of each row"
    _product(flow, node, x, -1, rows_axis=0, unit="hidden unit", unfoldable=why, rounds_input=block >= 0)
    if block > 0:
        flow.pin(x.ids, f"{called(node)} rounds its input in blocks of {block}")


def gemm(flow: Flow, node: ir.Node) -> None:
    weight, rows = constant_of(node.inputs[1]), 0 if whole(node, "transB", 0) else 1
    plain = not whole(node, "transA", 0) and number(node, "alpha", 1.0) == number(node, "beta", 1.0) == 1.0
    if weight is None or node.inputs[0] is None or not plain or not _bias_fits(node, int(weight.shape[rows])):  # type: ignore[arg-type]
        return flow.opaque(node)
    x = flow.known(node.inputs[0], int(weight.shape[1 - rows]), -1, 2)  # type: ignore[arg-type]
    _product(flow, node, x, -1, rows_axis=rows, unit="hidden unit", unfoldable="", rounds_input=False)


def matmul(flow: Flow, node: ir.Node) -> None:
    weight = constant_of(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or node.inputs[0] is None or constant_of(node.inputs[0]) is not None:
        return product_of_heads(flow, node)
    x = flow.known(node.inputs[0], int(weight.shape[0]), -1, _rank(node.inputs[0]))  # type: ignore[arg-type]
    why = "a MatMul has no bias to take it"
    _product(flow, node, x, -1, rows_axis=1, unit="hidden unit", unfoldable=why, rounds_input=False)


def conv(flow: Flow, node: ir.Node) -> None:
    weight, groups = constant_of(node.inputs[1]), whole(node, "group", 1)
    if weight is None or node.inputs[0] is None or not _bias_fits(node, int(weight.shape[0])):  # type: ignore[arg-type]
        return flow.opaque(node)
    shape = [int(d) for d in weight.shape.numpy()]
    axis, rank = 1 - len(shape), len(shape)
    x = flow.known(node.inputs[0], shape[1] * groups, axis, rank)
    padded = is_padded(node)
    if groups == 1:
        why = "it pads with zeros, so a constant is another one at the border" if padded else ""
        return _product(flow, node, x, axis, rows_axis=0, unit="channel", unfoldable=why, rounds_input=False)
    if groups == shape[0] and shape[1] == 1:
        return _depthwise(flow, node, x, padded)
    for ids in (x.ids, flow.known(node.outputs[0], shape[0], axis, rank).ids):
        flow.pin(ids, f"{called(node)} convolves in {groups} groups of equal size")
    return None


def _depthwise(flow: Flow, node: ir.Node, x: Channels, padded: bool) -> None:
    """A convolution of each channel by itself; padding is zeros, so only a zero stays what it is at the border."""
    weight = array_of(node.inputs[1])
    assert weight is not None
    sums, silent = weight.reshape(len(weight), -1).sum(axis=1), ~weight.reshape(len(weight), -1).any(axis=1)
    bias = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(len(weight))
    steady = x.constant if not padded else np.where(x.constant == 0, 0.0, np.nan)
    constant = np.where(silent, 0.0, applied(np.multiply, steady, sums)) + bias
    flow.cuts.append(ParameterCut(node, 1, 0, x.ids))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        flow.cuts.append(ParameterCut(node, 2, 0, x.ids))
    flow.cuts.append(CountCut(node, "group", x.ids))
    flow.give(node.outputs[0], replace(x, constant=constant))


def embedding(flow: Flow, node: ir.Node) -> None:
    """Rows of a table; its width is the model's."""
    table = constant_of(node.inputs[1])
    if table is not None:
        y = flow.fresh(int(table.shape[1]), -1, _rank(node.outputs[0]))  # type: ignore[arg-type]
        flow.pin(y.ids, f"as wide as the table {called(node)}")
        flow.give(node.outputs[0], y)


PRODUCTS: dict[tuple[str, str], Rule] = {
    (EDGEKIT, "Linear"): linear,
    (EDGEKIT, "Embedding"): embedding,
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("", "Conv"): conv,
}
