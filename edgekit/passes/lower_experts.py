"""``ai.edgekit::Experts`` -> two ExpertMatMul and the gate between them, or for float32 ONNX Runtime's MoE; both read the weights
of the chosen experts alone.

MoE chooses by its own softmax over k of E scores. Given the logarithms of the weights that the router chose, and a very
small number for all other experts, that softmax gives the weights back, up to their sum; with it the result is multiplied.
So every way of routing is the same to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.initializers import WeightTensor, weight_of
from edgekit.lowbit.weights import RowWeight
from edgekit.passes.layers import EXPERT_WEIGHTS, add_constant, experts_of, weight_shape
from edgekit.passes.lower_linears import StoredWeight
from edgekit.spec.facts import facts_of, plan_of
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import EDGEKIT, EXPERT_MATMUL, MICROSOFT
from edgekit.spec.records import Layer

NAMES = ("gate_up_proj", "down_proj")
"""What the weights are called in the model."""
SMALLEST = 1e-30
"""Stands for a weight of zero, whose logarithm is not finite."""
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class LowerExperts(ir.passes.InPlacePass):
    """Writes each mixture of experts in its chosen format: float32, 8, 4 or 2 bits in blocks. The model's facts list both weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = experts_of(model.graph)
        for node in nodes:
            lowering = _Lowering(model.graph, node)
            out = node.outputs[0]
            new = lowering.floats() if FORMATS[plan_of(node).format].layout == "floats" else lowering.blocks()
            new.type, new.shape, name = out.type, out.shape, out.name
            ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            new.name = name
            facts_of(model).layers += lowering.layers
        if nodes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        return ir.passes.PassResult(model, modified=bool(nodes))


