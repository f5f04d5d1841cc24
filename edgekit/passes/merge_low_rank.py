"""Low-rank branches of layers that read one input become one: q/k/v and gate/up, with the weights they stand beside.

A layer with a branch is a sum of linear layers, Add(Linear(x, W), Linear(Linear(x, A), B)); one of two ternary planes
is Add(Linear(x, W1), Linear(x, W2)). Layers that share A read one product with it afterwards, and sums whose terms can
be merged term by term become one sum of merged layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from edgekit.passes.layers import producers, read_packed, weight_shape
from edgekit.passes.merge_linears import Key, key_of, merge, mergeable, split_rows
from edgekit.spec.facts import plan_of, set_plan
from edgekit.spec.formats import NEEDED_FORMATS
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Part

Terms = tuple[ir.Node, ...]


class MergeLowRank(ir.passes.InPlacePass):
    """Exact, as merging is: every format works row by row.

    Query, key and value that go straight into attention become its packed input; other sums get one Split, but only
    where what they add is no operator of edgekit's own, for which a Split costs more than it saves.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = _share_products(graph)
        sums = {id(node): terms for node in graph if (terms := _terms(node))}
        for node in list(graph):
            if node.op_type == "GroupQueryAttention":
                modified |= _pack_attention(graph, node, sums)
        groups: dict[tuple[Key, ...], list[ir.Node]] = {}
        for node in graph:
            if id(node) in sums and all(mergeable(term) for term in sums[id(node)]):
                terms = sums[id(node)]
                if plan_of(terms[0]).format not in NEEDED_FORMATS:
                    groups.setdefault(tuple(key_of(term) for term in terms), []).append(node)
        for members in groups.values():
            if len(members) > 1:
                _merge_and_split(graph, members, sums)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


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


def _terms(node: ir.Node) -> Terms:
    """The linear layers of which ``node`` is the sum, first to last, each used nowhere else; nothing when it is no such
    sum.

    All have the same N: a sum that broadcasts one of them is no sum of rows.
    """
    if node.op_type != "Add" or node.domain != "" or node.outputs[0].is_graph_output():
        return ()
    terms: list[ir.Node] = []
    for producer in producers(node.inputs):
        if producer is None or len(producer.outputs[0].uses()) != 1:
            return ()
        parts = (producer,) if producer.domain == EDGEKIT and producer.op_type == "Linear" else _terms(producer)
        if not parts:
            return ()
        terms += parts
    return tuple(terms) if len({weight_shape(term)[0] for term in terms}) == 1 else ()


def _pack_attention(graph: ir.Graph, attention: ir.Node, sums: dict[int, Terms]) -> bool:
    members = [
        p for p in producers(attention.inputs[:3]) if p is not None and id(p) in sums and len(p.outputs[0].uses()) == 1
    ]
    terms = [sums[id(member)] for member in members]
    if len(members) < 3 or not all(mergeable(term) for summands in terms for term in summands):
        return False
    if len({tuple(key_of(term) for term in summands) for summands in terms}) != 1:
        return False
    total = _merged_sum(graph, members, sums)
    read_packed(attention, total)
    _remove(graph, members)
    return True


def _merge_and_split(graph: ir.Graph, members: Sequence[ir.Node], sums: dict[int, Terms]) -> None:
    rows = [weight_shape(sums[id(m)][0])[0] for m in members]
    total = _merged_sum(graph, members, sums)
    split_rows(graph, total, [m.outputs[0] for m in members], rows)
    _remove(graph, members)


def _merged_sum(graph: ir.Graph, members: Sequence[ir.Node], sums: dict[int, Terms]) -> ir.Value:
    """The sum of the members' terms, merged place by place, computed where the first of the members stands."""
    # Adds other than the last of each sum die with it; the merged layers must come before the earliest reader.
    merged = [merge(graph, list(place)) for place in zip(*(sums[id(m)] for m in members), strict=True)]
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
            inputs = [v.producer() for v in node.inputs if v is not None] if node.op_type == "Add" else []
            graph.remove(node, safe=True)
            pending += [p for p in inputs if p is not None]
