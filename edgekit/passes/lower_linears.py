"""``ai.edgekit::Linear`` and ``Embedding`` -> the operators of each layer's format, reading packed weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats import (
    FORMATS,
    SPARSE_BITS,
    PackedTensor,
    block_count,
    detect_ternary,
    pack_t2,
    sparse_facts,
)
from edgekit.lowbit.functions import (
    int8_function,
    sparse_function,
    ternary_function,
)
from edgekit.lowbit.initializers import weight_of
from edgekit.lowbit.reference import SMALLEST
from edgekit.spec.facts import facts_of, plan_of
from edgekit.spec.names import (
    EDGEKIT,
    GATHER_QUANTIZED,
    INT8_MATMUL,
    MATMUL_NBITS,
    MICROSOFT,
    SPARSE_MATMUL,
    STORAGE,
    TERNARY_MATMUL,
)
from edgekit.spec.records import Layer, Part

FLOAT, UINT8, INT64 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT64
ROW_SCALES = ("int8-channel", *SPARSE_BITS)
"""Formats with one scale a row."""
OPERATORS = {"t2": TERNARY_MATMUL, "int8-channel": INT8_MATMUL, **dict.fromkeys(SPARSE_BITS, SPARSE_MATMUL)}


class LowerLinears(ir.passes.InPlacePass):
    """Writes the nodes that compute each layer in its chosen format, and what became of it.

    Weights are packed when the file is written, one at a time. The model's facts then list the layers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lowering = _Lowering(model.graph)
        nodes = [n for n in model.graph if n.domain == EDGEKIT and n.op_type in ("Linear", "Embedding")]
        for node in nodes:
            lowering.lower(node)
        for op, make in (
            (TERNARY_MATMUL, ternary_function),
            (INT8_MATMUL, int8_function),
            (SPARSE_MATMUL, sparse_function),
        ):
            if any(n.op_type == op for n in model.graph):
                function = make()
                model.functions[function.identifier()] = function
        if nodes:
            model.opset_imports.setdefault(MICROSOFT, 1)
        facts_of(model).layers += lowering.layers
        return ir.passes.PassResult(model, modified=bool(nodes))


class _Weight:
    """A weight to be packed when it is read; data and scales come from one packing."""

    def __init__(self, node: ir.Node) -> None:
        plan, value = plan_of(node), node.inputs[1]
        assert value is not None and value.const_value is not None and value.shape is not None
        self.layer, self.format, self.block = plan.layer, plan.format, plan.block_size
        self.source, self.name = value.const_value, value.name or self.layer
        self.rows, self.columns = (int(d) for d in value.shape)  # type: ignore[arg-type]
        self.ternary = self._scales() if self.format == "t2" else None
        self.bytes = 0  # of a sparse weight, which depend on what is in it
        if self.format in SPARSE_BITS:
            _, self.bytes = sparse_facts(weight_of(self.source), SPARSE_BITS[self.format])
        self._packed: PackedTensor | None = None

    def _scales(self) -> np.ndarray:
        found = detect_ternary(weight_of(self.source))
        if found is None:
            raise UnsupportedError(
                f"{self.layer}: weights are not ternary ({{-s, 0, s}} per tensor, row or 128 columns), t2 stores nothing else; "
                f"put a rule {{match: '{self.layer}', format: int8}} before the t2 rule, or give that rule only: ternary"
            )
        return found

    def _pack(self) -> PackedTensor:
        weight = weight_of(self.source)
        try:
            if self.ternary is not None:
                return pack_t2(weight, self.ternary)
            return FORMATS[self.format].quantize(weight, self.block)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.layer}: {error}") from None

    def data(self) -> np.ndarray:
        self._packed = self._pack()
        found = self._packed.data
        if self._packed.scales is None:
            self._packed = None
        return np.asarray(found)

    def scales(self) -> np.ndarray:
        if self.ternary is not None:
            return self.ternary
        packed = self._packed or self._pack()
        self._packed = None  # the last reader; a further one packs again
        assert packed.scales is not None
        return np.asarray(packed.scales)

    @property
    def blocks(self) -> int:
        return block_count(self.columns, self.block)


