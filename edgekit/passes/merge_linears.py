"""Linear layers that read the same tensor -> one linear layer: q/k/v, gate/up; with low-rank branches beside them too.

One pass over the activations instead of three, one quantization of them, fewer calls. Exact for every format, because
all of them quantize row by row. A layer with a branch is a sum of linear layers, Add(Linear(x, W), Linear(Linear(x, A),
B)); one of two ternary planes is Add(Linear(x, W1), Linear(x, W2)). Layers that share A read one product with it
afterwards, and sums whose terms can be merged term by term become one sum of merged layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.initializers import WeightTensor, weight_of
from edgekit.lowbit.weights import stacked
from edgekit.passes.layers import add_constant, joined, weight_shape
from edgekit.spec.facts import plan_of, set_plan
from edgekit.spec.formats import NEEDED_FORMATS
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Part

Key = tuple[int, str, int, int]
Terms = tuple[ir.Node, ...]
"""The linear layers of which a node is the sum, first to last; a layer by itself is its only term."""


class MergeLinears(ir.passes.InPlacePass):
    """Merges ``ai.edgekit::Linear`` nodes with the same input and the same chosen format, and sums of such nodes.

    Query, key and value that go straight into attention become its packed input (no Split). Any other group gets a
    Split, but not layers of edgekit's own operators: those round their activations in less time than a Split copies. A
    weight that something else uses too (a tied head) is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _share_products(model.graph)
        for terms_of in (_sum, _single):  # a layer merges together with its branches
            modified |= _merge_all(model.graph, terms_of)
        return ir.passes.PassResult(model, modified=modified)


def _merge_all(graph: ir.Graph, terms_of: Callable[[ir.Node], Terms]) -> bool:
    sums, modified = {node: terms for node in graph if (terms := terms_of(node))}, False
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            modified |= _pack_attention(graph, node, sums) or _pack_slices(node)
    groups: dict[tuple[Key, ...], list[ir.Node]] = {}
    for node in graph:
        terms = sums.get(node, ())
        if terms and all(map(_mergeable, terms)) and plan_of(terms[0]).format not in NEEDED_FORMATS:
            groups.setdefault(tuple(map(_key_of, terms)), []).append(node)
    for members in groups.values():
        if len(members) > 1:
            rows = [weight_shape(sums[m][0])[0] for m in members]
            _split_rows(graph, _merged_sum(graph, members, sums), [m.outputs[0] for m in members], rows)
            _remove(graph, members)
            modified = True
    return modified


def _single(node: ir.Node) -> Terms:
    return (node,) if _is_linear(node) else ()


def _is_linear(node: ir.Node) -> bool:
    return node.domain == EDGEKIT and node.op_type == "Linear"


def _mergeable(node: ir.Node) -> bool:
    """Whether a linear layer may become part of another one."""
    weight = node.inputs[1]
    alone = weight is not None and len(weight.uses()) == 1 and not node.outputs[0].is_graph_output()
    return alone and not plan_of(node).parts


def _key_of(node: ir.Node) -> Key:
    """What two layers must have in common to be merged."""
    plan = plan_of(node)
    return id(node.inputs[0]), plan.format, plan.block_size, node.attributes["activation_block_size"].as_int()


def _share_products(graph: ir.Graph) -> bool:
    """Linear layers with the same input and the very same weight are computed once; the names of all are kept."""
    first: dict[tuple[int, int], ir.Node] = {}
    modified = False
    for node in list(graph):
        if node.domain != EDGEKIT or node.op_type != "Linear" or len(node.inputs) > 2:
            continue
        leader = first.setdefault((id(node.inputs[0]), id(node.inputs[1])), node)
        if leader is node or node.outputs[0].is_graph_output():
            continue
        _add_name(leader, node)
        ir.convenience.replace_all_uses_with(node.outputs[0], leader.outputs[0])
        graph.remove(node, safe=True)
        modified = True
    return modified


def _add_name(leader: ir.Node, other: ir.Node) -> None:
    plan = plan_of(leader)
    own = Part(plan.layer, (0, weight_shape(leader)[0]), plan.reason)
    set_plan(leader, replace(plan, parts=(*(plan.parts or [own]), replace(own, name=plan_of(other).layer))))


