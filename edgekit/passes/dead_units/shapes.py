"""How channels pass through operators that change a value's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.channels import Channels, Flow, Rule, constant_of, integers, of_first
from edgekit.passes.dead_units.constants import whole
from edgekit.passes.dead_units.cuts import TargetCut, vector_length


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


SHAPES: dict[tuple[str, str], Rule] = {
    ("", "Transpose"): transpose,
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "ReduceMean"): reduce,
    ("", "ReduceMax"): reduce,
}
