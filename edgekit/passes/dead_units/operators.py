"""How channels pass through the operators of a graph; one literal table at the end, all others are opaque."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.attention import ATTENTION
from edgekit.passes.dead_units.channels import (
    Channels,
    Flow,
    Rule,
    array_of,
    called,
    constant_of,
    of_first,
    size_at,
    varying,
)
from edgekit.passes.dead_units.constants import BINARY, UNARY, Floats, applied, is_padded, number, whole
from edgekit.passes.dead_units.cuts import ParameterCut
from edgekit.passes.dead_units.products import PRODUCTS
from edgekit.passes.dead_units.shapes import SHAPES


@of_first
def batch_norm(flow: Flow, node: ir.Node, x: Channels) -> None:
    arrays = [array_of(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays) or whole(node, "training_mode", 0) or x.inner is not None:
        return flow.opaque(node)
    scale, shift, mean, variance = (np.asarray(a) for a in arrays)
    step = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    constant = np.where(scale == 0, shift, applied(lambda c: (c - mean) * step + shift, x.constant))
    flow.cuts += [ParameterCut(node, index, 0, x.ids) for index in range(1, 5)]
    flow.give(node.outputs[0], replace(x, constant=constant, sums_to_one=False))


@of_first
def unary(flow: Flow, node: ir.Node, x: Channels) -> None:
    if any(v is not None for v in node.inputs[1:]) and node.op_type != "Dropout":
        return flow.opaque(node)
    function = UNARY[node.domain, node.op_type](node)
    kept = x.sums_to_one and node.op_type in ("Identity", "Dropout")
    flow.give(node.outputs[0], replace(x, constant=_on_known(function, x.constant), sums_to_one=kept))


def _on_known(function: Callable[[Floats], Floats], constant: Floats) -> Floats:
    """Most channels vary: only the others are computed."""
    result, known = varying(len(constant)), np.isfinite(constant)
    result[known] = applied(function, constant[known])
    return result


@of_first
def clip(flow: Flow, node: ir.Node, x: Channels) -> None:
    bounds = [number(node, "min", -np.inf), number(node, "max", np.inf)]
    for index, value in enumerate(node.inputs[1:]):
        if value is not None:
            array = array_of(value)
            if array is None:
                return flow.opaque(node)
            bounds[index] = float(array.reshape(-1)[0])
    constant = applied(lambda c: np.clip(c, bounds[0], bounds[1]), x.constant)
    flow.give(node.outputs[0], replace(x, constant=constant, sums_to_one=False))


def binary(flow: Flow, node: ir.Node) -> None:
    followed = [flow.values.get(v) if v is not None else None for v in node.inputs[:2]]
    function = BINARY[node.domain, node.op_type]
    if len(node.inputs) != 2 or followed == [None, None]:
        return flow.opaque(node)
    if followed[0] is not None and followed[1] is not None:
        return _of_two(flow, node, followed[0], followed[1])
    at = 0 if followed[0] is not None else 1
    x, other = followed[at], node.inputs[1 - at]
    assert x is not None and other is not None
    if _as_wide(other, x):
        unfollowed = flow.known(other, len(x.ids), x.axis, x.rank)
        return _of_two(flow, node, *((x, unfollowed) if at == 0 else (unfollowed, x)))
    operand = _operand(flow, node, 1 - at, x, other)
    if operand is None:
        return flow.opaque(node)
    pair = (x.constant, operand) if at == 0 else (operand, x.constant)
    flow.give(node.outputs[0], replace(x, constant=applied(function, *pair), sums_to_one=False))
    return None


def _as_wide(value: ir.Value, x: Channels) -> bool:
    """An activation with a number for each channel, whose own channels were not followed."""
    followed = constant_of(value) is None and value.shape is not None and x.inner is None
    return followed and -x.axis <= len(value.shape or ()) and size_at(list(value.shape or ()), x.axis) == len(x.ids) > 1


def _of_two(flow: Flow, node: ir.Node, a: Channels, b: Channels) -> None:
    """Two activations; where one has a single channel, it goes to all of the other's."""
    if (a.axis, a.inner, len(a.ids)) == (b.axis, b.inner, len(b.ids)):
        flow.unite(a.ids, b.ids)
        if node.op_type in ("Add", "Sub"):
            flow.additions.append(a.ids)
        constant = applied(BINARY[node.domain, node.op_type], a.constant, b.constant)
        return flow.give(node.outputs[0], replace(a, constant=constant, sums_to_one=False))
    if (a.axis, a.inner) == (b.axis, b.inner) and 1 in (len(a.ids), len(b.ids)):
        narrow, wide = (a, b) if len(a.ids) == 1 else (b, a)
        flow.pin(narrow.ids, f"spread over all channels in {called(node)}")
        pair = [np.broadcast_to(c.constant, len(wide.ids)) for c in (a, b)]
        constant = applied(BINARY[node.domain, node.op_type], *pair)
        return flow.give(node.outputs[0], replace(wide, constant=constant, sums_to_one=False))
    return flow.opaque(node)


