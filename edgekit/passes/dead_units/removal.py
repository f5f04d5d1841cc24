"""Takes hidden units, attention heads and channels that do nothing out of the graph. Exact: docs/rewrites.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import compress

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgekit.passes.dead_units.channels import Flow, Product, constant_of
from edgekit.passes.dead_units.cuts import replace_constant, update_shapes
from edgekit.passes.dead_units.operators import follow
from edgekit.passes.dead_units.verdict import Verdict, judge, kept_rows, removed_rows
from edgekit.passes.dead_units.weights import Bools, Scans, product_with, sliced, taken
from edgekit.spec.facts import facts_of
from edgekit.spec.records import DeadUnits, Surviving


class RemoveDeadUnits(ir.passes.InPlacePass):
    """Removes what changes no output, again and again until nothing more is dead.

    The model's facts then list what was removed, what looks dead and had to stay, and what is left of each linear
    layer. A decoder's description and its cache follow. Weights are read once, a few rows at a time.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        scans, rows, facts = Scans(), list[DeadUnits](), facts_of(model)
        model = _with_shapes(model)
        taps = frozenset(facts.taps.values())
        while True:
            verdict = judge(follow(Flow(model.graph, scans, taps)))
            if not verdict.dead.any():
                break
            rows += removed_rows(verdict)
            _cut(verdict, facts.surviving)
        facts.dead_units += [*_summed(rows), *kept_rows(verdict)]
        if rows and facts.decoder is not None:
            facts.decoder = replace(facts.decoder, kv_heads=_kv_heads(model, facts.decoder.kv_heads))
        return ir.passes.PassResult(model, modified=bool(rows))


def _with_shapes(model: ir.Model) -> ir.Model:
    """Where pixels are laid side by side and the graph does not say how many, their number is computed."""
    nodes = list(model.graph)
    silent = [n for n in nodes if n.op_type in ("Flatten", "Reshape") and n.inputs[0] and n.inputs[0].shape is None]
    if silent and any(n.op_type == "Conv" for n in nodes):
        return ShapeInferencePass(check_type=False, strict_mode=False)(model).model
    return model


def _summed(rows: list[DeadUnits]) -> list[DeadUnits]:
    """One row for equal reasons of several rounds, out of what the layer had at first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.layer, row.unit, row.reason] += row.count
        first.setdefault((row.layer, row.unit), row.of)
    return [DeadUnits(layer, unit, n, first[layer, unit], True, reason) for (layer, unit, reason), n in counts.items()]


def _cut(verdict: Verdict, surviving: dict[str, Surviving]) -> None:
    flow = verdict.flow
    for product in flow.products:
        columns, rows = verdict.keep(product.x.ids), verdict.keep(product.y.ids)
        if not (rows.all() and columns.all()):
            survivors = _fold(product, ~columns, surviving.get(product.name) or _whole(product))
            _shrink(product, rows, columns)
            surviving[product.name] = replace(
                survivors,
                rows=tuple(compress(survivors.rows, rows)),
                columns=tuple(compress(survivors.columns, columns)),
            )
    for cut in flow.cuts:
        cut.apply(verdict.keep)
    update_shapes(flow, verdict.keep)


def _whole(product: Product) -> Surviving:
    bias, size = product.bias, len(product.y.ids)
    numbers = None if bias is None else tuple(bias.numpy().astype(np.float32).tolist())
    return Surviving(size, tuple(range(size)), tuple(range(len(product.x.ids))), numbers)


def _fold(product: Product, gone: Bools, survivors: Surviving) -> Surviving:
    """Adds what constant inputs contributed to the bias."""
    columns = np.flatnonzero(gone & (np.nan_to_num(product.x.constant) != 0) & product.alive.columns)
    if not len(columns):
        return survivors
    extra = product_with(product.tensor, product.rows_axis, columns, product.x.constant[columns])
    old = product.bias
    bias = (extra if old is None else old.numpy() + extra).astype(product.tensor.dtype.numpy())
    node = product.node
    node.resize_inputs(max(3, len(node.inputs)))
    replace_constant(node, 2, ir.tensor(bias, name=f"{node.outputs[0].name}.bias"))
    whole = np.zeros(survivors.size, np.float32) if survivors.bias is None else np.array(survivors.bias, np.float32)
    whole[list(survivors.rows)] = bias
    return replace(survivors, bias=tuple(whole.tolist()))


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


def _kv_heads(model: ir.Model, known: tuple[int, ...]) -> tuple[int, ...]:
    """The key-value heads that each layer's cache has now."""
    inputs = {value.name: value for value in model.graph.inputs}
    keys = (inputs.get(f"past_key_values.{layer}.key") for layer in range(len(known)))
    shapes = [None if key is None else key.shape for key in keys]
    return tuple(count if shape is None else int(shape[1]) for shape, count in zip(shapes, known, strict=True))  # type: ignore[arg-type]