class _Lowering:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.layers: list[Layer] = []
        self._weights: dict[int, tuple[_Weight, ir.Value, ir.Value | None]] = {}
        self._rounded: dict[tuple[int, int], ir.Value] = {}
        self._count = itertools.count()

    def lower(self, node: ir.Node) -> None:
        weight, data, scales = self._weight(node)
        write: Callable[..., ir.Value]
        if node.op_type == "Embedding":
            by_format: dict[str, Callable[..., ir.Value]] = {
                "fp32": self._table,
                "fp16": self._table,
                "int8-channel": self._channel_table,
            }
            write = by_format.get(weight.format, self._quantized_table)
        else:
            by_format = {
                "fp32": self._float,
                "fp16": self._float,
                "t2": self._native,
                "int8-channel": self._native,
                "sparse-int4": self._native,
                "sparse-int8": self._native,
            }
            write = by_format.get(weight.format, self._nbits)
        result = write(node, weight, data, scales)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        name = node.outputs[0].name
        ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        result.name = name
        self._record(node, weight, data, scales)

    def _weight(self, node: ir.Node) -> tuple[_Weight, ir.Value, ir.Value | None]:
        key = id(node.inputs[1])
        if key not in self._weights:
            weight = _Weight(node)
            shape, kind = _data_shape(weight)
            data = self._lazy(f"{weight.name}.{weight.format}", weight.data, kind, shape, weight)
            scales = None
            if weight.ternary is not None:
                scales = self._lazy(f"{weight.name}.scales", weight.scales, FLOAT, weight.ternary.shape)
            elif weight.format in ROW_SCALES:
                scales = self._lazy(f"{weight.name}.scales", weight.scales, FLOAT, (weight.rows,))
            elif weight.format in ("int8", "int4"):
                scales = self._lazy(f"{weight.name}.scales", weight.scales, FLOAT, (weight.rows, weight.blocks))
            self._weights[key] = weight, data, scales
        return self._weights[key]

    def _lazy(
        self,
        name: str,
        read: Callable[[], np.ndarray],
        kind: ir.DataType,
        shape: tuple[int, ...],
        weight: _Weight | None = None,
    ) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: ir.tensor(read().reshape(shape), name=name), dtype=kind, shape=ir.Shape(shape), name=name
        )
        if weight is not None:
            tensor.meta[STORAGE] = id(weight)
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

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
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            self.graph.register_initializer(
                ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            )
        return self.graph.initializers[name]

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

    def _widened(self, node: ir.Node, weight: _Weight, stored: ir.Value) -> ir.Value:
        return self._node(node, "Cast", [stored], to=FLOAT.value) if weight.format == "fp16" else stored

    def _float(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        x, w = self._activations(node), self._widened(node, weight, data)
        return self._biased(node, self._node(node, "FusedMatMul", [x, w], MICROSOFT, transB=1))

    def _table(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        found = self._node(node, "Gather", [data, node.inputs[0]])
        found.type = data.type
        return self._widened(node, weight, found)

    def _nbits(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        sizes = {"K": weight.columns, "N": weight.rows, "bits": FORMATS[weight.format].bits, "block_size": weight.block}
        inputs = [self._activations(node), data, scales]
        return self._biased(node, self._node(node, MATMUL_NBITS, inputs, MICROSOFT, **sizes, accuracy_level=4))

    def _quantized_table(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        bits = FORMATS[weight.format].bits
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

    def _channel_table(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
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

    def _native(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> ir.Value:
        inputs = [node.inputs[0], data, scales, *node.inputs[2:3]]
        block = _activation_block(node)
        more = {"bits": SPARSE_BITS[weight.format]} if weight.format in SPARSE_BITS else {}
        return self._node(
            node,
            OPERATORS[weight.format],
            inputs,
            EDGEKIT,
            K=weight.columns,
            N=weight.rows,
            **more,
            activation_block_size=128 if block < 0 else block,
        )

    def _record(self, node: ir.Node, weight: _Weight, data: ir.Value, scales: ir.Value | None) -> None:
        plan, block = plan_of(node), _activation_block(node)
        table = node.op_type == "Embedding" and weight.format in ("int8", "int8-channel", "int4")
        native = 128 if block < 0 else block
        rounded = {**dict.fromkeys(OPERATORS, native), "int8": weight.block, "int4": weight.block}.get(
            weight.format, block
        )
        for part in plan.parts or [Part(plan.layer, (0, weight.rows), plan.reason)]:
            first, last = part.rows
            self.layers.append(
                Layer(
                    name=part.name,
                    format=weight.format,
                    block_size=weight.block,
                    bits_per_weight=_bits_per_weight(weight),
                    shape=(last - first, weight.columns),
                    tensor=_table_name(weight) if table else str(data.name),
                    scales=str(scales.name) if scales is not None else "",
                    rows=part.rows,
                    activation_block_size=rounded if node.op_type == "Linear" else -1,
                    reason=part.reason,
                )
            )


def _table_name(weight: _Weight) -> str:
    return f"{weight.name}.rows"


def _activation_block(node: ir.Node) -> int:
    return node.attributes["activation_block_size"].as_int() if "activation_block_size" in node.attributes else -1


def _data_shape(weight: _Weight) -> tuple[tuple[int, ...], ir.DataType]:
    if weight.format in ("fp32", "fp16"):
        return (weight.rows, weight.columns), FLOAT if weight.format == "fp32" else ir.DataType.FLOAT16
    if weight.format in SPARSE_BITS:
        return (weight.bytes,), UINT8
    bits = FORMATS[weight.format].bits
    return (weight.rows, weight.blocks, weight.block * bits // 8), UINT8


def _bits_per_weight(weight: _Weight) -> float:
    bits = FORMATS[weight.format].bits
    if weight.format in ("fp32", "fp16"):
        return float(bits)
    scales = weight.rows * (1 if weight.format in ROW_SCALES else weight.blocks)
    if weight.ternary is not None:
        scales = weight.ternary.size
    codes = 8 * weight.bytes or weight.rows * weight.blocks * weight.block * bits
    stored = codes + 32 * scales
    return round(stored / (weight.rows * weight.columns), 4)
