"""Convolutions with a window and scans with a matrix as ONNX nodes; what they compute is in ``ops``."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.frontend.decoder.aten import Args, Node, value
from edgekit.frontend.decoder.emit import Constant, Emitter, Handler, shape_of
from edgekit.frontend.decoder.pending_views import View
from edgekit.spec.names import MICROSOFT


def real(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    """S is the number of new tokens, T counts those before too; see ``ops.real``."""
    e, i64 = emitter, ir.DataType.INT64
    mask, last, one = value(e, args[1]), e.small([2**63 - 1]), e.small([1])
    length = e.size(shape_of(node.meta["val"][0])[1])  # S
    slots = e.one("Range", e.small(0), e.one("Squeeze", length, dtype=i64), e.small(1), dtype=i64)
    new = e.one("Slice", mask, e.one("Neg", length, dtype=i64), last, one, dtype=i64)
    count = e.one("ReduceSum", new, one, dtype=i64, keepdims=1)
    seen = e.one("Less", slots, count, dtype=ir.DataType.BOOL)
    values = [
        e.one("Cast", seen, to=ir.DataType.FLOAT.value),
        e.one("Mod", e.one("Add", slots, count, dtype=i64), length, dtype=i64),
        e.one("Mod", e.one("Sub", slots, count, dtype=i64), length, dtype=i64),
    ]
    values = [e.one("Unsqueeze", v, e.small([-1]), dtype=v.dtype or i64) for v in values]
    return tuple(View(v, shape_of(m)) for v, m in zip(values, node.meta["val"], strict=True))


def conv(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    e, (x, weight, bias, past, mask, left, right, silu) = emitter, args
    batch, channels, length = x.shape
    rows = e.one("Mul", e.read(x.transpose((0, 2, 1))), value(e, mask))
    rows = e.one("GatherND", rows, value(e, left), batch_dims=1)
    kernel = e.weight(Constant(weight.tensor.unsqueeze(1), weight.name))
    inputs = [
        e.one("Transpose", rows, perm=[0, 2, 1]),
        kernel,
        None if bias is None else value(e, bias),
        value(e, past),
    ]
    attributes: dict[str, Any] = {"activation": "silu" if silu else "none"}
    out, present = e.node("CausalConvWithState", inputs, attributes, domain=MICROSOFT, outputs=2)
    back = e.one("GatherND", e.one("Transpose", out, perm=[0, 2, 1]), value(e, right), batch_dims=1)
    return View(back, (batch, length, channels)).transpose((0, 2, 1)), View(present, past.shape)


def scan(emitter: Emitter, node: Node, args: Args) -> tuple[View, ...]:
    e, (q, k, v, decay, beta, past, mask, scale) = emitter, args
    batch, length, heads, size = v.shape
    seen = value(e, mask)
    keys, values = flat(e, k), flat(e, v)
    inputs = [flat(e, q), keys, values if beta is not None else e.one("Mul", values, seen), value(e, past)]
    inputs += [
        e.one("Mul", flat(e, gate) if len(gate.shape) == 4 else e.read(gate), seen) for gate in (decay, beta) if gate
    ]
    attributes = {
        "q_num_heads": int(q.shape[2]), "kv_num_heads": int(heads), "scale": float(scale),
        "update_rule": "gated" if beta is None else "gated_delta",
    }  # fmt: skip
    out, present = e.node("LinearAttention", inputs, attributes, domain=MICROSOFT, outputs=2)
    merged = (batch, length, int(heads) * int(size))
    return View(out, merged).reshape((batch, length, heads, size)), View(present, past.shape)


def flat(emitter: Emitter, x: View) -> ir.Value:
    """[B, S, heads, D] as [B, S, heads*D]."""
    batch, length, heads, size = x.shape
    return emitter.read(x.reshape((batch, length, int(heads) * int(size))))


def l2norm(emitter: Emitter, node: Node, args: Args) -> View:
    """The root mean square is the root of the sum, over that of the size."""
    x, size = args[0], int(args[0].shape[-1])
    weight = emitter.small(np.full(size, size**-0.5), np.float32)
    epsilon = float(args[1]) / size
    out = emitter.one("SimplifiedLayerNormalization", emitter.read(x), weight, axis=-1, epsilon=epsilon)
    return View(out, x.shape)


HANDLERS: dict[str, Handler] = {
    "edgekit.real.default": real,
    "edgekit.conv.default": conv,
    "edgekit.scan.default": scan,
    "edgekit.l2norm.default": l2norm,
}
"""Torch operator -> what writes it."""
