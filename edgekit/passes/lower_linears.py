"""``ai.edgekit::Linear`` and ``Embedding`` -> the operators of each layer's format, reading packed weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats import CODECS, PackedTensor, block_count, detect_ternary, pack_t2, sparse_facts
from edgekit.lowbit.formats.integers import quantize_int4
from edgekit.lowbit.functions import FUNCTIONS
from edgekit.lowbit.initializers import weight_of
from edgekit.lowbit.reference import SMALLEST
from edgekit.passes.layers import add_constant, layers_of
from edgekit.spec.facts import facts_of, plan_of
from edgekit.spec.formats import FORMATS, SEARCHED
from edgekit.spec.names import BLOCK_OPERATORS, EDGEKIT, FUSED_MATMUL, GATHER_QUANTIZED, MICROSOFT, STORAGE
from edgekit.spec.records import Layer, Part, Plan, Surviving

Calibrate = Callable[[Collection[str], int], Mapping[str, np.ndarray]]
"""Of named layers, and the most tokens that a decoder reads at once, the mean squares float32 [K] of their inputs, as far as
they are known."""
FLOAT, UINT8, INT64 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT64

NOT_CALIBRATED = "no real input reached it to search its scales with"
"""Why an int4 layer has the scales of its largest weights in spite of its recipe's ``calibrate``."""


class LowerLinears(ir.passes.InPlacePass):
    """Writes the nodes that compute each layer in its chosen format, and what became of it.

    Weights are packed when the file is written, one at a time. The model's facts then list the layers.
    """

    def __init__(self, calibrate: Calibrate | None = None) -> None:
        """``calibrate`` is asked once for the inputs of the layers that become int4, whose scales are then searched; None:
        scales are those of the largest weights."""
        self.calibrate = calibrate

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        facts, nodes, moments = facts_of(model), layers_of(model.graph), None
        int4 = {_layer_read_by(n) for n in nodes if n.op_type == "Linear" and plan_of(n).format in SEARCHED}
        if self.calibrate is not None and int4:
            moments = self.calibrate(int4, facts.decoder.max_length if facts.decoder is not None else 0)
        lowering = _Lowering(model.graph, moments, facts.surviving)
        for node in nodes:
            lowering.lower(node)
        for op, make in FUNCTIONS.items():
            if any(n.op_type == op for n in model.graph):
                function = make()
                model.functions[function.identifier()] = function
        if nodes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        facts.layers += lowering.layers
        return ir.passes.PassResult(model, modified=bool(nodes))


def _layer_read_by(node: ir.Node) -> str:
    """The name of a layer whose input a node reads: where several were merged, of the first."""
    plan = plan_of(node)
    return plan.parts[0].name if plan.parts else plan.layer


