"""The golden vectors of the operators, and one model that computes all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.lowbit.functions import ATTENTION_INPUTS
from edgekit.spec.names import CACHED_ATTENTION, EDGEKIT, EXPERT_MATMUL
from tests.support import attention

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "operators"


@dataclass(frozen=True)
class Golden:
    """One case; ``arrays`` are inputs and outputs by their names."""

    name: str
    op: str
    attributes: dict[str, int | float]
    arrays: dict[str, np.ndarray]

    @property
    def outputs(self) -> tuple[str, ...]:
        return attention.OUTPUTS if self.op == CACHED_ATTENTION else ("Y",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """In their order; those that are left out have no array."""
        own = {CACHED_ATTENTION: ATTENTION_INPUTS, EXPERT_MATMUL: ("X", "index", "W", "scales")}
        return own.get(self.op, ("X", "W", "scales", "bias"))


def golden() -> list[Golden]:
    """Every case of tests/vectors/operators."""
    data = (VECTORS / "vectors.bin").read_bytes()
    found = []
    for case in json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))["cases"]:
        arrays = {}
        for name, place in case["arrays"].items():
            dtype = np.dtype(place["dtype"]).newbyteorder("<")
            count = int(np.prod(place["shape"]))
            arrays[name] = np.frombuffer(data, dtype, count, place["offset"]).reshape(place["shape"])
        found.append(Golden(case["name"], case["op"], case["attributes"], arrays))
    return found


def write_model(directory: Path) -> int:
    """model.onnx with a node for each case and all of its inputs inside, and expected.npz with the results by output.

    Returns how many outputs there are.
    """
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    expected: dict[str, Any] = {}
    for index, case in enumerate(golden()):
        inputs = [
            _constant(f"{name}{index}", case.arrays[name]) if name in case.arrays else None for name in case.inputs
        ]
        attributes = [
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
            for name, value in case.attributes.items()
        ]
        node = ir.Node(EDGEKIT, case.op, inputs, attributes, num_outputs=len(case.outputs), name=case.name)
        for output, name in zip(node.outputs, case.outputs, strict=True):
            output.name, output.type = f"{name}{index}", ir.TensorType(ir.tensor(case.arrays[name]).dtype)
            expected[f"{name}{index}"] = case.arrays[name]
        nodes.append(node)
        constants += [value for value in inputs if value is not None]
    graph = ir.Graph(
        [], [output for node in nodes for output in node.outputs], nodes=nodes, initializers=constants,
        opset_imports={"": 21, EDGEKIT: 1}, name="golden",
    )  # fmt: skip
    (directory / "model.onnx").write_bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    np.savez(directory / "expected.npz", **expected)
    return len(expected)


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
