"""What has to shrink with its channels: parameters, sizes written into the graph, attributes, shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.channels import Flow, Keep, constant_of
from edgekit.passes.dead_units.constants import whole
from edgekit.passes.dead_units.weights import Ints, taken
from edgekit.passes.layers import add_constant


@dataclass(frozen=True)
class ParameterCut:
    """A constant operand with one number for each channel on its ``axis``."""

    node: ir.Node
    index: int
    axis: int
    ids: Ints

    def apply(self, keep: Keep) -> None:
        mask, value = keep(self.ids), self.node.inputs[self.index]
        tensor = constant_of(value)
        assert value is not None and tensor is not None
        if not mask.all():
            axis = self.axis % len(tensor.shape)
            replace_constant(self.node, self.index, taken(tensor, {axis: mask}, str(value.name)))


@dataclass(frozen=True)
class CountCut:
    """An attribute that counts heads; ``ids`` has one number for each."""

    node: ir.Node
    attribute: str
    ids: Ints

    def apply(self, keep: Keep) -> None:
        self.node.attributes[self.attribute] = ir.AttrInt64(self.attribute, int(keep(self.ids).sum()))


@dataclass(frozen=True)
class SplitCut:
    """The sizes of a Split along the channels."""

    node: ir.Node
    pieces: tuple[Ints, ...]

    def apply(self, keep: Keep) -> None:
        sizes = [int(keep(ids).sum()) for ids in self.pieces]
        if all(size == len(ids) for size, ids in zip(sizes, self.pieces, strict=True)):
            return
        if "split" in self.node.attributes:  # before opset 13
            self.node.attributes["split"] = ir.AttrInt64s("split", sizes)
            return
        self.node.attributes.pop("num_outputs", None)
        self.node.resize_inputs(2)
        replace_constant(self.node, 1, ir.tensor(np.array(sizes, np.int64), name=f"{self.node.outputs[0].name}.sizes"))


@dataclass(frozen=True)
class SliceCut:
    """The bounds of a Slice along the channels: how many are left before each."""

    node: ir.Node
    before: Ints
    within: Ints

    def apply(self, keep: Keep) -> None:
        start = int(keep(self.before).sum())
        bounds = start, start + int(keep(self.within).sum())
        if bounds == (len(self.before), len(self.before) + len(self.within)):
            return
        for index, bound in enumerate(bounds, start=1):
            name = f"{self.node.outputs[0].name}.bound{index}"
            replace_constant(self.node, index, ir.tensor(np.array([bound], np.int64), name=name))


@dataclass(frozen=True)
class TargetCut:
    """The size that a Reshape names for the channels, at ``position`` of its target."""

    node: ir.Node
    position: int
    ids: Ints

    def apply(self, keep: Keep) -> None:
        mask, target = keep(self.ids), self.node.inputs[1]
        assert target is not None
        if mask.all():
            return
        size = int(mask.sum())
        if constant_of(target) is not None:
            _set_number(self.node, 1, self.position, size, str(target.name))
            return
        parts = target.producer()  # a Concat, whose parts may belong to other Reshapes too
        assert parts is not None
        own = ir.Node("", "Concat", list(parts.inputs), list(parts.attributes.values()), num_outputs=1)
        own.outputs[0].name = f"{self.node.outputs[0].name}.target"
        own.outputs[0].type, own.outputs[0].shape = target.type, target.shape
        self.node.graph.insert_before(self.node, own)  # type: ignore[union-attr]
        index, offset = part_at(parts, self.position)
        _set_number(own, index, offset, size, f"{own.outputs[0].name}.{index}")
        self.node.replace_input_with(1, own.outputs[0])


def _set_number(node: ir.Node, index: int, position: int, number: int, name: str) -> None:
    """Puts another number into a constant vector that a node reads."""
    tensor = constant_of(node.inputs[index])
    assert tensor is not None
    numbers = tensor.numpy().copy()
    numbers[position] = number
    replace_constant(node, index, ir.tensor(numbers, name=name))


def part_at(concat: ir.Node, position: int) -> tuple[int, int]:
    """Which input of a Concat of vectors holds element ``position``, and where in it."""
    for index, value in enumerate(concat.inputs):
        length = vector_length(value) or 0
        if position < length:
            return index, position
        position -= length
    raise IndexError(position)


def vector_length(value: ir.Value | None) -> int | None:
    """Elements of a one-dimensional value, where the graph says it."""
    if value is None:
        return None
    tensor = constant_of(value)
    if tensor is not None:
        return int(tensor.size)
    if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int):
        return value.shape[0]
    producer = value.producer()
    if producer is not None and producer.op_type == "Shape" and "end" in producer.attributes:
        length = whole(producer, "end", 0) - whole(producer, "start", 0)
        return length if length > 0 else None
    return None


def replace_constant(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> None:
    """Gives one input of a node another constant; other readers of the old one keep it."""
    old, graph = node.inputs[index], node.graph
    assert graph is not None
    shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_input():
        old.const_value, old.shape = tensor, shape
        return
    name = str(old.name) if old is not None and old.name else tensor.name or "constant"
    taken_names = graph.initializers
    unique = next(n for n in (f"{name}.{i}" for i in range(len(taken_names) + 1)) if n not in taken_names)
    node.replace_input_with(index, add_constant(graph, unique, tensor))


def update_shapes(flow: Flow, keep: Keep) -> None:
    """Writes the new sizes into the shapes of all values whose channels shrank."""
    for value, channels in flow.values.items():
        if value.shape is None or len(channels.ids) == 0:
            continue
        mask = keep(channels.units)
        if not mask.all() and -channels.axis <= len(value.shape):
            dims: list[object] = list(value.shape)
            dims[channels.axis] = int(mask.sum())
            value.shape = ir.Shape(dims)  # type: ignore[arg-type]
