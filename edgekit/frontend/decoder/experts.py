"""What mixtures of experts and their routers become in ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.frontend.decoder.aten import Args, Node, value, wrap
from edgekit.frontend.decoder.emit import Constant, Emitter, Handler, scalar, shape_of
from edgekit.frontend.decoder.pending_views import View
from edgekit.lowbit.initializers import WeightTensor
from edgekit.lowbit.weights import RowWeight
from edgekit.spec.facts import set_plan
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Plan


def _rows(emitter: Emitter, constant: Constant, suffix: str) -> ir.Value:
    """Stacked weights [E, N, K] as an initializer float32 [E N, K] that is read by rows."""
    tensor, count = constant.tensor, int(constant.tensor.shape[1])

    def read(start: int, stop: int) -> np.ndarray:
        rows = np.arange(start, stop)
        return tensor[rows // count, rows % count].detach().float().numpy()

    name = emitter.name(f"{emitter.scope}.{suffix}")
    shape = (int(tensor.shape[0]) * count, int(tensor.shape[2]))
    lazy = WeightTensor(RowWeight(shape, read), name)
    stored = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape), const_value=lazy)
    emitter.initializers[name] = stored
    return stored


def _bias(emitter: Emitter, constant: Constant | None, suffix: str) -> ir.Value | None:
    return None if constant is None else emitter.weight(Constant(constant.tensor, f"{emitter.scope}.{suffix}"))


def experts(emitter: Emitter, node: Node, args: Args) -> View:
    """``ai.edgekit::Experts``: x, index and weights [T, k], gate and up [E 2 I, K], bias, down [E K, I], bias."""
    x, index, weights, gate_up, gate_up_bias, down, down_bias, alpha, beta, limit = args
    e = emitter
    inputs = [
        value(e, x), value(e, index, ir.DataType.INT64), value(e, weights),
        _rows(e, gate_up, "gate_up_proj"), _bias(e, gate_up_bias, "gate_up_proj_bias"),
        _rows(e, down, "down_proj"), _bias(e, down_bias, "down_proj_bias"),
    ]  # fmt: skip
    count = int(gate_up.tensor.shape[0])
    settings = {"k": int(index.shape[1]), "experts": count, "alpha": alpha, "beta": beta, "limit": limit}
    answer = e.node("Experts", inputs, settings, domain=EDGEKIT)[0]
    set_plan(e.nodes[-1], Plan(e.scope))
    return wrap(node, answer)


def topk(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    axis = args[2] if len(args) > 2 else -1
    largest, ordered = (int(args[i]) if len(args) > i else 1 for i in (3, 4))
    attributes = {"axis": axis, "largest": largest, "sorted": ordered}
    outs = emitter.node("TopK", [value(emitter, args[0]), emitter.small([args[1]])], attributes, outputs=2)
    views = [View(out, shape_of(meta)) for out, meta in zip(outs, node.meta["val"], strict=True)]
    outs[1].dtype = ir.DataType.INT64
    return tuple(views)


def largest(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    """Of equals the first, as in PyTorch on a CPU."""
    x, axis, keep = value(emitter, args[0]), int(args[1]), int(args[2]) if len(args) > 2 else 0
    most = emitter.one("ReduceMax", x, emitter.small([axis]), keepdims=keep)
    place = emitter.one("ArgMax", x, axis=axis, keepdims=keep, dtype=ir.DataType.INT64)
    return tuple(View(out, shape_of(meta)) for out, meta in zip((most, place), node.meta["val"], strict=True))


def clamp(emitter: Emitter, node: Node, args: Args) -> View:
    """With a tensor for each limit that there is."""
    x = value(emitter, args[0])
    for operator, limit in zip(("Max", "Min"), args[1:], strict=False):
        x = x if limit is None else emitter.one(operator, x, value(emitter, limit))
    return wrap(node, x)


def gather(emitter: Emitter, node: Node, args: Args) -> View:
    x, index = value(emitter, args[0]), value(emitter, args[2], ir.DataType.INT64)
    return wrap(node, emitter.one("GatherElements", x, index, axis=args[1]))


def total(emitter: Emitter, node: Node, args: Args) -> View:
    where = emitter.small([int(d) for d in (args[1] if isinstance(args[1], list | tuple) else [args[1]])])
    keep = int(args[2]) if len(args) > 2 else 0
    return wrap(node, emitter.one("ReduceSum", value(emitter, args[0]), where, keepdims=keep))


def scatter(emitter: Emitter, node: Node, args: Args) -> View:
    """A number put where an index says, as group-limited routing marks its groups."""
    x, index = value(emitter, args[0]), value(emitter, args[2], ir.DataType.INT64)
    like = x.dtype or ir.DataType.FLOAT
    shape = emitter.one("Shape", index, dtype=ir.DataType.INT64)
    updates = emitter.one("Expand", scalar(emitter, args[3], like), shape, dtype=like)
    return wrap(node, emitter.one("ScatterElements", x, index, updates, axis=args[1], dtype=like))


def masked_fill(emitter: Emitter, node: Node, args: Args) -> View:
    x = value(emitter, args[0])
    return wrap(node, emitter.one("Where", value(emitter, args[1]), scalar(emitter, args[2], ir.DataType.FLOAT), x))


HANDLERS: dict[str, Handler] = {
    "edgekit.experts.default": experts,
    "aten.topk.default": topk,
    "aten.max.dim": largest,
    "aten.clamp.Tensor": clamp,
    "aten.gather.default": gather,
    "aten.scatter_.value": scatter,
    "aten.scatter.value": scatter,
    "aten.masked_fill.Scalar": masked_fill,
    "aten.bitwise_not.default": lambda e, n, a: wrap(n, e.one("Not", value(e, a[0]), dtype=ir.DataType.BOOL)),
    "aten.sum.dim_IntList": total,
}
"""What routers use beside the operators of every decoder."""
