"""What passes share about layers in a graph: which nodes they are, their sizes and names, and weights for new ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgekit.spec.names import EDGEKIT


def layers_of(graph: ir.Graph) -> list[ir.Node]:
    """The abstract linear layers and tables."""
    return [n for n in graph if n.domain == EDGEKIT and n.op_type in ("Linear", "Embedding")]


def experts_of(graph: ir.Graph) -> list[ir.Node]:
    """The abstract mixtures of experts."""
    return [n for n in graph if n.domain == EDGEKIT and n.op_type == "Experts"]


def weight_shape(layer: ir.Node, place: int = 1) -> tuple[int, int]:
    """N and K of the weight that is a layer's input ``place``."""
    shape = layer.inputs[place].shape  # type: ignore[union-attr]
    return int(shape[0]), int(shape[1])  # type: ignore[index, arg-type]


def joined(names: Sequence[str]) -> str:
    """a.b.gate_proj, a.b.up_proj -> a.b.gate_proj+up_proj."""
    stem = names[0].rpartition(".")[0]
    return ".".join(filter(None, [stem, "+".join(n.rpartition(".")[2] for n in names)]))


def producers(values: Sequence[ir.Value | None]) -> list[ir.Node | None]:
    """The node that computes each value; None for inputs and constants."""
    return [value.producer() if value is not None else None for value in values]


def read_packed(attention: ir.Node, qkv: ir.Value | None) -> None:
    """Makes attention read query, key and value out of one tensor, side by side."""
    for index, value in enumerate((qkv, None, None)):
        attention.replace_input_with(index, value)


def add_constant(graph: ir.Graph, name: str, content: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
    shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
