"""Channels of activations, followed through a graph: which belong together, which never change, who reads them.

A value's channels are numbered; channels that can only go together (the inputs and output of an addition, all numbers
of an attention head) are united into one *class*. What would change the model's meaning pins a class, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.passes.dead_units.constants import Floats
from edgekit.passes.dead_units.weights import Alive, Bools, Ints, Scans
from edgekit.spec.facts import plan_of

Keep = Callable[[Ints], Bools]
"""Which of the given channels stay."""


@dataclass(frozen=True)
class Channels:
    """The channels of one value.

    ``ids`` int64 [C] numbers them, ``constant`` float64 [C] is what each always is, or NaN. They lie on ``axis``
    (negative), or, split into heads, on ``axis`` by head and on ``inner`` within each head of ``size`` channels.
    """

    ids: Ints
    constant: Floats
    axis: int
    rank: int | None
    inner: int | None = None
    size: int = 1
    sums_to_one: bool = False  # over the last axis, as after Softmax

    @property
    def units(self) -> Ints:
        """One of the numbers for each position on ``axis``."""
        return self.ids[:: self.size]

    def from_end(self, axis: int) -> int:
        """An axis counted from the last, where the rank is known."""
        return axis - self.rank if axis >= 0 and self.rank is not None else axis


class Cut(Protocol):
    """Something beside products that has to shrink with its channels."""

    def apply(self, keep: Keep) -> None: ...


@dataclass
class Product:
    """A layer that makes channels ``y`` (rows of its weight) from channels ``x`` (columns)."""

    node: ir.Node
    name: str
    unit: str  # what a row is called
    x: Channels
    y: Channels
    tensor: ir.TensorProtocol
    rows_axis: int
    unfoldable: str  # why a constant input cannot be added to the bias; "" = it can
    rounds_input: bool  # each row of the input is rounded by its largest value
    scans: Scans

    @property
    def alive(self) -> Alive:
        return self.scans.of(self.tensor, self.rows_axis)

    @property
    def bias(self) -> ir.TensorProtocol | None:
        return constant_of(self.node.inputs[2]) if len(self.node.inputs) > 2 else None


@dataclass(frozen=True)
class Attention:
    """Heads of one GroupQueryAttention: query head i reads key-value head i // (queries / keys)."""

    queries: Ints
    keys: Ints


Rule = Callable[["Flow", ir.Node], None]
"""What an operator does to the channels of its inputs."""


@dataclass
class Flow:
    """What following the channels of a graph has found."""

    graph: ir.Graph
    scans: Scans
    recorded: frozenset[str] = frozenset()  # names of values that parity compares
    values: dict[ir.Value, Channels] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    heads: list[Ints] = field(default_factory=list)  # of attention written in standard operators
    cuts: list[Cut] = field(default_factory=list)
    pins: list[tuple[Ints, str]] = field(default_factory=list)
    additions: list[Ints] = field(default_factory=list)
    unions: list[tuple[Ints, Ints]] = field(default_factory=list)
    count: int = 0

    def fresh(self, count: int, axis: int, rank: int | None, constant: Floats | None = None) -> Channels:
        """Channels not seen before."""
        ids = np.arange(self.count, self.count + count)
        self.count += count
        return Channels(ids, varying(count) if constant is None else constant, axis, rank)

    def give(self, value: ir.Value, channels: Channels, cache: bool = False) -> None:
        """Says what the channels of a value are; of a key-value ``cache`` the model's own outputs may shrink."""
        self.values[value] = channels
        if value.is_graph_output() and not cache:
            self.pin(channels.ids, f"an output of the model ({value.name})")
        if value.name in self.recorded:
            self.pin(channels.ids, f"its values are recorded for parity ({value.name})")
        if any(use.node.graph is not self.graph for use in value.uses()):
            self.pin(channels.ids, "read inside a branch or loop")

    def pin(self, ids: Ints, reason: str) -> None:
        """These channels stay."""
        self.pins.append((ids, reason))

    def unite(self, a: Ints, b: Ints) -> None:
        """Channels that only go together, pair by pair."""
        if a is not b:
            self.unions.append((a, b))

    def bind_heads(self, ids: Ints, size: int) -> None:
        """The channels of a head of ``size`` only go together."""
        if size > 1:
            self.unite(np.repeat(ids[::size], size), ids)

    def opaque(self, node: ir.Node, why: str = "") -> None:
        """A node through which channels are not followed."""
        for value in node.inputs:
            if value is not None and value in self.values:
                self.pin(
                    self.values[value].ids, why or f"read by {called(node)}, through which channels are not followed"
                )

    def known(self, value: ir.Value, count: int, axis: int, rank: int | None) -> Channels:
        """The ``count`` channels of a value on ``axis``; pinned ones where they were not followed."""
        followed = self.values.get(value)
        if followed is not None and (followed.axis, followed.inner, len(followed.ids)) == (axis, None, count):
            return followed
        if followed is not None:
            self.pin(followed.ids, "read in another layout")
        channels = self.fresh(count, axis, rank)
        producer = value.producer()
        origin = called(producer) if producer is not None else f"the model's input {value.name}"
        self.pin(channels.ids, f"comes from {origin}, through which channels are not followed")
        if followed is None:
            self.values[value] = channels
        return channels

    def roots(self) -> Ints:
        """int64 [count]: the class of each channel, named by its smallest number."""
        parent = np.arange(self.count)
        a = np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in self.unions)])
        b = np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in self.unions)])
        while not np.array_equal(parent[a], parent[b]):
            low, high = np.minimum(parent[a], parent[b]), np.maximum(parent[a], parent[b])
            np.minimum.at(parent, high, low)
            while not np.array_equal(parent, parent[parent]):
                parent = parent[parent]
        return parent


def of_first(rule: Callable[[Flow, ir.Node, Channels], None]) -> Rule:
    """A rule about a node's first input, for where its channels were followed."""

    def apply(flow: Flow, node: ir.Node) -> None:
        value = node.inputs[0] if node.inputs else None
        if value is not None and value in flow.values:
            rule(flow, node, flow.values[value])

    return apply


def varying(count: int) -> Floats:
    """Channels of which nothing is known."""
    return np.full(count, np.nan)


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """What a value always is, where the graph says it."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def integers(value: ir.Value | None) -> list[int] | None:
    """A small constant as Python numbers."""
    tensor = constant_of(value)
    return None if tensor is None else [int(n) for n in np.asarray(tensor.numpy()).reshape(-1)]


def called(node: ir.Node) -> str:
    """What a person calls a node: its layer, else its operator and output."""
    weight = str(node.inputs[1].name) if len(node.inputs) > 1 and node.inputs[1] is not None else ""
    layer = plan_of(node).layer or weight.removesuffix(".weight")
    return layer if layer != weight else f"{node.op_type} ({node.outputs[0].name if node.outputs else node.name})"


def size_at(shape: Sequence[object], axis: int) -> object:
    """The dimension at a negative axis; 1 where the value has none there (it broadcasts)."""
    return shape[axis] if -axis <= len(shape) else 1


def array_of(value: ir.Value | None) -> NDArray[np.float64] | None:
    """A floating constant as float64."""
    tensor = constant_of(value)
    return None if tensor is None or not tensor.dtype.is_floating_point() else tensor.numpy().astype(np.float64)