def _operand(flow: Flow, node: ir.Node, index: int, x: Channels, other: ir.Value) -> Floats | None:
    """The other operand as seen by each channel, float64 [C] (NaN where it varies); None where that cannot be told."""
    array = array_of(other)
    shape = list(array.shape) if array is not None else list(other.shape) if other.shape is not None else None
    if shape is None:
        return None
    here, within = size_at(shape, x.axis), size_at(shape, x.inner) if x.inner is not None else 1
    if here == 1 and within in (1, x.size):
        single = array is not None and array.size == 1
        return np.full(len(x.ids), float(array.reshape(-1)[0])) if single else varying(len(x.ids))  # type: ignore[union-attr]
    if array is None or here != len(x.units) or x.inner is not None:
        return None
    flow.cuts.append(ParameterCut(node, index, x.axis, x.ids))
    rows = np.moveaxis(array, x.axis, 0).reshape(len(x.ids), -1)
    return np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)


def where(flow: Flow, node: ir.Node) -> None:
    """Condition and both choices; nothing is known of the result."""
    followed = {i: flow.values[v] for i, v in enumerate(node.inputs) if v is not None and v in flow.values}
    if not followed:
        return
    x = next(iter(followed.values()))
    for channels in followed.values():
        if (channels.axis, channels.inner, len(channels.ids)) != (x.axis, x.inner, len(x.ids)):
            return flow.opaque(node)
    for index, value in enumerate(node.inputs):
        if index not in followed and (value is None or not _spread(value, x)):
            return flow.opaque(node)
    for channels in followed.values():
        flow.unite(x.ids, channels.ids)
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids)), sums_to_one=False))


def _spread(value: ir.Value, x: Channels) -> bool:
    """Whether a value is the same for all of the channels."""
    tensor = constant_of(value)
    shape = list(tensor.shape) if tensor is not None else list(value.shape) if value.shape is not None else None
    return shape is not None and size_at(shape, x.axis) == 1 and (x.inner is None or size_at(shape, x.inner) == 1)


@of_first
def norm(flow: Flow, node: ir.Node, x: Channels) -> None:
    """Over the last axes; within a head it does not couple heads."""
    first = x.from_end(whole(node, "axis", -1))
    if first < 0 and x.axis < first and x.inner is not None and x.inner >= first:
        return flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids))))
    flow.pin(x.ids, f"normalized together in {called(node)}")
    for output in node.outputs:
        flow.values.pop(output, None)
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids))))


@of_first
def softmax(flow: Flow, node: ir.Node, x: Channels) -> None:
    axis = x.from_end(whole(node, "axis", -1))
    if axis >= 0 or axis in (x.axis, x.inner):
        return flow.opaque(node, f"compared with each other in {called(node)}")
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids)), sums_to_one=axis == -1))


@of_first
def pool(flow: Flow, node: ir.Node, x: Channels) -> None:
    """Over pixels; an average that counts zero padding is another number at the border."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return flow.opaque(node)
    counted = node.op_type == "AveragePool" and is_padded(node) and whole(node, "count_include_pad", 0)
    constant = np.where(x.constant == 0, 0.0, np.nan) if counted else x.constant
    flow.give(node.outputs[0], replace(x, constant=constant))


RULES: dict[tuple[str, str], Rule] = {
    ("", "BatchNormalization"): batch_norm,
    ("", "Clip"): clip,
    ("", "Where"): where,
    ("", "Softmax"): softmax,
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BINARY, binary),
    **{("", op): norm for op in ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")},
    **{("", op): pool for op in ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")},
    **SHAPES,
    **ATTENTION,
    **PRODUCTS,
}
"""Operator -> how channels pass it. Products make channels, the others hand them on or pin them."""


def follow(flow: Flow) -> Flow:
    """Follows the channels of all nodes, which stand in topological order."""
    for node in flow.graph:
        rule = RULES.get((node.domain, node.op_type), Flow.opaque)
        rule(flow, node)
    return flow