def _sum(node: ir.Node) -> Terms:
    """The linear layers of which an Add is the sum, each used nowhere else; nothing when it is no such sum.

    All have the same N: a sum that broadcasts one of them is no sum of rows.
    """
    if node.op_type != "Add" or node.domain != "" or node.outputs[0].is_graph_output():
        return ()
    terms: list[ir.Node] = []
    producers = _producers(node.inputs)
    for producer in producers:
        parts = (_single(producer) or _sum(producer)) if len(producer.outputs[0].uses()) == 1 else ()
        if not parts:
            return ()
        terms += parts
    return tuple(terms) if len(producers) == 2 and len({weight_shape(term)[0] for term in terms}) == 1 else ()


def _producers(values: Sequence[ir.Value | None]) -> list[ir.Node]:
    """The nodes that compute the values; those of inputs and constants are left out."""
    return [node for value in values if value is not None and (node := value.producer()) is not None]


def _pack_attention(graph: ir.Graph, attention: ir.Node, sums: dict[ir.Node, Terms]) -> bool:
    members = [p for p in _producers(attention.inputs[:3]) if p in sums and len(p.outputs[0].uses()) == 1]
    terms = [sums[member] for member in members]
    if len(members) < 3 or not all(_mergeable(term) for summands in terms for term in summands):
        return False
    if len({tuple(map(_key_of, summands)) for summands in terms}) != 1:
        return False
    _read_packed(attention, _merged_sum(graph, members, sums))
    _remove(graph, members)
    return True


def _read_packed(attention: ir.Node, qkv: ir.Value) -> None:
    """Makes attention read query, key and value out of one tensor, side by side."""
    for index, value in enumerate((qkv, None, None)):
        attention.replace_input_with(index, value)


def _pack_slices(attention: ir.Node) -> bool:
    """q, k, v cut by Slice out of one tensor, one after the other -> that tensor."""
    cuts = [n for n in _producers(attention.inputs[:3]) if n.op_type == "Slice" and len(n.outputs[0].uses()) == 1]
    if len(cuts) < 3 or len({cut.inputs[0] for cut in cuts}) != 1:
        return False
    whole, bounds = cuts[0].inputs[0], [[_number(cut.inputs[i]) for i in (1, 2, 3, 4)] for cut in cuts]
    first = bounds[0][1]
    follow = bounds[0][0] == 0 and first is not None and all(a[1] == b[0] for a, b in pairwise(bounds))
    if not follow or any(b[3] != 1 for b in bounds) or whole is None or whole.shape is None:
        return False
    queries, keys = (attention.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    if whole.shape[-1] != first // queries * (queries + 2 * keys):  # type: ignore[operator]
        return False
    _read_packed(attention, whole)
    for cut in cuts:
        cut.graph.remove(cut, safe=True)  # type: ignore[union-attr]
    return True


def _number(value: ir.Value | None) -> int | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return int(tensor.numpy().reshape(-1)[0]) if tensor is not None else None


def _split_rows(graph: ir.Graph, merged: ir.Value, replaced: Sequence[ir.Value], sizes: Sequence[int]) -> None:
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


def _merged_sum(graph: ir.Graph, members: Sequence[ir.Node], sums: dict[ir.Node, Terms]) -> ir.Value:
    """The sum of the members' terms, merged place by place, computed where the first of the members stands."""
    # Adds other than the last of each sum die with it; the merged layers must come before the earliest reader.
    merged = [_merge(graph, place) for place in zip(*(sums[m] for m in members), strict=True)]
    first = min(members, key=list(graph).index)
    total = merged[0].outputs[0]
    for term in merged[1:]:
        add = ir.Node("", "Add", [total, term.outputs[0]], num_outputs=1, name=f"{term.name}.added")
        add.outputs[0].name = f"{term.outputs[0].name}.added"
        add.outputs[0].type, add.outputs[0].shape = term.outputs[0].type, term.outputs[0].shape
        graph.insert_before(first, add)
        total = add.outputs[0]
    return total


def _remove(graph: ir.Graph, members: Sequence[ir.Node]) -> None:
    """Takes sums that nothing reads any more out of the graph, down to their layers."""
    for member in members:
        pending = [member]
        while pending:
            node = pending.pop()
            summands = _producers(node.inputs) if node.op_type == "Add" else []
            graph.remove(node, safe=True)
            pending += summands


def _merge(graph: ir.Graph, members: Sequence[ir.Node]) -> ir.Node:
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