class _Lowering:
    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.plan = graph, node, plan_of(node)
        self.layers: list[Layer] = []
        self.settings = {name: attribute.value for name, attribute in node.attributes.items()}
        (self.x, self.index, self.mixed, self.up, self.up_bias, self.down, self.down_bias) = (*node.inputs, None)[:7]
        self._count = itertools.count()

    def blocks(self) -> ir.Value:
        """down(act(gate) (up + beta)), an expert's answer for each pair, times its weight, summed."""
        both = self._multiplied(self.x, 0, self.up_bias)
        gate, up = self._op("Split", both, outputs=2, axis=-1, num_outputs=2)
        alpha, beta, limit = (float(self.settings[name]) for name in ("alpha", "beta", "limit"))
        if limit:
            gate = self._one("Min", gate, self._number(limit))
            up = self._one("Clip", up, self._number(-limit), self._number(limit))
        scaled = gate if alpha == 1 else self._one("Mul", gate, self._number(alpha))
        opened = self._one("Mul", gate, self._one("Sigmoid", scaled))
        shifted = self._one("Add", up, self._number(beta)) if beta else up
        answers = self._multiplied(self._one("Mul", opened, shifted), 1, self.down_bias)
        shares = self._one("Unsqueeze", self.mixed, self._number([-1], np.int64))
        return self._one("ReduceSum", self._one("Mul", answers, shares), self._number([1], np.int64), keepdims=0)

    def floats(self) -> ir.Value:
        """MoE, whose experts' gate and up rows come in turn."""
        count = self.settings["experts"]
        rows = weight_shape(self.node, EXPERT_WEIGHTS[0])[0] // count
        logarithms = self._one("Log", self._one("Max", self.mixed, self._number(SMALLEST)))
        tokens = self._one("Shape", self.mixed, start=0, end=1)
        every = self._one("Concat", tokens, self._number([count], np.int64), axis=0)
        floor = self._one("Expand", self._number(np.log(SMALLEST)), every)
        scores = self._one("ScatterElements", floor, self.index, logarithms, axis=1)
        order = np.arange(rows) // 2 + np.arange(rows) % 2 * (rows // 2)
        up, up_bias = _in_order(self.up, count, order), self.up_bias
        if up_bias is not None and up_bias.const_value is not None:
            up_bias = add_constant(self.graph, f"{up_bias.name}.in_turn", up_bias.const_value.numpy()[:, order])
        alpha, beta, limit = (float(self.settings[name]) for name in ("alpha", "beta", "limit"))
        attributes = {
            "k": self.settings["k"], "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1,
            "activation_alpha": alpha, "activation_beta": beta, **({"swiglu_limit": limit} if limit else {}),
        }  # fmt: skip
        weights = [self._stored(value, place)[0] for place, value in enumerate((up, self.down))]
        inputs = [self.x, scores, weights[0], up_bias, weights[1], self.down_bias]
        answer = self._op("MoE", *inputs, domain=MICROSOFT, **attributes)[0]
        return self._one("Mul", answer, self._one("ReduceSum", self.mixed, self._number([1], np.int64), keepdims=1))

    def _multiplied(self, x: ir.Value | None, place: int, bias: ir.Value | None) -> ir.Value:
        """x [T, K] or [T, k, K] by one of the chosen experts' weights: [T, k, N]."""
        data, scales = self._stored((self.up, self.down)[place], place)
        rows, columns = weight_shape(self.node, EXPERT_WEIGHTS[place])
        settings = {"K": columns, "N": rows // self.settings["experts"], "bits": FORMATS[self.plan.format].bits}
        settings["block_size"] = self.plan.block_size
        y = self._op(EXPERT_MATMUL, x, self.index, data, scales, domain=EDGEKIT, **settings)[0]
        return y if bias is None else self._one("Add", y, self._one("Gather", bias, self.index, axis=0))

    def _stored(self, value: ir.Value | None, place: int) -> tuple[ir.Value, ir.Value | None]:
        """The initializers of one weight, an expert after the other; the layer is listed."""
        plan, count = replace(self.plan, layer=f"{self.plan.layer}.{NAMES[place]}"), self.settings["experts"]
        weight = StoredWeight(plan, value)
        kind, rows, block = weight.kind, weight.rows // count, plan.block_size

        def lazy(suffix: str, read: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
            full = f"{plan.layer}.{suffix}"
            tensor = ir.LazyTensor(
                lambda: ir.tensor(read().reshape(shape), name=full), dtype=dtype, shape=ir.Shape(shape), name=full
            )
            return add_constant(self.graph, full, tensor)

        data = lazy(kind.name, weight.data, weight.dtype, (count, rows, *weight.shape[1:]))
        scales, bits = None, float(kind.bits)
        if block:
            each = (count, rows, weight.blocks)
            scales = lazy("scales", lambda: _each(weight.scales(), (weight.rows, weight.blocks)), FLOAT, each)
            bits += kind.scale_bits / block
        self.layers.append(Layer(
            plan.layer, kind.name, block, round(bits, 4), (weight.rows, weight.columns), str(data.name),
            "" if scales is None else str(scales.name), (0, weight.rows), block or -1, plan.reason,
        ))  # fmt: skip
        return data, scales

    def _op(
        self, op: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> list[ir.Value]:
        unique = f"{self.plan.layer}.{op}.{next(self._count)}"
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
        node = ir.Node(domain, op, inputs, attrs, num_outputs=outputs, name=f"node:{unique}")
        for index, out in enumerate(node.outputs):
            out.name, out.type = f"{unique}.{index}", ir.TensorType(INT64 if op in ("Shape", "Concat") else FLOAT)
        self.graph.insert_before(self.node, node)
        return list(node.outputs)

    def _one(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self._op(op, *inputs, **attributes)[0]

    def _number(self, content: float | list[int], dtype: type = np.float32) -> ir.Value:
        name = f"{self.plan.layer}.number.{next(self._count)}"
        return add_constant(self.graph, name, np.array(content, dtype))


def _each(scales: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scales [1], [N] or [N, blocks] as [N, blocks]."""
    return np.ascontiguousarray(np.broadcast_to(scales.reshape(len(scales), -1), shape))


def _in_order(value: ir.Value | None, experts: int, order: np.ndarray) -> ir.Value:
    """A weight [E N, K] with each expert's rows in ``order``, read by rows."""
    assert value is not None and value.const_value is not None
    source, count = weight_of(value.const_value), len(order)

    def read(start: int, stop: int) -> np.ndarray:
        first = start // count
        parts = [source[e * count : (e + 1) * count] for e in range(first, -(-stop // count))]
        rows = np.concatenate([np.asarray(part, np.float32)[order] for part in parts])
        return rows[start - first * count : stop - first * count]

    tensor = WeightTensor(RowWeight((experts * count, int(source.shape[1])), read), str(value.name))
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
