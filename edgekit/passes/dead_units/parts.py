"""Values that are cut apart and put together along their channels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.attention import split_heads
from edgekit.passes.dead_units.channels import Channels, Flow, Rule, integers, of_first
from edgekit.passes.dead_units.constants import whole
from edgekit.passes.dead_units.cuts import SliceCut, SplitCut


def concat(flow: Flow, node: ir.Node) -> None:
    followed = [flow.values.get(v) if v is not None else None for v in node.inputs]
    like = next((f for f in followed if f is not None), None)
    if like is None:
        return
    axis = like.from_end(whole(node, "axis", 0))
    if axis == like.inner and all(f is not None for f in followed):
        return _concat_heads(flow, node, [f for f in followed if f is not None])
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


@of_first
def split(flow: Flow, node: ir.Node, x: Channels) -> None:
    axis = x.from_end(whole(node, "axis", 0))
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


@of_first
def slices(flow: Flow, node: ir.Node, x: Channels) -> None:
    starts, ends, axes, steps = (integers(v) for v in (*node.inputs[1:], None, None, None)[:4])
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return flow.opaque(node)
    axis = x.from_end(axes[0])
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


PARTS: dict[tuple[str, str], Rule] = {
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slices,
}
