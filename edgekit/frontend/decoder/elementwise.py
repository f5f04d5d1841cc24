"""Torch operators that work number by number or along one axis, as ONNX nodes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.aten import Args, Node, axes, rank, value, wrap
from edgekit.frontend.decoder.emit import Emitter, Handler, onnx_type, scalar
from edgekit.frontend.decoder.pending_views import View
from edgekit.spec.names import MICROSOFT


def cast(emitter: Emitter, node: Node, args: Args) -> View:
    """Every floating type is float32 here; whole numbers and truth values become it."""
    wanted, x = onnx_type(node.meta["val"].dtype), value(emitter, args[0])
    return args[0] if x.dtype == wanted else wrap(node, as_type(emitter, x, wanted))


def as_type(emitter: Emitter, x: ir.Value, wanted: ir.DataType) -> ir.Value:
    return x if x.dtype == wanted else emitter.one("Cast", x, dtype=wanted, to=wanted.value)


def binary(op: str) -> Handler:
    def forward(emitter: Emitter, node: Node, args: Args) -> View:
        if node.kwargs.get("alpha", 1) != 1:
            raise UnsupportedError(f"{emitter.scope}: {node.target} with alpha={node.kwargs['alpha']} is not supported")
        like = onnx_type(node.meta["val"].dtype)
        sides = [as_type(emitter, value(emitter, a, like), like) for a in args[:2]]
        return wrap(node, emitter.one(op, *sides, dtype=like))

    return forward


def compare(op: str) -> Handler:
    def forward(emitter: Emitter, node: Node, args: Args) -> View:
        x = value(emitter, args[0])
        other = value(emitter, args[1], x.dtype or ir.DataType.FLOAT)
        return wrap(node, emitter.one(op, x, other, dtype=ir.DataType.BOOL))

    return forward


def where(emitter: Emitter, node: Node, args: Args) -> View:
    like = onnx_type(node.meta["val"].dtype)
    sides = [as_type(emitter, value(emitter, a, like), like) for a in args[1:3]]
    return wrap(node, emitter.one("Where", value(emitter, args[0]), *sides, dtype=like))


def log1p(emitter: Emitter, node: Node, args: Args) -> View:
    one = scalar(emitter, 1.0, ir.DataType.FLOAT)
    return wrap(node, emitter.one("Log", emitter.one("Add", value(emitter, args[0]), one)))


def rsub(emitter: Emitter, node: Node, args: Args) -> View:
    return binary("Sub")(emitter, node, [args[1], args[0]])  # type: ignore[no-any-return]


def unary(op: str, domain: str = "", **attributes: Any) -> Handler:
    def forward(emitter: Emitter, node: Node, args: Args) -> View:
        return wrap(node, emitter.one(op, value(emitter, args[0]), domain=domain, **attributes))

    return forward


def power(emitter: Emitter, node: Node, args: Args) -> View:
    x = value(emitter, args[0])
    if args[1] == 2:
        return wrap(node, emitter.one("Mul", x, x))
    return wrap(node, emitter.one("Pow", x, scalar(emitter, args[1], ir.DataType.FLOAT)))


def square(emitter: Emitter, node: Node, args: Args) -> View:
    return power(emitter, node, [args[0], 2])


def gelu(emitter: Emitter, node: Node, args: Args) -> View:
    x = value(emitter, args[0])
    if node.kwargs.get("approximate", "none") == "tanh":
        return wrap(node, emitter.one("FastGelu", x, domain=MICROSOFT))
    return wrap(node, emitter.one("Gelu", x, domain=MICROSOFT))


def clamp(emitter: Emitter, node: Node, args: Args) -> View:
    bounds = [scalar(emitter, b, ir.DataType.FLOAT) if b is not None else None for b in (*args[1:3], None)[:2]]
    return wrap(node, emitter.one("Clip", value(emitter, args[0]), *bounds))


def mean(emitter: Emitter, node: Node, args: Args) -> View:
    where = emitter.small(axes(args[1], rank(args[0])))
    keep = int(args[2]) if len(args) > 2 else 0
    return wrap(node, emitter.one("ReduceMean", value(emitter, args[0]), where, keepdims=keep))


def deviation(emitter: Emitter, node: Node, args: Args) -> View:
    """The standard deviation of all of a population, as ``unbiased=False`` asks for it."""
    unbiased, keep = (*args[2:], True, False)[:2] if len(args) != 3 else (args[2], False)
    if unbiased:
        raise UnsupportedError(f"{emitter.scope}: the standard deviation of a sample (unbiased) is not supported")
    x, where = value(emitter, args[0]), emitter.small(axes(args[1], rank(args[0])))
    away = emitter.one("Sub", x, emitter.one("ReduceMean", x, where, keepdims=1))
    squares = emitter.one("ReduceMean", emitter.one("Mul", away, away), where, keepdims=int(keep))
    return wrap(node, emitter.one("Sqrt", squares))


def softmax(emitter: Emitter, node: Node, args: Args) -> View:
    return wrap(node, emitter.one("Softmax", value(emitter, args[0]), axis=args[1]))


HANDLERS: dict[str, Handler] = {
    "aten.to.dtype": cast,
    "aten.to.dtype_layout": cast,
    "aten.to.device": cast,
    "aten._to_copy.default": cast,
    "aten.type_as.default": cast,
    "aten.float.default": cast,
    "aten.add.Tensor": binary("Add"),
    "aten.add_.Tensor": binary("Add"),
    "aten.sub.Tensor": binary("Sub"),
    "aten.rsub.Scalar": rsub,
    "aten.mul.Tensor": binary("Mul"),
    "aten.multiply.Tensor": binary("Mul"),
    "aten.div.Tensor": binary("Div"),
    "aten.div_.Tensor": binary("Div"),
    "aten.mul_.Tensor": binary("Mul"),
    "aten.matmul.default": binary("MatMul"),
    "aten.bmm.default": binary("MatMul"),
    "aten.pow.Tensor_Scalar": power,
    "aten.square.default": square,
    "aten.neg.default": unary("Neg"),
    "aten.abs.default": unary("Abs"),
    "aten.sqrt.default": unary("Sqrt"),
    "aten.rsqrt.default": lambda e, n, a: wrap(n, e.one("Reciprocal", e.one("Sqrt", value(e, a[0])))),
    "aten.exp.default": unary("Exp"),
    "aten.expm1.default": lambda e, n, a: wrap(n, e.one("Sub", e.one("Exp", value(e, a[0])), e.small(1.0, "float32"))),
    "aten.log.default": unary("Log"),
    "aten.log1p.default": log1p,
    "aten.floor.default": unary("Floor"),
    "aten.min.other": binary("Min"),
    "aten.max.other": binary("Max"),
    "aten.minimum.default": binary("Min"),
    "aten.maximum.default": binary("Max"),
    "aten.gt.Scalar": compare("Greater"),
    "aten.ge.Scalar": compare("GreaterOrEqual"),
    "aten.lt.Scalar": compare("Less"),
    "aten.le.Scalar": compare("LessOrEqual"),
    "aten.logical_and.default": lambda e, n, a: wrap(n, e.one("And", *map(value, (e, e), a), dtype=ir.DataType.BOOL)),
    "aten.where.self": where,
    "aten.where.ScalarOther": where,
    "aten.where.ScalarSelf": where,
    "aten.tanh.default": unary("Tanh"),
    "aten.sigmoid.default": unary("Sigmoid"),
    "aten.softplus.default": unary("Softplus"),
    "aten.relu.default": unary("Relu"),
    "aten.silu.default": unary("QuickGelu", MICROSOFT, alpha=1.0),
    "aten.cos.default": unary("Cos"),
    "aten.sin.default": unary("Sin"),
    "aten.gelu.default": gelu,
    "aten.mean.dim": mean,
    "aten.std.dim": deviation,
    "aten.softmax.int": softmax,
    "aten.clamp.default": clamp,
}
"""Torch operator -> what writes it."""