class StoredWeight:
    """A weight to be packed when it is read; data and scales come from one packing."""

    def __init__(self, plan: Plan, value: ir.Value | None, moments: np.ndarray | None = None) -> None:
        assert value is not None and value.const_value is not None and value.shape is not None
        self.layer, self.kind, self.block = plan.layer, FORMATS[plan.format], plan.block_size
        self.source, self.name = value.const_value, value.name or self.layer
        self.rows, self.columns = (int(d) for d in value.shape)  # type: ignore[arg-type]
        # A weight that a pass put together of several may read what no layer of the model does.
        self.moments = moments if moments is not None and len(moments) == self.columns else None
        self.ternary = self._ternary_scales() if self.kind.scales == "ternary" else None
        self.dtype, self.shape = ir.DataType[self.kind.dtype.upper()], self._data_shape()
        self._packed: PackedTensor | None = None

    def _ternary_scales(self) -> np.ndarray:
        scales = detect_ternary(weight_of(self.source))
        if scales is None:
            raise UnsupportedError(
                f"{self.layer}: weights are not ternary ({{-s, 0, s}} per tensor, row or 128 columns), t2 stores "
                f"nothing else; put a rule {{match: '{self.layer}', format: int8}} before the t2 rule, or give that "
                "rule only: ternary"
            )
        return scales

    def _data_shape(self) -> tuple[int, ...]:
        if self.kind.layout == "floats":
            return self.rows, self.columns
        if self.kind.layout == "sparse":  # bytes that depend on what is in it
            return (sparse_facts(weight_of(self.source), self.kind.bits)[1],)
        return self.rows, self.blocks, self.block * self.kind.bits // 8

    @property
    def blocks(self) -> int:
        return block_count(self.columns, self.block)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Empty where there are none."""
        if self.ternary is not None:
            return self.ternary.shape
        if self.kind.scales == "none":
            return ()
        return (self.rows,) if self.kind.scales == "row" else (self.rows, self.blocks)

    @property
    def bits_per_weight(self) -> float:
        scales = self.kind.scale_bits * math.prod(self.scales_shape) if self.scales_shape else 0
        return round((self.dtype.bitwidth * math.prod(self.shape) + scales) / (self.rows * self.columns), 4)

    def _pack(self) -> PackedTensor:
        weight = weight_of(self.source)
        try:
            if self.ternary is not None:
                return pack_t2(weight, self.ternary)
            if self.moments is not None:
                return quantize_int4(weight, self.block, self.moments, self.kind.name)
            return CODECS[self.kind.name].quantize(weight, self.block)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.layer}: {error}") from None

    def data(self) -> np.ndarray:
        self._packed = self._pack()
        data = self._packed.data
        if self._packed.scales is None:
            self._packed = None
        return np.asarray(data)

    def scales(self) -> np.ndarray:
        if self.ternary is not None:
            return self.ternary
        packed = self._packed or self._pack()
        self._packed = None  # the last reader; a further one packs again
        assert packed.scales is not None
        return np.asarray(packed.scales)


class _Lowering:
    def __init__(
        self, graph: ir.Graph, moments: Mapping[str, np.ndarray] | None, surviving: Mapping[str, Surviving]
    ) -> None:
        self.graph, self.moments, self.surviving = graph, moments, surviving
        self.layers: list[Layer] = []
        self._weights: dict[int, tuple[StoredWeight, ir.Value, ir.Value | None]] = {}
        self._rounded: dict[tuple[int, int], ir.Value] = {}
        self._count = itertools.count()

    def lower(self, node: ir.Node) -> None:
        weight, data, scales = self._weight(node)
        if node.op_type == "Embedding":
            write = {
                "rows": self._table,
                "quantized": self._quantized_table,
                "scaled": self._scaled_table,
            }[weight.kind.lookup]
        else:
            write = self._float if weight.kind.operator == FUSED_MATMUL else self._native
        result = write(node, weight, data, scales)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        name = node.outputs[0].name
        ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        result.name = name
        self._record(node, weight, data, scales)

    def _weight(self, node: ir.Node) -> tuple[StoredWeight, ir.Value, ir.Value | None]:
        key = id(node.inputs[1])
        if key not in self._weights:
            weight = StoredWeight(plan_of(node), node.inputs[1], self._moments_of(node))
            data = self._lazy(f"{weight.name}.{weight.kind.name}", weight.data, weight.dtype, weight.shape, weight)
            scales = None
            if weight.scales_shape:
                kind = ir.DataType[weight.kind.scale_dtype.upper()]
                scales = self._lazy(f"{weight.name}.scales", weight.scales, kind, weight.scales_shape)
            self._weights[key] = weight, data, scales
        return self._weights[key]

    def _moments_of(self, node: ir.Node) -> np.ndarray | None:
        """Those of its input, where they are known: layers that were merged read one, dead units are not in it any more."""
        if plan_of(node).format not in SEARCHED or node.op_type != "Linear":
            return None
        name = _layer_read_by(node)
        moments, left = (self.moments or {}).get(name), self.surviving.get(name)
        return moments if moments is None or left is None else moments[np.array(left.columns)]

    def _lazy(
        self,
        name: str,
        read: Callable[[], np.ndarray],
        kind: ir.DataType,
        shape: tuple[int, ...],
        weight: StoredWeight | None = None,
    ) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(read().reshape(shape), name=name), dtype=kind, shape=ir.Shape(shape), name=name
        )
        if weight is not None:
            tensor.meta[STORAGE] = id(weight)
        return add_constant(self.graph, name, tensor)

    def _node(
        self, before: ir.Node, op: str, inputs: list[ir.Value | None], domain: str = "", **attributes: int
    ) -> ir.Value:
        attrs = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        unique = f"{plan_of(before).layer}.{op}.{next(self._count)}"
        node = ir.Node(domain, op, inputs, attrs, num_outputs=1, name=f"node:{unique}")
        node.outputs[0].name = unique
        node.outputs[0].type = ir.TensorType(FLOAT)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _small(self, array: np.ndarray, name: str) -> ir.Value:
        return self.graph.initializers.get(name) or add_constant(self.graph, name, array)

    def _activations(self, node: ir.Node) -> ir.Value | None:
        """X as the model itself rounds it (BitNet): int8 per token, in standard operators, once for all readers."""
        x, block = node.inputs[0], _activation_block(node)
        if block < 0 or x is None:
            return x
        if block > 0:
            raise UnsupportedError(f"{plan_of(node).layer}: activations in blocks of {block} need format t2")
        key = (id(x), block)
        if key not in self._rounded:
            largest = self._node(
                node,
                "ReduceMax",
                [self._node(node, "Abs", [x]), self._small(np.array([-1]), "edgekit.last_axis")],
                keepdims=1,
            )
            floor = self._node(node, "Max", [largest, self._small(np.array(SMALLEST), "edgekit.smallest")])
            full = self._small(np.array(127, np.float32), "edgekit.127")
            scaled = self._node(node, "Mul", [x, self._node(node, "Div", [full, floor])])
            step = self._node(node, "Div", [floor, full])
            self._rounded[key] = self._node(node, "Mul", [self._node(node, "Round", [scaled]), step])
            self._rounded[key].shape = x.shape
        return self._rounded[key]

    def _biased(self, node: ir.Node, product: ir.Value) -> ir.Value:
        return self._node(node, "Add", [product, node.inputs[2]]) if len(node.inputs) > 2 else product

    def _widened(self, node: ir.Node, weight: StoredWeight, stored: ir.Value) -> ir.Value:
        return self._node(node, "Cast", [stored], to=FLOAT.value) if weight.dtype != FLOAT else stored

    def _float(self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        x, w = self._activations(node), self._widened(node, weight, data)
        return self._biased(node, self._node(node, FUSED_MATMUL, [x, w], MICROSOFT, transB=1))

    def _table(self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        rows = self._node(node, "Gather", [data, node.inputs[0]])
        rows.type = data.type
        return self._widened(node, weight, rows)

    def _quantized_table(
        self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None
    ) -> ir.Value:
        bits = weight.kind.bits
        # The head's bytes seen as a matrix: a second name for the same storage, not a Reshape that would copy it.
        table = self._lazy(_table_name(weight), weight.data, UINT8, (weight.rows, weight.columns * bits // 8), weight)
        inputs = [table, node.inputs[0], scales]
        return self._node(
            node,
            GATHER_QUANTIZED,
            inputs,
            MICROSOFT,
            bits=bits,
            block_size=weight.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _scaled_table(self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        """Rows of codes and their scales, multiplied: the lookup operator knows no scale for a row of any length."""
        stored = weight.blocks * weight.block
        table = self._lazy(_table_name(weight), weight.data, UINT8, (weight.rows, stored), weight)
        codes = self._node(node, "Gather", [table, node.inputs[0]])
        codes.type = ir.TensorType(UINT8)
        if stored != weight.columns:
            bounds = [self._small(np.array([n]), f"edgekit.columns.{n}") for n in (0, weight.columns, -1)]
            codes = self._node(node, "Slice", [codes, *bounds])
            codes.type = ir.TensorType(UINT8)
        zero = self._small(np.array(128, np.float32), "edgekit.128")
        signed = self._node(node, "Sub", [self._node(node, "Cast", [codes], to=FLOAT.value), zero])
        steps = self._node(node, "Gather", [scales, node.inputs[0]])
        last = self._small(np.array([-1]), "edgekit.last_axis")
        return self._node(node, "Mul", [signed, self._node(node, "Unsqueeze", [steps, last])])

    def _native(self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        inputs = [node.inputs[0], data, scales, *node.inputs[2:3]]
        block = weight.kind.activation_block_size(weight.block, _activation_block(node))
        more = {"bits": weight.kind.bits} if weight.kind.layout == "sparse" else {}
        if weight.kind.operator in BLOCK_OPERATORS:
            more = {"block_size": weight.block}
        return self._node(
            node,
            weight.kind.operator,
            inputs,
            EDGEKIT,
            K=weight.columns,
            N=weight.rows,
            **more,
            activation_block_size=block,
        )

    def _record(self, node: ir.Node, weight: StoredWeight, data: ir.Value, scales: ir.Value | None) -> None:
        plan, table, block = plan_of(node), node.op_type == "Embedding", -1
        plain = self.moments is not None and weight.kind.name in SEARCHED and not table and weight.moments is None
        if not table:
            block = weight.kind.activation_block_size(weight.block, _activation_block(node))
        for part in plan.parts or [Part(plan.layer, (0, weight.rows), plan.reason)]:
            first, last = part.rows
            self.layers.append(
                Layer(
                    name=part.name,
                    format=weight.kind.name,
                    block_size=weight.block,
                    bits_per_weight=weight.bits_per_weight,
                    shape=(last - first, weight.columns),
                    tensor=_table_name(weight) if table and weight.kind.layout == "blocks" else str(data.name),
                    scales=str(scales.name) if scales is not None else "",
                    rows=part.rows,
                    activation_block_size=block,
                    reason=part.reason or (NOT_CALIBRATED if plain else ""),
                )
            )


def _table_name(weight: StoredWeight) -> str:
    return f"{weight.name}.rows"


def _activation_block(node: ir.Node) -> int:
    return node.attributes["activation_block_size"].as_int() if "activation_block_size" in node.attributes else -1
