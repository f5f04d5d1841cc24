"""Small graphs with units that do nothing, and a comparison of a graph with its rewritten self."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgekit.passes.choose_formats import ChooseFormats
from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.passes.lower_linears import LowerLinears
from edgekit.passes.normalize_linear import NormalizeLinear
from edgekit.recipe import Recipe
from edgekit.spec.facts import facts_of
from edgekit.spec.records import DeadUnits
from tests.support.tiny_bundle import FLOAT, GraphWriter

TOLERANCE = 1e-6


@dataclass
class Net:
    """Writes a network of standard operators layer by layer; a weight that is given holds what it says."""

    seed: int = 0

    def __post_init__(self) -> None:
        self.g, self.random, self.names = GraphWriter(), np.random.default_rng(self.seed), 0

    def input(self, *dims: int) -> ir.Value:
        return self.g.input("x", FLOAT, ["batch", *dims])

    def constant(self, array: Any, name: str = "") -> ir.Value:
        self.names += 1
        return self.g.constant(name or f"constant{self.names}", np.asarray(array, np.float32))

    def draw(self, *shape: int) -> np.ndarray:
        """Weights of which none is zero."""
        drawn = self.random.uniform(0.5, 1.5, shape) * self.random.choice([-1, 1], shape)
        return np.asarray(drawn / math.sqrt(max(1, math.prod(shape[1:]))), np.float32)

    def dense(self, x: ir.Value, weight: np.ndarray, bias: np.ndarray | None = None, name: str = "") -> ir.Value:
        """Gemm with weight [N, K]."""
        self.names += 1
        name = name or f"dense{self.names}"
        inputs = [x, self.constant(weight, f"{name}.weight")]
        inputs += [self.constant(bias, f"{name}.bias")] if bias is not None else []
        return self.g.op("Gemm", *inputs, transB=1)[0]

    def conv(
        self,
        x: ir.Value,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        pad: int = 0,
        group: int = 1,
        name: str = "",
    ) -> ir.Value:
        self.names += 1
        name = name or f"conv{self.names}"
        inputs = [x, self.constant(weight, f"{name}.weight")]
        inputs += [self.constant(bias, f"{name}.bias")] if bias is not None else []
        return self.g.op("Conv", *inputs, pads=[pad] * 4, group=group)[0]

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.g.op(kind, *inputs, **attributes)[0]

    def model(self, **outputs: tuple[ir.Value, list[int | str]]) -> ir.Model:
        return self.g.model(outputs)


def copied(model: ir.Model) -> ir.Model:
    """A copy to be rewritten, with what is known of the model."""
    copy = model.clone()
    copy.meta.update(deepcopy(dict(model.meta)))
    return copy


def rewritten(model: ir.Model, normalize: bool) -> tuple[ir.Model, list[DeadUnits]]:
    """A copy without its dead units, and the table; with ``normalize`` as export does it, else on standard operators."""
    copy = copied(model)
    if normalize:
        copy = RemoveUnusedNodesPass()(NormalizeLinear()(copy).model).model
    copy = RemoveDeadUnits()(copy).model
    return copy, facts_of(copy).dead_units


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime answers; abstract layers are lowered to float32."""
    copy = model.clone()
    if any(node.domain == "ai.edgekit" for node in copy.graph):
        for step in (ChooseFormats(Recipe.load("fp32")), LowerLinears()):
            copy = step(copy).model
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(ir.to_proto(copy).SerializeToString(), options)
    return list(session.run(None, feeds))


def same(model: ir.Model, other: ir.Model, *dims: int, rows: int = 3) -> None:
    """Both answer the same on random input, to 1e-6 of the largest number."""
    x = np.random.default_rng(1).normal(size=(rows, *dims)).astype(np.float32)
    for want, got in zip(outputs(model, {"x": x}), outputs(other, {"x": x}), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(want).max())))


def widths(model: ir.Model) -> dict[str, list[int]]:
    """Shape of every weight by its name, without what passes append to it."""
    return {
        str(name).split(".weight")[0]: [int(d) for d in value.const_value.shape.numpy()]  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
        if ".weight" in str(name) and value.uses()
    }


def removed(table: list[DeadUnits]) -> dict[tuple[str, str], int]:
    """How many units went, by layer and reason."""
    return {(row.layer, row.reason): row.count for row in table if row.removed}


def kept(table: list[DeadUnits]) -> dict[tuple[str, str], str]:
    """Why something stayed, by layer and kind."""
    return {(row.layer, row.unit): row.reason for row in table if not row.removed}
