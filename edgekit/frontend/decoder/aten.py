"""What each torch operator of a traced decoder becomes in ONNX.

One literal table at the end; anything else is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.emit import INT64_MAX, Constant, Emitter, Handler, onnx_type, scalar, shape_of
from edgekit.frontend.decoder.pending_views import Shape, View
from edgekit.spec.facts import set_plan
from edgekit.spec.names import EDGEKIT, MICROSOFT
from edgekit.spec.records import Plan

FARTHEST = float(np.finfo(np.float32).min)
"""Added to the scores of padding."""
ROUTER = "chooses the experts: small, and a rounded choice is another choice"
Args = list[Any]
Node = torch.fx.Node


def value(emitter: Emitter, operand: Any, like: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """Any translated operand as an ONNX value."""
    if isinstance(operand, View):
        return emitter.read(operand)
    if isinstance(operand, Constant):
        return emitter.weight(operand)
    return scalar(emitter, operand, like)


def wrap(node: Node, result: ir.Value) -> View:
    """The value of a torch node, with the shape that the trace gave it."""
    meta = node.meta["val"]
    result.dtype = onnx_type(meta.dtype)
    result.shape = ir.Shape([d if isinstance(d, int) else str(d) for d in shape_of(meta)])
    return View(result, shape_of(meta))


def rank(operand: Any) -> int:
    return len(operand.shape) if isinstance(operand, View) else operand.tensor.dim()


def axes(dims: Any, count: int) -> list[int]:
    return [int(d) % count for d in (dims if isinstance(dims, list | tuple) else [dims])]


def linear(emitter: Emitter, node: Node, args: Args) -> View:
    weight, bias = args[1], args[2] if len(args) > 2 else None
    if not isinstance(weight, Constant) or weight.tensor.dim() != 2:
        raise UnsupportedError(f"{emitter.scope}: a linear layer whose weight is computed at run time is not supported")
    inputs = [value(emitter, args[0]), emitter.weight(weight)] + ([value(emitter, bias)] if bias is not None else [])
    rounding, router = node.meta.get("activation_block_size", -1), node.meta.get("router", False)
    out = emitter.one("Linear", *inputs, domain=EDGEKIT, activation_block_size=rounding)
    set_plan(emitter.nodes[-1], Plan(emitter.scope, *(("fp32", 0, ROUTER) if router else ())))
    return wrap(node, out)


def addmm(emitter: Emitter, node: Node, args: Args) -> View:
    bias, x, weight = args[:3]
    return linear(emitter, node, [x, Constant(weight.tensor.t(), f"{weight.name}_t"), bias])


def embedding(emitter: Emitter, node: Node, args: Args) -> View:
    ids = value(emitter, args[1], ir.DataType.INT64)
    out = emitter.one("Embedding", ids, emitter.weight(args[0]), domain=EDGEKIT)
    set_plan(emitter.nodes[-1], Plan(emitter.scope))
    return wrap(node, out)


def reshape(emitter: Emitter, node: Node, args: Args) -> View:
    return args[0].reshape(shape_of(node.meta["val"]))  # type: ignore[no-any-return]


def same(emitter: Emitter, node: Node, args: Args) -> Any:
    return args[0]


def transpose(emitter: Emitter, node: Node, args: Args) -> View:
    order = list(range(rank(args[0])))
    a, b = (args[1] % len(order), args[2] % len(order)) if len(args) > 1 else (0, 1)
    order[a], order[b] = order[b], order[a]
    return args[0].transpose(order)  # type: ignore[no-any-return]


def permute(emitter: Emitter, node: Node, args: Args) -> View:
    return args[0].transpose(axes(args[1], rank(args[0])))  # type: ignore[no-any-return]


def expand(emitter: Emitter, node: Node, args: Args) -> View:
    shape = shape_of(node.meta["val"])
    if shape == args[0].shape:
        return args[0]  # type: ignore[no-any-return]
    target = emitter.vector(shape)
    return wrap(node, emitter.one("Expand", value(emitter, args[0]), target))


def repeat(emitter: Emitter, node: Node, args: Args) -> View:
    times = tuple(args[1])
    x = value(emitter, args[0].reshape((1,) * (len(times) - rank(args[0])) + args[0].shape))
    return wrap(node, emitter.one("Tile", x, emitter.vector(times), dtype=x.dtype or ir.DataType.FLOAT))


def slices(emitter: Emitter, node: Node, args: Args) -> View:
    axis = args[1] if len(args) > 1 else 0
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    end = args[3] if len(args) > 3 and args[3] is not None else INT64_MAX
    step = args[4] if len(args) > 4 else 1
    if shape_of(node.meta["val"]) == args[0].shape and step == 1:
        return args[0]  # type: ignore[no-any-return]
    bounds = [emitter.small([b]) if isinstance(b, int) else emitter.size(b) for b in (start, end)]
    where = emitter.small([axis % rank(args[0])])
    x, every = value(emitter, args[0]), emitter.small([step])
    return wrap(node, emitter.one("Slice", x, *bounds, where, every, dtype=x.dtype or ir.DataType.FLOAT))


def replace_part(emitter: Emitter, node: Node, whole: Any, part: View, axis: int, start: Any, end: Any) -> View:
    """``whole`` with other numbers from ``start`` to ``end`` of an axis; ``node`` is what made it."""
    x = value(emitter, whole)
    size = node.meta["val"].shape[axis]
    if not all(isinstance(n, int) and n >= 0 for n in (start, end, size)):
        raise UnsupportedError(f"{emitter.scope}: changing a part of unknown size in place is not supported")
    where, every = emitter.small([axis % rank(whole)]), emitter.small([1])
    ends = [(0, start, 0), (end, INT64_MAX, 1)] if end < size else [(0, start, 0)]
    parts = {1: value(emitter, part)}
    for first, last, after in ends:
        if first < last:
            parts[2 * after] = emitter.one("Slice", x, emitter.small([first]), emitter.small([last]), where, every)
    return wrap(node, emitter.one("Concat", *(parts[n] for n in sorted(parts)), axis=axis % rank(whole)))


def copied(emitter: Emitter, node: Node, args: Args) -> Any:
    return expand(emitter, node, [args[1]])


def select(emitter: Emitter, node: Node, args: Args) -> View:
    x, place = value(emitter, args[0]), emitter.small(args[2])
    return wrap(node, emitter.one("Gather", x, place, axis=args[1], dtype=x.dtype or ir.DataType.FLOAT))


def index(emitter: Emitter, node: Node, args: Args) -> View:
    """Rows of a table; where a place is counted from the end, Gather understands it too."""
    x, places = args[0], args[1]
    if len(places) != 1 or places[0] is None:
        raise UnsupportedError(f"{emitter.scope}: indexing other than of a first axis is not supported")
    data = value(emitter, x)
    where = value(emitter, places[0], ir.DataType.INT64)
    return wrap(node, emitter.one("Gather", data, where, axis=0, dtype=data.dtype or ir.DataType.FLOAT))


def split(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    axis = (args[2] if len(args) > 2 else 0) % rank(args[0])
    parts = node.meta["val"]
    sizes = [int(p.shape[axis]) for p in parts]
    outs = emitter.node("Split", [value(emitter, args[0]), emitter.small(sizes)], {"axis": axis}, outputs=len(parts))
    return tuple(View(o, shape_of(p)) for o, p in zip(outs, parts, strict=True))


def cat(emitter: Emitter, node: Node, args: Args) -> View:
    axis = (args[1] if len(args) > 1 else 0) % node.meta["val"].dim()
    parts = [value(emitter, x) for x in args[0] if not (isinstance(x, View) and x.shape[axis] == 0)]
    return wrap(node, emitter.one("Concat", *parts, axis=axis))


def pad(emitter: Emitter, node: Node, args: Args) -> View:
    """Zeros after the last axis."""
    if args[1][0] or len(args[1]) != 2 or (len(args) > 2 and (args[2] != "constant" or (*args, None)[3])):
        raise UnsupportedError(f"{emitter.scope}: padding other than by zeros after the last axis is not supported")
    ends = emitter.small([0] * (2 * rank(args[0]) - 1) + [args[1][1]])
    return wrap(node, emitter.one("Pad", value(emitter, args[0]), ends))


def stack(emitter: Emitter, node: Node, args: Args) -> View:
    result = node.meta["val"]
    axis = (args[1] if len(args) > 1 else 0) % result.dim()
    where = emitter.small([axis])
    parts = [emitter.one("Unsqueeze", value(emitter, x), where) for x in args[0]]
    return wrap(node, emitter.one("Concat", *parts, axis=axis))


def torch_rms_norm(emitter: Emitter, node: Node, args: Args) -> View:
    x, sizes, weight, epsilon = (*args, None, None)[:4]
    if len(sizes) != 1 or epsilon is None:
        raise UnsupportedError(f"{emitter.scope}: rms_norm of several axes, or without eps, is not supported")
    if weight is None:
        weight = Constant(torch.ones(sizes), f"{emitter.scope}.ones")
    return rmsnorm(emitter, node, [x, weight, epsilon])


def layer_norm(emitter: Emitter, node: Node, args: Args) -> View:
    x, sizes, weight, bias, epsilon = (*args, None, None, None)[:5]
    if weight is None:
        weight = Constant(torch.ones(sizes), f"{emitter.scope}.ones")
    inputs = [value(emitter, operand) for operand in (x, weight, bias) if operand is not None]
    epsilon = 1e-5 if epsilon is None else float(epsilon)
    return wrap(node, emitter.one("LayerNormalization", *inputs, axis=-len(sizes), epsilon=epsilon))


def align(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    """Right-aligns padding; see ``ops.align``. S is the number of new tokens, T counts the cache too."""
    e, i64 = emitter, ir.DataType.INT64
    ids, mask = value(e, args[0]), value(e, args[1])
    last, one = e.small([INT64_MAX]), e.small([1])
    length = e.size(shape_of(node.meta["val"][0])[1])  # S
    slots = e.one("Range", e.small(0), e.one("Squeeze", length, dtype=i64), e.small(1), dtype=i64)
    minus = e.one("Neg", length, dtype=i64)
    new = e.one("Slice", mask, minus, last, one, dtype=i64)
    old = e.one("Slice", mask, e.small([0]), minus, one, dtype=i64)
    first = e.one("ArgMax", new, dtype=i64, axis=1, keepdims=1)
    past = e.one("ReduceSum", old, one, dtype=i64, keepdims=1)
    positions = e.one("Add", past, slots, dtype=i64)
    index = e.one("Mod", e.one("Add", slots, first, dtype=i64), length, dtype=i64)
    aligned = e.one("GatherElements", ids, index, dtype=i64, axis=1)
    i32, to = ir.DataType.INT32, ir.DataType.INT32.value
    ends = e.one("Cast", e.one("Gather", positions, e.small(-1), dtype=i64, axis=1), dtype=i32, to=to)
    total = e.one("Cast", e.one("Shape", mask, dtype=i64, start=1, end=2), dtype=i32, to=to)
    back = e.one("Mod", e.one("Sub", slots, first, dtype=i64), length, dtype=i64)
    values = aligned, positions, ends, total, back
    return tuple(View(v, shape_of(m)) for v, m in zip(values, node.meta["val"], strict=True))


def restore(emitter: Emitter, node: Node, args: Args) -> View:
    e, i64 = emitter, ir.DataType.INT64
    start = e.one("Neg", value(e, args[2]), dtype=i64)
    kept = e.one("Slice", value(e, args[1]), start, e.small([INT64_MAX]), e.small([1]), dtype=i64)
    index = e.one("Unsqueeze", kept, e.small([-1]), dtype=i64)
    return View(e.one("GatherND", value(e, args[0]), index, batch_dims=1), shape_of(node.meta["val"]))


def flat(emitter: Emitter, x: View) -> ir.Value:
    """[B, heads, S, D] as [B, S, heads*D], which most often costs nothing: that is how the linear layer made it."""
    batch, heads, length, dim = x.shape
    return emitter.read(x.transpose((0, 2, 1, 3)).reshape((batch, length, int(heads) * int(dim))))


def rope(emitter: Emitter, node: Node, args: Args) -> View:
    x, cos, sin, positions, interleaved = args
    batch, heads, length, dim = x.shape
    attributes: dict[str, Any] = {"num_heads": int(heads), "interleaved": int(interleaved)}
    turned = 2 * cos.tensor.shape[1]
    if turned != int(dim):
        attributes["rotary_embedding_dim"] = turned
    inputs = [flat(emitter, x), value(emitter, positions), emitter.weight(cos), emitter.weight(sin)]
    out = emitter.one("RotaryEmbedding", *inputs, domain=MICROSOFT, **attributes)
    merged: Shape = (batch, length, int(heads) * int(dim))
    return View(out, merged).reshape((batch, length, heads, dim)).transpose((0, 2, 1, 3))


def gqa(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    q, k, v, past_k, past_v, lengths, total, scale, softcap, window, sink, bias = (*args, None, None)[:12]
    attributes: dict[str, Any] = {
        "num_heads": int(q.shape[1]), "kv_num_heads": int(k.shape[1]), "scale": float(scale),
        "local_window_size": int(window), "do_rotary": 0,
    }  # fmt: skip
    if softcap:
        attributes["softcap"] = float(softcap)
    inputs: list[ir.Value | None] = [flat(emitter, x) for x in (q, k, v)]
    inputs += [value(emitter, x) for x in (past_k, past_v, lengths, total)]
    if sink is not None or bias is not None:  # after what only the rotation inside uses
        inputs += [None, None, None, *(None if x is None else value(emitter, x) for x in (bias, sink))]
    outs = emitter.node("GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)
    batch, heads, length, dim = q.shape
    out = View(outs[0], (batch, length, int(heads) * int(dim))).reshape((batch, length, heads, dim))
    return (out, *[View(o, shape_of(m)) for o, m in zip(outs[1:], node.meta["val"][1:], strict=True)])


def relative(emitter: Emitter, node: Node, args: Args) -> View:
    e, i64, table = emitter, ir.DataType.INT64, args[2]
    total = e.one("Squeeze", e.size(args[1].shape[1]), dtype=i64)
    keys = e.one("Range", e.small(0), total, e.small(1), dtype=i64)
    queries = e.one("Unsqueeze", value(e, args[0]), e.small([2]), dtype=i64)
    distance = e.one("Sub", queries, keys, dtype=i64)
    place = e.one("Clip", distance, e.small(0), e.small(table.tensor.shape[0] - 1), dtype=i64)
    rows = e.one("Gather", e.weight(table), place, axis=0)
    return wrap(node, e.one("Transpose", rows, perm=[0, 3, 1, 2]))


def cross(emitter: Emitter, node: Node, args: Args) -> View:
    q, k, v, mask, scale = args
    keep = emitter.one("Cast", value(emitter, mask), dtype=ir.DataType.INT32, to=ir.DataType.INT32.value)
    inputs = [flat(emitter, q), value(emitter, k), value(emitter, v), None, keep]
    attributes: dict[str, Any] = {"num_heads": int(q.shape[1]), "scale": float(scale), "mask_filter_value": FARTHEST}
    out = emitter.one("MultiHeadAttention", *inputs, domain=MICROSOFT, **attributes)
    batch, heads, length, dim = q.shape
    return View(out, (batch, length, int(heads) * int(dim))).reshape((batch, length, heads, dim))


def place(emitter: Emitter, node: Node, args: Args) -> View:
    x, ids, features, token = args
    wanted = emitter.one("Equal", value(emitter, ids), emitter.small(token), dtype=ir.DataType.BOOL)
    axes_first = emitter.one("NonZero", wanted, dtype=ir.DataType.INT64)
    there = emitter.one("Shape", value(emitter, features), dtype=ir.DataType.INT64, start=0, end=1)
    taken = [emitter.small([0]), there, emitter.small([1])]  # as many as there are rows
    places = emitter.one("Slice", axes_first, *taken, dtype=ir.DataType.INT64)
    places = emitter.one("Transpose", places, dtype=ir.DataType.INT64, perm=[1, 0])
    return wrap(node, emitter.one("ScatterND", value(emitter, x), places, value(emitter, features)))


def rmsnorm(emitter: Emitter, node: Node, args: Args) -> View:
    view, order = args[0].before_transpose()
    weight = emitter.weight(args[1])
    out = emitter.one("SimplifiedLayerNormalization", emitter.read(view), weight, axis=-1, epsilon=float(args[2]))
    result = View(out, view.shape)
    return result.transpose(order) if order else result


def tap(emitter: Emitter, node: Node, args: Args) -> View:
    emitter.taps[args[1]] = emitter.read(args[0])
    return args[0]  # type: ignore[no-any-return]


def filled(number: float) -> Handler:
    def forward(emitter: Emitter, node: Node, args: Args) -> View:
        shape, dtype = emitter.vector(shape_of(node.meta["val"])), onnx_type(node.meta["val"].dtype)
        return wrap(node, emitter.one("Expand", scalar(emitter, number, dtype), shape, dtype=dtype))

    return forward


HANDLERS: dict[str, Handler] = {
    "edgekit.align.default": align,
    "edgekit.restore.default": restore,
    "edgekit.rope.default": rope,
    "edgekit.gqa.default": gqa,
    "edgekit.relative.default": relative,
    "edgekit.cross.default": cross,
    "edgekit.place.default": place,
    "edgekit.rmsnorm.default": rmsnorm,
    "edgekit.tap.default": tap,
    "aten.linear.default": linear,
    "aten.addmm.default": addmm,
    "aten.embedding.default": embedding,
    "aten.view.default": reshape,
    "aten.reshape.default": reshape,
    "aten._unsafe_view.default": reshape,
    "aten.view_as.default": reshape,
    "aten.unsqueeze.default": reshape,
    "aten.squeeze.dim": reshape,
    "aten.flatten.using_ints": reshape,
    "aten.unflatten.int": reshape,
    "aten.transpose.int": transpose,
    "aten.t.default": transpose,
    "aten.permute.default": permute,
    "aten.contiguous.default": same,
    "aten.clone.default": same,
    "aten.copy_.default": copied,
    "aten.alias.default": same,
    "aten.detach.default": same,
    "aten.detach_.default": same,
    "aten.lift_fresh_copy.default": same,
    "aten.dropout.default": same,
    "aten.expand.default": expand,
    "aten.expand_as.default": expand,
    "aten.repeat.default": repeat,
    "aten.slice.Tensor": slices,
    "aten.select.int": select,
    "aten.index.Tensor": index,
    "aten.split.Tensor": split,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.cat.default": cat,
    "aten.concat.default": cat,
    "aten.pad.default": pad,
    "aten.stack.default": stack,
    "aten.rms_norm.default": torch_rms_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.new_zeros.default": filled(0.0),
    "aten.zeros_like.default": filled(0.0),
    "aten.zeros.default": filled(0.0),
    "aten.ones.default": filled(1.0),
}
"""Torch operator -> what writes it."""
READ_WEIGHTS = (
    "aten.linear.default",
    "aten.addmm.default",
    "aten.embedding.default",
    "aten.layer_norm.default",
    "aten.rms_norm.default",
)
"""Whose handlers take constants as they are, to store them in a format; to all others they are values."""
