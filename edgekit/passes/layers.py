"""What passes share about layers in a graph: which nodes they are, their sizes and names, and weights for new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.spec.names import EDGEKIT

Rewrite = Callable[[ir.Graph, ir.Node], bool]
"""Changes the graph around one node; whether it did."""


def rewrite_each(model: ir.Model, rewrites: Mapping[tuple[str, str], Rewrite]) -> ir.passes.PassResult:
    """Rewrites by domain and operator, for each node of the main graph."""
    modified = False
    for node in list(model.graph):
        rewrite = rewrites.get((node.domain, node.op_type))
        modified |= rewrite is not None and rewrite(model.graph, node)
    return ir.passes.PassResult(model, modified=modified)


def put_in_place(graph: ir.Graph, new: ir.Node, gone: Sequence[ir.Node]) -> None:
    """Inserts ``new`` for the nodes ``gone``, last to first; its output gets the name and readers of the last one's."""
    old = gone[0].outputs[0]
    name = old.name
    graph.insert_after(gone[0], new)
    ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove(gone, safe=True)
    new.outputs[0].name = name


def layers_of(graph: ir.Graph) -> list[ir.Node]:
    """The abstract linear layers and tables."""
    return [n for n in graph if n.domain == EDGEKIT and n.op_type in ("Linear", "Embedding")]


EXPERT_WEIGHTS = (3, 5)
"""Which inputs of a mixture are weights [E N, K]: gate and up, and down."""


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


def add_constant(graph: ir.Graph, name: str, content: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
    shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
