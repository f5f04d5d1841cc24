"""``ai.edgekit::Experts`` -> ONNX Runtime's MoE or QMoE, which read the weights of the chosen experts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.passes.layers import add_constant, experts_of
from edgekit.passes.lower_linears import StoredWeight
from edgekit.spec.facts import facts_of, plan_of
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import MICROSOFT
from edgekit.spec.records import Layer

STACKS = ((2, "gate_up_proj"), (4, "down_proj"))
"""Which inputs are weights [E N, K], and what they are called in the model."""


class LowerExperts(ir.passes.InPlacePass):
    """Writes each mixture of experts in its chosen format: float32, int8 or int4 in blocks. The model's facts list both weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = experts_of(model.graph)
        for node in nodes:
            facts_of(model).layers += _lower(model.graph, node)
        if nodes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node) -> list[Layer]:
    plan = plan_of(node)
    kind = FORMATS[plan.format]
    x, scores, _, up_bias, _, down_bias = (*node.inputs, None)[:6]  # a bias that is last and missing is cut off
    layers, stored = [], []
    for place, name in STACKS:
        values, layer = _stored(graph, node, place, name)
        stored.append(values)
        layers.append(layer)
    (up, up_scales), (down, down_scales) = stored
    settings = {k: node.attributes[k].value for k in ("k", "alpha", "beta", "limit")}
    attributes: dict[str, int | float | str] = {
        "k": settings["k"], "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1,
        "activation_alpha": settings["alpha"], "activation_beta": settings["beta"],
    }  # fmt: skip
    if settings["limit"]:
        attributes["swiglu_limit"] = settings["limit"]
    if kind.layout == "floats":
        operator, inputs = "MoE", [x, scores, up, up_bias, down, down_bias]
    else:
        operator, inputs = "QMoE", [x, scores, up, up_scales, up_bias, down, down_scales, down_bias]
        attributes |= {
            "expert_weight_bits": kind.bits,
            "block_size": plan.block_size,
            "accuracy_level": 4,
            "weights_prepacked": 0,
        }
    attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
    new = ir.Node(MICROSOFT, operator, inputs, attrs, num_outputs=1, name=f"node:{plan.layer}.{operator}")
    new.outputs[0].name, new.outputs[0].type = node.outputs[0].name, node.outputs[0].type
    new.outputs[0].shape = node.outputs[0].shape
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(node.outputs[0], new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return layers


def _stored(graph: ir.Graph, node: ir.Node, place: int, name: str) -> tuple[tuple[ir.Value, ir.Value | None], Layer]:
    """The initializers of one weight, an expert after the other, and what to say of it."""
    plan = replace(plan_of(node), layer=f"{plan_of(node).layer}.{name}")
    weight, count = StoredWeight(plan, node.inputs[place]), int(node.attributes["experts"].value)
    rows, columns, block = weight.rows // count, weight.columns, plan.block_size

    def lazy(suffix: str, read: Callable[[], np.ndarray], dtype: ir.DataType, width: int) -> ir.Value:
        full, shape = f"{plan.layer}.{suffix}", (count, rows, width)
        tensor = ir.LazyTensor(
            lambda: ir.tensor(read().reshape(shape), name=full), dtype=dtype, shape=ir.Shape(shape), name=full
        )
        return add_constant(graph, full, tensor)

    data = lazy(weight.kind.name, weight.data, weight.dtype, columns * weight.kind.bits // weight.dtype.bitwidth)
    scales = lazy("scales", weight.scales, ir.DataType.FLOAT, weight.blocks) if weight.scales_shape else None
    said = Layer(
        plan.layer, weight.kind.name, block, weight.bits_per_weight, (weight.rows, columns), str(data.name),
        "" if scales is None else str(scales.name), (0, weight.rows), block or -1, plan.reason,
    )  # fmt: skip
    return (data, scales), said
