"""Hidden units, attention heads and convolution channels that do nothing are taken out of the graph. Exact: docs/rewrites.md."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgekit.lowbit.surviving import Kept
from edgekit.passes.dead_units.channels import Flow, Product, constant_of
from edgekit.passes.dead_units.cuts import replace_constant, update_shapes
from edgekit.passes.dead_units.operators import follow
from edgekit.passes.dead_units.verdict import Row, Verdict, judge, kept_rows, removed_rows
from edgekit.passes.dead_units.weights import Bools, Scans, product_with, sliced, taken

REPORT = "edgekit.dead_units"
KEPT = "edgekit.kept"
"""Key in ``model.meta``: what is left of each layer, :class:`edgekit.lowbit.surviving.Kept` by name."""


class RemoveDeadUnits(ir.passes.InPlacePass):
    """Removes what changes no output, again and again until nothing more is dead.

    ``model.metadata_props["edgekit.dead_units"]`` lists what was removed, and what looks dead and had to stay: layer, unit,
    count, of, removed, reason. ``model.meta["edgekit.kept"]`` says what is left of each linear layer. A decoder's
    description and its cache follow. Weights are read once, a few rows at a time.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        scans, rows = Scans(), list[Row]()
        kept: dict[str, Kept] = model.meta.setdefault(KEPT, {})
        model = _with_shapes(model)
        taps = frozenset(json.loads(model.metadata_props.get("edgekit.taps", "{}")).values())
        while True:
            verdict = judge(follow(Flow(model.graph, scans, taps)))
            if not verdict.dead.any():
                break
            rows += removed_rows(verdict)
            _cut(verdict, kept)
        known = json.loads(model.metadata_props.get(REPORT, "[]"))
        listed = known + [asdict(row) for row in (*_summed(rows), *kept_rows(verdict))]
        if listed:
            model.metadata_props[REPORT] = json.dumps(listed)
        if rows:
            _describe_decoder(model)
        return ir.passes.PassResult(model, modified=bool(rows))


def _with_shapes(model: ir.Model) -> ir.Model:
    """Where pixels are laid side by side and the graph does not say how many, their number is computed."""
    nodes = list(model.graph)
    silent = [n for n in nodes if n.op_type in ("Flatten", "Reshape") and n.inputs[0] and n.inputs[0].shape is None]
    return (
        ShapeInferencePass(check_type=False, strict_mode=False)(model).model
        if silent and any(n.op_type == "Conv" for n in nodes)
        else model
    )


def _summed(rows: list[Row]) -> list[Row]:
    """One row for equal reasons of several rounds, out of what the layer had at first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.layer, row.unit, row.reason] += row.count
        first.setdefault((row.layer, row.unit), row.of)
    return [Row(layer, unit, n, first[layer, unit], True, reason) for (layer, unit, reason), n in counts.items()]


def _cut(verdict: Verdict, kept: dict[str, Kept]) -> None:
    flow = verdict.flow
    for product in flow.products:
        columns, rows = verdict.keep(product.x.ids), verdict.keep(product.y.ids)
        if not (rows.all() and columns.all()):
            left = _left(product, kept)
            _fold(product, ~columns, left)
            _shrink(product, rows, columns)
            left.rows, left.columns = left.rows[rows], left.columns[columns]
    for cut in flow.cuts:
        cut.apply(verdict.keep)
    update_shapes(flow, verdict.keep)


def _left(product: Product, kept: dict[str, Kept]) -> Kept:
    if product.name not in kept:
        bias = product.bias
        whole = None if bias is None else bias.numpy().astype(np.float32)
        size = len(product.y.ids)
        kept[product.name] = Kept(size, np.arange(size), np.arange(len(product.x.ids)), whole)
    return kept[product.name]


def _fold(product: Product, gone: Bools, left: Kept) -> None:
    """Adds what constant inputs contributed to the bias."""
    columns = np.flatnonzero(gone & (np.nan_to_num(product.x.constant) != 0) & product.alive.columns)
    if not len(columns):
        return
    extra = product_with(product.tensor, product.rows_axis, columns, product.x.constant[columns])
    old = product.bias
    bias = (extra if old is None else old.numpy() + extra).astype(product.tensor.dtype.numpy())
    node = product.node
    node.resize_inputs(max(3, len(node.inputs)))
    replace_constant(node, 2, ir.tensor(bias, name=f"{node.outputs[0].name}.bias"))
    if left.bias is None:
        left.bias = np.zeros(left.size, np.float32)
    left.bias[left.rows] = bias


def _shrink(product: Product, rows: Bools, columns: Bools) -> None:
    node, name = product.node, str(product.node.inputs[1].name)  # type: ignore[union-attr]
    if len(product.tensor.shape) == 2 and product.rows_axis == 0 and product.tensor.dtype == ir.DataType.FLOAT:
        replace_constant(node, 1, sliced(product.tensor, rows, columns, name))
    else:
        axes = {product.rows_axis: rows, 1 - product.rows_axis: columns}
        replace_constant(node, 1, taken(product.tensor, axes, name))
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and not rows.all():
        replace_constant(node, 2, taken(bias, {0: rows}, str(node.inputs[2].name)))  # type: ignore[union-attr]


def _describe_decoder(model: ir.Model) -> None:
    """The key-value heads that each layer's cache has now."""
    facts = json.loads(model.metadata_props.get("edgekit.decoder", "null"))
    if facts is None:
        return
    inputs = {value.name: value for value in model.graph.inputs}
    heads = []
    for layer, count in enumerate(facts["kv_heads"]):
        shape = inputs[f"past_key_values.{layer}.key"].shape
        heads.append(int(shape[1]) if shape is not None else count)  # type: ignore[arg-type]
    facts["kv_heads"] = heads
    model.metadata_props["edgekit.decoder"] = json.dumps(facts)
