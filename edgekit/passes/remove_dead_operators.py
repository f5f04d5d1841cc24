"""How channels pass through the operators of a graph; one literal table at the end, all others are opaque."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.passes.remove_dead_attention import ATTENTION, split_heads
from edgekit.passes.remove_dead_channels import (
    Channels,
    Flow,
    Product,
    array_of,
    called,
    constant_of,
    integers,
    size_at,
    varying,
)
from edgekit.passes.remove_dead_constants import BINARY, UNARY, Floats, applied, number, text
from edgekit.passes.remove_dead_cuts import ParameterCut, SliceCut, SplitCut
from edgekit.passes.remove_dead_shapes import SHAPES

EDGEKIT = "ai.edgekit"
Rule = Callable[[Flow, ir.Node], None]


def _number(node: ir.Node, name: str, default: int) -> int:
    return int(number(node, name, default))


def _product(flow: Flow, node: ir.Node, x: Channels, axis: int, **facts: Any) -> None:
    """Registers a layer: its weight is input 1, its bias input 2."""
    value = node.inputs[1]
    tensor, rank = constant_of(value), _rank(node.outputs[0]) or x.rank
    assert value is not None and tensor is not None
    rows_axis = facts["rows_axis"]
    count, bias = int(tensor.shape[rows_axis]), node.inputs[2] if len(node.inputs) > 2 else None
    y = flow.fresh(count, axis, rank)
    layer = node.metadata_props.get("edgekit.layer") or str(value.name).removesuffix(".weight")
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
    weight, block = constant_of(node.inputs[1]), _number(node, "activation_block_size", -1)
    if weight is None or node.inputs[0] is None or not _bias_fits(node, int(weight.shape[0])):  # type: ignore[arg-type]
        return flow.opaque(node)
    x = flow.known(node.inputs[0], int(weight.shape[1]), -1, _rank(node.inputs[0]))  # type: ignore[arg-type]
    why = "" if block < 0 else "the layer rounds its input by the largest value of each row"
    _product(flow, node, x, -1, rows_axis=0, unit="hidden unit", unfoldable=why, rounds_input=block >= 0)
    if block > 0:
        flow.pin(x.ids, f"{called(node)} rounds its input in blocks of {block}")


def gemm(flow: Flow, node: ir.Node) -> None:
    weight, rows = constant_of(node.inputs[1]), 0 if _number(node, "transB", 0) else 1
    plain = not _number(node, "transA", 0) and number(node, "alpha", 1.0) == number(node, "beta", 1.0) == 1.0
    if weight is None or node.inputs[0] is None or not plain or not _bias_fits(node, int(weight.shape[rows])):  # type: ignore[arg-type]
        return flow.opaque(node)
    x = flow.known(node.inputs[0], int(weight.shape[1 - rows]), -1, 2)  # type: ignore[arg-type]
    _product(flow, node, x, -1, rows_axis=rows, unit="hidden unit", unfoldable="", rounds_input=False)


def matmul(flow: Flow, node: ir.Node) -> None:
    weight = constant_of(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or node.inputs[0] is None or constant_of(node.inputs[0]) is not None:
        return ATTENTION["", "MatMul"](flow, node)
    x = flow.known(node.inputs[0], int(weight.shape[0]), -1, _rank(node.inputs[0]))  # type: ignore[arg-type]
    why = "a MatMul has no bias to take it"
    _product(flow, node, x, -1, rows_axis=1, unit="hidden unit", unfoldable=why, rounds_input=False)


def conv(flow: Flow, node: ir.Node) -> None:
    weight, groups = constant_of(node.inputs[1]), _number(node, "group", 1)
    if weight is None or node.inputs[0] is None or not _bias_fits(node, int(weight.shape[0])):  # type: ignore[arg-type]
        return flow.opaque(node)
    shape = [int(d) for d in weight.shape.numpy()]
    axis, rank = 1 - len(shape), len(shape)
    x = flow.known(node.inputs[0], shape[1] * groups, axis, rank)
    padded = text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(
        node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    )
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
    flow.cuts.append(_Groups(node, x.ids))
    flow.give(node.outputs[0], replace(x, constant=constant))


class _Groups:
    """A depthwise convolution has a group for each channel."""

    def __init__(self, node: ir.Node, ids: Any) -> None:
        self.node, self.ids = node, ids

    def apply(self, keep: Any) -> None:
        self.node.attributes["group"] = ir.AttrInt64("group", int(keep(self.ids).sum()))


def batch_norm(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    arrays = [array_of(v) for v in node.inputs[1:5]]
    if x is None:
        return
    if any(a is None for a in arrays) or _number(node, "training_mode", 0) or x.inner is not None:
        return flow.opaque(node)
    scale, shift, mean, variance = (np.asarray(a) for a in arrays)
    step = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    constant = np.where(scale == 0, shift, applied(lambda c: (c - mean) * step + shift, x.constant))
    flow.cuts += [ParameterCut(node, index, 0, x.ids) for index in range(1, 5)]
    flow.give(node.outputs[0], replace(x, constant=constant, sums_to_one=False))


def unary(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    if any(v is not None for v in node.inputs[1:]) and node.op_type != "Dropout":
        return flow.opaque(node)
    function = UNARY[node.domain, node.op_type](node)
    kept = x.sums_to_one and node.op_type in ("Identity", "Dropout")
    flow.give(node.outputs[0], replace(x, constant=_on_known(function, x.constant), sums_to_one=kept))


def _on_known(function: Callable[[Floats], Floats], constant: Floats) -> Floats:
    """Most channels vary: only the others are computed."""
    found, known = varying(len(constant)), np.isfinite(constant)
    found[known] = applied(function, constant[known])
    return found


def clip(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    low, high = number(node, "min", -np.inf), number(node, "max", np.inf)
    bounds = [array_of(v) if v is not None else None for v in (*node.inputs[1:], None, None)[:2]]
    given = [v is not None for v in (*node.inputs[1:], None, None)[:2]]
    if any(g and b is None for g, b in zip(given, bounds, strict=True)):
        return flow.opaque(node)
    low = float(bounds[0].reshape(-1)[0]) if bounds[0] is not None else low
    high = float(bounds[1].reshape(-1)[0]) if bounds[1] is not None else high
    flow.give(
        node.outputs[0], replace(x, constant=applied(lambda c: np.clip(c, low, high), x.constant), sums_to_one=False)
    )


def binary(flow: Flow, node: ir.Node) -> None:
    found = [flow.values.get(v) if v is not None else None for v in node.inputs[:2]]
    function = BINARY[node.domain, node.op_type]
    if len(node.inputs) != 2 or found == [None, None]:
        return flow.opaque(node)
    if found[0] is not None and found[1] is not None:
        return _of_two(flow, node, found[0], found[1])
    at = 0 if found[0] is not None else 1
    x, other = found[at], node.inputs[1 - at]
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
    found = {i: flow.values[v] for i, v in enumerate(node.inputs) if v is not None and v in flow.values}
    if not found:
        return
    x = next(iter(found.values()))
    for channels in found.values():
        if (channels.axis, channels.inner, len(channels.ids)) != (x.axis, x.inner, len(x.ids)):
            return flow.opaque(node)
    for index, value in enumerate(node.inputs):
        if index not in found and (value is None or not _spread(value, x)):
            return flow.opaque(node)
    for channels in found.values():
        flow.unite(x.ids, channels.ids)
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids)), sums_to_one=False))


def _spread(value: ir.Value, x: Channels) -> bool:
    """Whether a value is the same for all of the channels."""
    tensor = constant_of(value)
    shape = list(tensor.shape) if tensor is not None else list(value.shape) if value.shape is not None else None
    return shape is not None and size_at(shape, x.axis) == 1 and (x.inner is None or size_at(shape, x.inner) == 1)


def norm(flow: Flow, node: ir.Node) -> None:
    """Over the last axes; within a head it does not couple heads."""
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    first = _number(node, "axis", -1)
    first = first - x.rank if first >= 0 and x.rank is not None else first
    if first < 0 and x.axis < first and x.inner is not None and x.inner >= first:
        return flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids))))
    flow.pin(x.ids, f"normalized together in {called(node)}")
    for output in node.outputs:
        flow.values.pop(output, None)
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids))))


def softmax(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    axis = _number(node, "axis", -1)
    axis = axis - x.rank if axis >= 0 and x.rank is not None else axis
    if axis >= 0 or axis in (x.axis, x.inner):
        return flow.opaque(node, f"compared with each other in {called(node)}")
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids)), sums_to_one=axis == -1))


def pool(flow: Flow, node: ir.Node) -> None:
    """Over pixels; an average that counts zero padding is another number at the border."""
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return flow.opaque(node)
    pads = any(node.attributes["pads"].as_ints() if "pads" in node.attributes else ())
    pads |= text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    counted = node.op_type == "AveragePool" and pads and _number(node, "count_include_pad", 0)
    constant = np.where(x.constant == 0, 0.0, np.nan) if counted else x.constant
    flow.give(node.outputs[0], replace(x, constant=constant))


def concat(flow: Flow, node: ir.Node) -> None:
    found = [flow.values.get(v) if v is not None else None for v in node.inputs]
    like = next((f for f in found if f is not None), None)
    if like is None:
        return
    axis = _number(node, "axis", 0)
    axis = axis if axis < 0 or like.rank is None else axis - like.rank
    if axis == like.inner and all(f is not None for f in found):
        return _concat_heads(flow, node, [f for f in found if f is not None])
    if axis != like.axis or like.inner is not None or axis >= 0:
        return flow.opaque(node)
    parts = []
    for value in node.inputs:
        size = _width(flow, value, axis)
        if value is None or not isinstance(size, int):
            return flow.opaque(node)
        parts.append(flow.known(value, size, axis, like.rank))
    ids, constant = np.concatenate([p.ids for p in parts]), np.concatenate([p.constant for p in parts])
    flow.give(node.outputs[0], Channels(ids, constant, axis, like.rank))


def _concat_heads(flow: Flow, node: ir.Node, parts: list[Channels]) -> None:
    """The channels of each head side by side: rotated ones and others."""
    like = parts[0]
    if any((p.axis, p.inner, len(p.units)) != (like.axis, like.inner, len(like.units)) for p in parts):
        return flow.opaque(node)
    for part in parts:
        flow.unite(like.units, part.units)
    ids, constant = (
        np.concatenate([array.reshape(len(like.units), -1) for array in arrays], axis=1).reshape(-1)
        for arrays in ([p.ids for p in parts], [p.constant for p in parts])
    )
    flow.give(node.outputs[0], replace(like, ids=ids, constant=constant, size=sum(p.size for p in parts)))


def _width(flow: Flow, value: ir.Value | None, axis: int) -> object:
    """How many channels a value has on ``axis``, where that is known."""
    if value in flow.values:
        return len(flow.values[value].ids)
    return value.shape[axis] if value is not None and value.shape is not None else None


def split(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    axis = _number(node, "axis", 0)
    axis = axis - x.rank if axis >= 0 and x.rank is not None else axis
    if axis not in (x.axis, x.inner) or (axis == x.axis and x.inner is not None):
        return flow.opaque(node)
    total = x.size if axis == x.inner else len(x.ids)
    sizes = _split_sizes(node, total)
    if sizes is None or sum(sizes) != total:
        return flow.opaque(node)
    ends = np.cumsum([0, *sizes]).tolist()
    pieces = [split_heads(x, a, b) if axis == x.inner else (x.ids[a:b], x.constant[a:b]) for a, b in pairwise(ends)]
    if axis == x.axis:
        flow.cuts.append(SplitCut(node, tuple(ids for ids, _ in pieces)))
    for output, (ids, constant), size in zip(node.outputs, pieces, sizes, strict=True):
        within = {"size": size} if axis == x.inner else {}
        flow.give(output, replace(x, ids=ids, constant=constant, sums_to_one=False, **within))
    return None


def _split_sizes(node: ir.Node, total: int) -> list[int] | None:
    if "split" in node.attributes:
        return list(node.attributes["split"].as_ints())
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return integers(node.inputs[1])
    size = -(-total // len(node.outputs))
    return [min(size, total - i * size) for i in range(len(node.outputs))]


def slices(flow: Flow, node: ir.Node) -> None:
    x = flow.values.get(node.inputs[0]) if node.inputs[0] is not None else None
    if x is None:
        return
    starts, ends, axes, steps = (integers(v) for v in (*node.inputs[1:], None, None, None)[:4])
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return flow.opaque(node)
    axis = axes[0] - x.rank if axes[0] >= 0 and x.rank is not None else axes[0]
    if axis >= 0 or (axis == x.axis and x.inner is not None):
        return flow.opaque(node)
    if axis not in (x.axis, x.inner):
        return flow.give(node.outputs[0], replace(x, sums_to_one=False))
    total = x.size if axis == x.inner else len(x.ids)
    start, stop, _ = slice(starts[0], ends[0]).indices(total)
    if axis == x.inner:
        ids, constant = split_heads(x, start, stop)
        return flow.give(node.outputs[0], replace(x, ids=ids, constant=constant, size=stop - start))
    flow.cuts.append(SliceCut(node, x.ids[:start], x.ids[start:stop]))
    return flow.give(node.outputs[0], replace(x, ids=x.ids[start:stop], constant=x.constant[start:stop]))


def embedding(flow: Flow, node: ir.Node) -> None:
    """Rows of a table; its width is the model's."""
    table = constant_of(node.inputs[1])
    if table is not None:
        y = flow.fresh(int(table.shape[1]), -1, _rank(node.outputs[0]))  # type: ignore[arg-type]
        flow.pin(y.ids, f"as wide as the table {called(node)}")
        flow.give(node.outputs[0], y)


RULES: dict[tuple[str, str], Rule] = {
    (EDGEKIT, "Linear"): linear,
    (EDGEKIT, "Embedding"): embedding,
    ("", "Gemm"): gemm,
    ("", "Conv"): conv,
    ("", "BatchNormalization"): batch_norm,
    ("", "Clip"): clip,
    ("", "Where"): where,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slices,
    ("", "Softmax"): softmax,
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BINARY, binary),
    **{("", op): norm for op in ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")},
    **{("", op): pool for op in ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")},
    **SHAPES,
    **ATTENTION,
    ("", "MatMul"): matmul,
}
"""Operator -> how channels pass it. Products make channels, the others hand them on or pin them."""


def follow(flow: Flow) -> Flow:
    """Follows the channels of all nodes, which stand in topological order."""
    for node in flow.graph:
        rule = RULES.get((node.domain, node.op_type), Flow.opaque)
        rule(flow, node)
    return flow
