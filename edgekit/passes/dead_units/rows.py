"""Rows of zeros in embedding tables: one of them stands for all, or they stay and are listed. Exact, token ids stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.channels import called, constant_of
from edgekit.passes.dead_units.weights import Bools, Scans, sliced
from edgekit.passes.layers import add_constant
from edgekit.spec.facts import facts_of
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import DeadUnits, Surviving

UNIT = "embedding row"


class RemoveDeadRows(ir.passes.InPlacePass):
    """With ``drop``, tables lose all zero rows but one, and a table int32 [V] says where each id's row is now.

    Ids are looked up there before the table is; an output head that shares the table spreads its results by it. What
    was removed, or why not, and what is left go to the model's facts.
    """

    def __init__(self, drop: bool) -> None:
        self.drop = drop

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rows, scans = list[DeadUnits](), Scans()
        tables = {n.inputs[1]: n for n in model.graph if n.domain == EDGEKIT and n.op_type == "Embedding"}
        for value, node in tables.items():
            tensor = constant_of(value)
            if value is None or tensor is None:
                continue
            alive = scans.of(tensor, 0).rows
            count = int((~alive).sum())
            if not count:
                continue
            why = _obstacle(value, alive) if self.drop else "the recipe says unused_embedding_rows: keep"
            if not why:
                _drop(model, value, alive)
            reason = why or "all zeros; one row of zeros stands for them"
            rows.append(DeadUnits(called(node), UNIT, count - (not why), len(alive), not why, reason))
        facts_of(model).dead_units += rows
        return ir.passes.PassResult(model, modified=any(row.removed for row in rows))


def _obstacle(value: ir.Value, alive: Bools) -> str:
    """Why a table keeps its rows of zeros, or ""."""
    for use in value.uses():
        if use.node.domain != EDGEKIT or use.node.op_type not in ("Linear", "Embedding"):
            return f"{called(use.node)} reads the table too"
        if use.node.op_type == "Linear" and len(use.node.inputs) > 2:
            return f"{called(use.node)} shares the table and adds a bias to each row"
    width = int(value.shape[1]) if value.shape is not None else 0  # type: ignore[arg-type]
    if (int((~alive).sum()) - 1) * width / 2 <= 4 * len(alive):  # at the fewest bits that a row may get
        return "a table that says where each row is would be larger than what they take"
    return ""


def _drop(model: ir.Model, value: ir.Value, alive: Bools) -> None:
    keep = alive.copy()
    zero = int(np.argmin(alive))
    keep[zero] = True
    kept_rows = np.flatnonzero(keep)
    places = np.where(alive, np.cumsum(keep) - 1, np.searchsorted(kept_rows, zero)).astype(np.int32)
    lookup = add_constant(model.graph, f"{value.name}.places", places)
    tensor, uses = constant_of(value), list(value.uses())
    assert tensor is not None
    width = int(tensor.shape[1])  # type: ignore[arg-type]
    smaller = sliced(tensor, keep, np.ones(width, np.bool_), str(value.name))
    value.const_value, value.shape = smaller, smaller.shape
    surviving = facts_of(model).surviving
    for use in uses:
        surviving[called(use.node)] = Surviving(len(alive), tuple(kept_rows.tolist()), tuple(range(width)))
        if use.node.op_type == "Embedding":
            _look_up(use.node, lookup)
        else:
            _spread(use.node, lookup)


def _look_up(node: ir.Node, where: ir.Value) -> None:
    """Embedding(ids) -> Embedding(Gather(places, ids))."""
    ids = node.inputs[0]
    assert ids is not None and node.graph is not None
    places = ir.Node("", "Gather", [where, ids], [ir.AttrInt64("axis", 0)], num_outputs=1, name=f"{node.name}.places")
    places.outputs[0].name = f"{node.outputs[0].name}.places"
    places.outputs[0].type, places.outputs[0].shape = ir.TensorType(ir.DataType.INT32), ids.shape
    node.graph.insert_before(node, places)
    node.replace_input_with(0, places.outputs[0])


def _spread(node: ir.Node, where: ir.Value) -> None:
    """Linear -> Gather(Linear, places) over the last axis."""
    old, graph = node.outputs[0], node.graph
    assert graph is not None
    spread = ir.Node("", "Gather", [old, where], [ir.AttrInt64("axis", -1)], num_outputs=1, name=f"{node.name}.spread")
    result = spread.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph.insert_after(node, spread)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    spread.replace_input_with(0, old)
    name = old.name
    old.name, result.name = f"{name}.rows", name
    if old.shape is not None and node.inputs[1] is not None and node.inputs[1].shape is not None:
        old.shape = ir.Shape([*old.shape[:-1], node.inputs[1].shape[0]])
