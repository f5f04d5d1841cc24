"""One-node ONNX models and the ONNX Runtime sessions that run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgekit.lowbit.formats import PackedTensor
from edgekit.lowbit.library import load_library
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import BLOCK_OPERATORS, EDGEKIT, MICROSOFT

THREADS = 2
"""Work is shared out wherever it can be; results must not depend on it."""

Input = ir.Value | tuple[str, np.ndarray] | None
"""A graph input, a named constant, or an input left out."""


def graph_input(kind: ir.DataType, rank: int, name: str = "X") -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape([f"{name}{i}" for i in range(rank)]))


def one_node(
    domain: str,
    op: str,
    inputs: Sequence[Input],
    functions: Sequence[ir.Function] = (),
    library: Path | None = None,
    **attributes: int,
) -> onnxruntime.InferenceSession:
    """A session for ``op(*inputs) -> Y`` of X's type, with the operator library registered where one is given."""
    values = [_constant(*i) if isinstance(i, tuple) else i for i in inputs]
    node = ir.Node(domain, op, values, [ir.AttrInt64(n, v) for n, v in attributes.items()], num_outputs=1, name="node")
    half = values[0] is not None and values[0].dtype == ir.DataType.FLOAT16
    node.outputs[0].name = "Y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    graph = ir.Graph(
        [v for v in values if v is not None and v.const_value is None], node.outputs, nodes=[node],
        initializers=[v for v in values if v is not None and v.const_value is not None],
        opset_imports={"": 21, MICROSOFT: 1, EDGEKIT: 1}, name="g",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10, functions=functions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def native(
    op: str, x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None, block: int
) -> onnxruntime.InferenceSession:
    """An operator of the operator library, for X like ``x``."""
    library = load_library()
    assert weight.scales is not None
    assert library is not None
    kind = ir.DataType.FLOAT16 if x.dtype == np.float16 else ir.DataType.FLOAT
    inputs: list[Input] = [graph_input(kind, x.ndim), ("W", weight.data), ("scales", weight.scales)]
    inputs += [("bias", bias)] if bias is not None else []
    return one_node(EDGEKIT, op, inputs, library=library.path, **_sizes(weight), activation_block_size=block)


def _sizes(weight: PackedTensor) -> dict[str, Any]:
    bits = {"bits": FORMATS[weight.format].bits} if FORMATS[weight.format].layout == "sparse" else {}
    blocks = {"block_size": weight.block_size} if FORMATS[weight.format].operator in BLOCK_OPERATORS else {}
    return {"K": weight.shape[1], "N": weight.shape[0], **bits, **blocks}


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def of_function(
    function: ir.Function, weight: PackedTensor, bias: np.ndarray | None, activation_block_size: int, rank: int = 2
) -> onnxruntime.InferenceSession:
    """An operator as ``function`` defines it."""
    assert weight.scales is not None
    inputs: list[Input] = [graph_input(ir.DataType.FLOAT, rank), ("W", weight.data), ("scales", weight.scales)]
    if bias is not None:
        inputs.append(("bias", bias))
    return one_node(
        EDGEKIT, function.name, inputs, [function], **_sizes(weight), activation_block_size=activation_block_size
    )


def matmul_nbits(weight: PackedTensor) -> onnxruntime.InferenceSession:
    """``com.microsoft::MatMulNBits`` reading an int8 or int4 tensor as it is stored."""
    return one_node(
        MICROSOFT, "MatMulNBits", [graph_input(ir.DataType.FLOAT, 2), ("B", weight.data), *_scaling(weight)],
        K=weight.shape[1], N=weight.shape[0], bits=FORMATS[weight.format].bits, block_size=weight.block_size,
        accuracy_level=4,
    )  # fmt: skip


def gather_quantized(weight: PackedTensor) -> onnxruntime.InferenceSession:
    """``com.microsoft::GatherBlockQuantized`` reading the same bytes as a matrix uint8 [V, bytes of a row]."""
    table = ("B", weight.data.reshape(weight.shape[0], -1))
    return one_node(
        MICROSOFT, "GatherBlockQuantized", [table, graph_input(ir.DataType.INT64, 1), *_scaling(weight)],
        bits=FORMATS[weight.format].bits, block_size=weight.block_size, gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def _scaling(weight: PackedTensor) -> list[Input]:
    assert weight.scales is not None
    return [("scales", weight.scales)]
