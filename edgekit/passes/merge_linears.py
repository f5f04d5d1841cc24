"""Linear layers that read the same tensor -> one linear layer: q/k/v, gate/up.

One pass over the activations instead of three, one quantization of them, fewer calls. Exact for every format, because
all of them quantize row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.initializers import WeightTensor, weight_of
from edgekit.lowbit.weights import stacked
from edgekit.passes.layers import add_constant, joined, producers, read_packed, weight_shape
from edgekit.spec.facts import plan_of, set_plan
from edgekit.spec.formats import NEEDED_FORMATS
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Part

Key = tuple[int, str, int, int]


class MergeLinears(ir.passes.InPlacePass):
    """Merges ``ai.edgekit::Linear`` nodes with the same input and the same chosen format.

    Query, key and value that go straight into attention become its packed input (no Split). Any other group gets a
    Split, but not layers of edgekit's own operators: those round their activations in less time than a Split copies. A
    weight that something else uses too (a tied head) is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        for node in list(graph):
            if node.op_type == "GroupQueryAttention":
                modified |= _pack_attention(graph, node) or _pack_slices(node)
        groups: dict[Key, list[ir.Node]] = {}
        for node in graph:
            if mergeable(node):
                groups.setdefault(key_of(node), []).append(node)
        for members in groups.values():
            if len(members) > 1 and plan_of(members[0]).format not in NEEDED_FORMATS:
                _split(graph, members)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def mergeable(node: ir.Node) -> bool:
    """Whether a node is a linear layer that may become part of another one."""
    if node.domain != EDGEKIT or node.op_type != "Linear" or plan_of(node).parts:
        return False
    weight = node.inputs[1]
    return weight is not None and len(weight.uses()) == 1 and not node.outputs[0].is_graph_output()


def key_of(node: ir.Node) -> Key:
    """What two layers must have in common to be merged."""
    blocks = node.attributes["activation_block_size"].as_int()
    plan = plan_of(node)
    return id(node.inputs[0]), plan.format, plan.block_size, blocks


def _pack_attention(graph: ir.Graph, attention: ir.Node) -> bool:
    members = [
        p for p in producers(attention.inputs[:3]) if p is not None and mergeable(p) and len(p.outputs[0].uses()) == 1
    ]
    if len(members) < 3 or len({key_of(m) for m in members}) != 1:
        return False
    merged = merge(graph, members)
    read_packed(attention, merged.outputs[0])
    graph.remove(members, safe=True)
    return True


def _pack_slices(attention: ir.Node) -> bool:
    """q, k, v cut by Slice out of one tensor, one after the other -> that tensor."""
    cuts = [n for n in producers(attention.inputs[:3]) if n is not None and n.op_type == "Slice"]
    if (
        len(cuts) < 3
        or any(len(cut.outputs[0].uses()) != 1 for cut in cuts)
        or len({cut.inputs[0] for cut in cuts}) != 1
    ):
        return False
    whole, bounds = cuts[0].inputs[0], [[_number(cut.inputs[i]) for i in (1, 2, 3, 4)] for cut in cuts]
    first = bounds[0][1]
    follow = bounds[0][0] == 0 and first is not None and all(a[1] == b[0] for a, b in pairwise(bounds))
    if not follow or any(b[3] != 1 for b in bounds) or whole is None or whole.shape is None:
        return False
    queries, keys = (attention.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    if whole.shape[-1] != first // queries * (queries + 2 * keys):  # type: ignore[operator]
        return False
    read_packed(attention, whole)
    for cut in cuts:
        cut.graph.remove(cut, safe=True)  # type: ignore[union-attr]
    return True


def _number(value: ir.Value | None) -> int | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return int(tensor.numpy().reshape(-1)[0]) if tensor is not None else None


def _split(graph: ir.Graph, members: Sequence[ir.Node]) -> None:
    merged = merge(graph, members)
    split_rows(graph, merged.outputs[0], [m.outputs[0] for m in members], [weight_shape(m)[0] for m in members])
    graph.remove(members, safe=True)


def split_rows(graph: ir.Graph, merged: ir.Value, replaced: Sequence[ir.Value], sizes: Sequence[int]) -> None:
    """Cuts the last axis of ``merged`` into pieces of ``sizes``, which are read instead of the values ``replaced``."""
    producer = merged.producer()
    assert producer is not None
    rows = add_constant(graph, f"{producer.name}.rows", np.array(sizes, np.int64))
    outputs = [ir.Value(name=f"{old.name}", type=old.type, shape=old.shape) for old in replaced]
    axis, name = ir.AttrInt64("axis", -1), f"{producer.name}.split"
    split = ir.Node("", "Split", [merged, rows], [axis], outputs=outputs, name=name)
    graph.insert_after(producer, split)
    for old, output in zip(replaced, outputs, strict=True):
        ir.convenience.replace_all_uses_with(old, output)


def merge(graph: ir.Graph, members: Sequence[ir.Node]) -> ir.Node:
    """One Linear with the members' rows one below the other, put where the first of them stands."""
    plans = [plan_of(m) for m in members]
    layer = joined([plan.layer for plan in plans])
    ends = np.cumsum([weight_shape(m)[0] for m in members]).tolist()
    inputs = [members[0].inputs[0], _stacked_weight(graph, members, f"{layer}.weight")]
    if any(len(m.inputs) > 2 for m in members):
        inputs.append(_joined_bias(graph, members, f"{layer}.bias"))
    attributes = list(members[0].attributes.values())
    shape = members[0].outputs[0].shape
    output = ir.Value(
        name=f"{layer}.Linear",
        type=members[0].outputs[0].type,
        shape=ir.Shape([*shape[:-1], ends[-1]]) if shape is not None else None,
    )
    merged = ir.Node(EDGEKIT, "Linear", inputs, attributes, outputs=[output], name=f"node:{layer}.Linear")
    merged.metadata_props.update(members[0].metadata_props)
    spans = pairwise([0, *ends])
    parts = tuple(Part(plan.layer, rows, plan.reason) for plan, rows in zip(plans, spans, strict=True))
    set_plan(merged, replace(plans[0], layer=layer, parts=parts))
    first = min(members, key=list(graph).index)
    graph.insert_before(first, merged)
    return merged


def _stacked_weight(graph: ir.Graph, members: Sequence[ir.Node], name: str) -> ir.Value:
    """An initializer holding the members' weights one below the other, read only when it is written."""
    tensors = [m.inputs[1].const_value for m in members]  # type: ignore[union-attr]
    return add_constant(graph, name, WeightTensor(stacked([weight_of(t) for t in tensors if t is not None]), name))


def _joined_bias(graph: ir.Graph, members: Sequence[ir.Node], name: str) -> ir.Value:
    """The members' biases in a row, zeros for those without."""
    biases = [m.inputs[2].const_value if len(m.inputs) > 2 and m.inputs[2] is not None else None for m in members]
    parts = [
        b.numpy() if b is not None else np.zeros(weight_shape(m)[0], np.float32)
        for b, m in zip(biases, members, strict=True)
    ]
    return add_constant(graph, name, np.concatenate(parts))
