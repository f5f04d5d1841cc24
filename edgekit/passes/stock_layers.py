"""Layers on stock operators, which no format of edgekit is for: listed, so that no weight goes unmentioned."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from edgekit.passes.normalize_linear import layer_name
from edgekit.spec.facts import facts_of
from edgekit.spec.records import Layer

CONVOLUTION = "convolution: int8-static quantizes these"
RECURRENT = "recurrent layer: no recipe quantizes these"
PRODUCT = "no layer x·W + b with one constant matrix"
ONE, EITHER, TWO = {1: ""}, {0: "", 1: ""}, {1: ".weight_ih", 2: ".weight_hh"}
KINDS: dict[str, tuple[dict[int, str], str]] = {
    "Conv": (ONE, CONVOLUTION),
    "ConvTranspose": (ONE, CONVOLUTION),
    "Gemm": (EITHER, PRODUCT),
    "MatMul": (EITHER, PRODUCT),
    "LSTM": (TWO, RECURRENT),
    "GRU": (TWO, RECURRENT),
    "RNN": (TWO, RECURRENT),
}
"""By operator, which inputs may be weights, with what follows the layer's name, and why these stay as they are."""
FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8)


class ListStockLayers(ir.passes.InPlacePass):
    """Adds to the facts what convolutions, recurrent layers and other products are stored as, and why."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        facts_of(model).layers += stock_layers(model)
        return ir.passes.PassResult(model, modified=False)


def stock_layers(model: ir.Model, calibrated: bool = False) -> Iterator[Layer]:
    """Each weight that such an operator reads, once; ``calibrated``: after int8-static."""
    seen = set()
    for node in model.graph:
        places, reason = KINDS.get(node.op_type, ({}, "")) if node.domain == "" else ({}, "")
        for place, suffix in places.items():
            value = node.inputs[place] if place < len(node.inputs) else None
            stored, scales = _stored(value)
            if value is None or stored is None or len(stored.shape) < 2 or id(stored) in seen:
                continue
            seen.add(id(stored))
            shape = tuple(int(d) for d in stored.shape.numpy())
            name = _name(node, str(value.name).removesuffix("_DequantizeLinear_Output")) + suffix
            if stored.dtype in QUANTIZED:
                bits = 8 + 32 * scales / math.prod(shape)
                why = "" if calibrated else "quantized already in the model that was given"
                yield Layer(name, "int8-static", 0, round(bits, 4), shape, reason=why)
            elif stored.dtype in FLOATS:
                why = "the quantizer left it in float32" if calibrated else reason
                yield Layer(name, FLOATS[stored.dtype], 0, 8.0 * stored.dtype.itemsize, shape, reason=why)


def _name(node: ir.Node, weight: str) -> str:
    """The module's path. Where a normalization was folded into the layer, the node bears the normalization's."""
    return weight.removesuffix(".weight") if weight.endswith(".weight") else layer_name(node, weight)


def _stored(value: ir.Value | None) -> tuple[ir.TensorProtocol | None, int]:
    """The constant that a value is, or is dequantized from, and the number of its scales."""
    source = value.producer() if value is not None else None
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] is None:
        return (value.const_value if value is not None else None), 0
    scales = source.inputs[1].const_value if source.inputs[1] is not None else None
    return source.inputs[0].const_value, math.prod(scales.shape.numpy()) if scales is not None else 0
