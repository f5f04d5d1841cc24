"""Rows of zeros in embedding tables, kept or stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.bundle import Bundle
from edgekit.errors import RecipeError
from edgekit.exporter import export
from edgekit.parity import verify
from edgekit.passes.dead_units.rows import RemoveDeadRows
from edgekit.passes.normalize_linear import NormalizeLinear
from edgekit.recipe import Limits, Recipe, Rule
from edgekit.spec.facts import facts_of
from edgekit.spec.records import DeadUnits
from tests.support.dead_units import Net, copied, outputs
from tests.support.tiny_decoders import build as tiny

ROWS, WIDTH = 60, 32
DEAD = np.array([0, 3, 4, *range(20, 45), 59])


def _model(tied: bool, dead: np.ndarray = DEAD, bias: bool = False, width: int = WIDTH) -> ir.Model:
    """Embedding, and a head with the same table or another one."""
    net = Net()
    table = net.draw(ROWS, width)
    table[dead] = 0
    ids, weight = net.g.input("ids", ir.DataType.INT64, ["batch", "length"]), net.constant(table, "table.weight")
    x = net.op("Gather", weight, ids)
    head = net.op("Transpose", weight, perm=[1, 0]) if tied else net.constant(net.draw(width, ROWS), "head.weight")
    logits = net.op("MatMul", net.op("Tanh", x), head)
    if bias:
        logits = net.op("Add", logits, net.constant(net.draw(ROWS)))
    return net.model(logits=(logits, ["batch", "length", ROWS]))


def _rows(model: ir.Model, drop: bool) -> tuple[ir.Model, list[DeadUnits]]:
    copy = RemoveUnusedNodesPass()(NormalizeLinear()(copied(model)).model).model
    copy = RemoveDeadRows(drop)(copy).model
    return copy, facts_of(copy).dead_units


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_zeros_are_stored_once_and_ids_mean_what_they_did(tied: bool) -> None:
    model = _model(tied)
    after, table = _rows(model, drop=True)
    ids = np.arange(ROWS, dtype=np.int64).reshape(2, -1)
    (want,), (got,) = outputs(model, {"ids": ids}), outputs(after, {"ids": ids})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * float(np.abs(want).max()))
    (row,) = table
    assert (row.layer, row.unit, row.removed) == ("table", "embedding row", True)
    assert (row.count, row.of) == (len(DEAD) - 1, ROWS)
    assert after.graph.initializers["table.weight"].shape == ir.Shape([ROWS - len(DEAD) + 1, WIDTH])
    assert not RemoveDeadRows(True)(after).modified


@pytest.mark.parametrize(
    ("model", "drop", "reason"),
    [
        (_model(True), False, "the recipe says unused_embedding_rows: keep"),
        (_model(True, dead=DEAD[:2]), True, "a table that says where each row is would be larger than what they take"),
        (_model(True, bias=True), True, "shares the table and adds a bias to each row"),
    ],
)
def test_rows_of_zeros_stay_with_a_reason(model: ir.Model, drop: bool, reason: str) -> None:
    after, table = _rows(model, drop)
    assert [row.removed for row in table] == [False] and reason in table[0].reason
    assert after.graph.initializers["table.weight"].shape == ir.Shape([ROWS, WIDTH])


def test_a_table_that_something_else_reads_stays() -> None:
    model = _model(False)
    weight = model.graph.initializers["table.weight"]
    probe = ir.Node("", "ReduceSum", [weight], num_outputs=1, name="probe")
    probe.outputs[0].name, probe.outputs[0].type = "sum", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(probe)
    model.graph.outputs.append(probe.outputs[0])
    _, table = _rows(model, True)
    assert table[0].removed is False and "reads the table too" in table[0].reason


def test_a_table_without_rows_of_zeros_is_not_mentioned() -> None:
    assert _rows(_model(True, dead=DEAD[:0]), True)[1] == []


def test_a_decoder_with_dropped_rows_verifies(tmp_path: Path) -> None:
    """The vocabulary is as large as before for everybody outside; the compressed PyTorch model answers the same."""
    model: Any = tiny("Llama", {"tie_word_embeddings": True, "max_position_embeddings": 96, "vocab_size": 300})
    with torch.no_grad():
        model.model.embed_tokens.weight[100:290] = 0
    model.save_pretrained(tmp_path / "model")
    rules = (Rule("*", "int8", only="vocabulary"), Rule("*", "fp32"))
    recipe = Recipe(1, "dropping", rules, parity=Limits(cosine=0.9999), unused_embedding_rows="drop")
    bundle = export(str(tmp_path / "model"), recipe, tmp_path / "bundle", abis=[])
    assert verify(bundle).parity.passed
    found = Bundle.open(tmp_path / "bundle").manifest
    assert found.decoder is not None and found.decoder.vocab_size == 300
    shapes = {layer.name: layer.shape for layer in found.layers}
    assert shapes["model.embed_tokens"] == shapes["lm_head"] == (111, 64)
    (row,) = found.dead_units
    assert (row.count, row.of, row.removed) == (189, 300, True)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match=r"^recipe.unused_embedding_rows: 'dropp' is not one of 'keep', 'drop'; did you mean 'drop'\?$",
    ):
        Recipe(1, "r", (Rule("*", "fp32"),), unused_embedding_rows="dropp")
