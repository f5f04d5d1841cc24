"""How channels pass through operators that change a value's shape, cut it apart or put it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.attention import split_heads
from edgekit.passes.dead_units.channels import Channels, Flow, Rule, constant_of, integers, of_first
from edgekit.passes.dead_units.constants import whole
from edgekit.passes.dead_units.cuts import SliceCut, SplitCut, TargetCut, vector_length


@of_first
def transpose(flow: Flow, node: ir.Node, x: Channels) -> None:
    if "perm" not in node.attributes:
        return flow.opaque(node)
    order = list(node.attributes["perm"].as_ints())
    rank = len(order)
    axis = order.index(rank + x.axis) - rank
    inner = order.index(rank + x.inner) - rank if x.inner is not None else None
    flow.give(node.outputs[0], replace(x, axis=axis, inner=inner, rank=rank, sums_to_one=False))


@of_first
def reshape(flow: Flow, node: ir.Node, x: Channels) -> None:
    """Splits channels into heads, puts heads together again, or lays pixels beside channels (Flatten)."""
    given, output = _target(node), node.outputs[0]
    if given is None or x.rank is None:
        return flow.opaque(node)
    dims = [size if size is not None and size > 0 else _known_size(output, index) for index, size in enumerate(given)]
    _regroup(flow, node, x, dims, given)


@of_first
def flatten(flow: Flow, node: ir.Node, x: Channels) -> None:
    tail = _tail(node.inputs[0], x)
    if whole(node, "axis", 1) != 1 or x.rank is None or x.rank + x.axis != 1 or tail is None:
        return flow.opaque(node)
    _regroup(flow, node, x, [None, len(x.ids) * tail], None)


def _regroup(
    flow: Flow, node: ir.Node, x: Channels, dims: Sequence[int | None], given: Sequence[int | None] | None
) -> None:
    """Finds the channels of ``x`` among the output's ``dims``; ``given`` are the sizes that the graph names, if any."""
    tail, rank = _tail(node.inputs[0], x), len(dims)
    if tail is None:
        return flow.opaque(node)
    total, place = len(x.ids), _place(dims, tail)
    regrouped: Channels | None = None
    if place is not None and dims[place] == total:
        regrouped = Channels(x.ids, x.constant, place - rank, rank)
    elif place is not None and place > 0 and dims[place] and total == (dims[place - 1] or 0) * (dims[place] or 0):
        regrouped = Channels(x.ids, x.constant, place - 1 - rank, rank, place - rank, dims[place] or 1)
        place -= 1
    elif dims[-1] == total * tail and x.inner is None:
        place = rank - 1
        regrouped = Channels(np.repeat(x.ids, tail), np.repeat(x.constant, tail), -1, rank)
    if regrouped is None or place is None or (x.inner and regrouped.inner and regrouped.size != x.size):
        return flow.opaque(node)
    if given is not None:
        size = given[place]
        if size is None or (size == 0 and (x.rank is None or place != x.rank + x.axis)):
            return flow.opaque(node)
        if size > 0:
            flow.cuts.append(TargetCut(node, place, regrouped.units))
    if regrouped.inner is not None:
        flow.bind_heads(regrouped.ids, regrouped.size)
    flow.give(node.outputs[0], regrouped)


def _place(dims: Sequence[int | None], tail: int) -> int | None:
    """The last position behind which the sizes multiply to ``tail``."""
    behind = 1
    for index in range(len(dims) - 1, -1, -1):
        if behind == tail and dims[index] != 1:
            return index
        size = dims[index]
        if size is None:
            return None
        behind *= size
    return None


def _tail(value: ir.Value | None, x: Channels) -> int | None:
    """How many numbers a channel has behind it; None where that is not fixed or the channels are in pieces."""
    last = x.axis if x.inner is None else x.inner
    if x.inner is not None and x.inner != x.axis + 1:
        return None
    if last == -1:
        return 1
    if value is None or value.shape is None:
        return None
    sizes = list(value.shape)[last + 1 :]
    return int(np.prod([int(s) for s in sizes])) if all(isinstance(s, int) for s in sizes) else None  # type: ignore[arg-type]


def _target(node: ir.Node) -> list[int | None] | None:
    """The sizes that a Reshape is given, None for computed ones; None altogether where even their number is unknown."""
    numbers = integers(node.inputs[1])
    if numbers is not None:
        return list(numbers)
    source = node.inputs[1].producer() if node.inputs[1] is not None else None
    if source is None or source.op_type != "Concat":
        return None
    sizes: list[int | None] = []
    for part in source.inputs:
        length = vector_length(part)
        if length is None:
            return None
        sizes += integers(part) or [None] * length
    return sizes


def _known_size(value: ir.Value, index: int) -> int | None:
    size = value.shape[index] if value.shape is not None and index < len(value.shape) else None
    return size if isinstance(size, int) else None


@of_first
def squeeze(flow: Flow, node: ir.Node, x: Channels) -> None:
    axes = _axes(node)
    if x.rank is None or axes is None:
        return flow.opaque(node)
    gone = {a % x.rank for a in axes}
    _renumber(flow, node, x, [i for i in range(x.rank) if i not in gone])


@of_first
def unsqueeze(flow: Flow, node: ir.Node, x: Channels) -> None:
    axes = _axes(node)
    if x.rank is None or axes is None:
        return flow.opaque(node)
    rank = x.rank + len(axes)
    new, old = {a % rank for a in axes}, iter(range(x.rank))
    _renumber(flow, node, x, [-1 if i in new else next(old) for i in range(rank)])


@of_first
def reduce(flow: Flow, node: ir.Node, x: Channels) -> None:
    """A mean or maximum over other axes than the channels'."""
    axes = _axes(node)
    if x.rank is None or axes is None or {a % x.rank for a in axes} & {x.rank + x.axis, x.rank + (x.inner or x.axis)}:
        return flow.opaque(node)
    gone = set() if whole(node, "keepdims", 1) else {a % x.rank for a in axes}
    _renumber(flow, node, x, [i for i in range(x.rank) if i not in gone])


def _renumber(flow: Flow, node: ir.Node, x: Channels, order: Sequence[int]) -> None:
    """The output's axes are the input's ``order``."""
    assert x.rank is not None
    if x.rank + x.axis not in order or (x.inner is not None and x.rank + x.inner not in order):
        return flow.opaque(node)
    axis = order.index(x.rank + x.axis) - len(order)
    inner = order.index(x.rank + x.inner) - len(order) if x.inner is not None else None
    flow.give(node.outputs[0], replace(x, axis=axis, inner=inner, rank=len(order), sums_to_one=False))


def _axes(node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return integers(node.inputs[1]) if len(node.inputs) > 1 and constant_of(node.inputs[1]) is not None else None


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


SHAPES: dict[tuple[str, str], Rule] = {
    ("", "Transpose"): transpose,
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "ReduceMean"): reduce,
    ("", "ReduceMax"): reduce,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slices,
}
