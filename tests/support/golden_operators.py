"""The golden vectors of the operators, and one model that computes all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.spec.names import EDGEKIT

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "operators"


@dataclass(frozen=True)
class Golden:
    """One case; ``arrays`` are X, W, scales, perhaps bias, and Y."""

    name: str
    op: str
    attributes: dict[str, int]
    arrays: dict[str, np.ndarray]


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


def write_model(directory: Path) -> None:
    """model.onnx with a node for each case and all of its inputs inside, and expected.npz with the results by output."""
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    expected: dict[str, Any] = {}
    for index, case in enumerate(golden()):
        inputs = [_constant(f"{name}{index}", array) for name, array in case.arrays.items() if name != "Y"]
        node = ir.Node(
            EDGEKIT, case.op, inputs, [ir.AttrInt64(n, v) for n, v in case.attributes.items()], num_outputs=1
        )
        node.name, node.outputs[0].name = case.name, f"Y{index}"
        node.outputs[0].type = ir.TensorType(ir.tensor(case.arrays["Y"]).dtype)
        nodes.append(node)
        constants += inputs
        expected[f"Y{index}"] = case.arrays["Y"]
    graph = ir.Graph(
        [], [n.outputs[0] for n in nodes], nodes=nodes, initializers=constants,
        opset_imports={"": 21, EDGEKIT: 1}, name="golden",
    )  # fmt: skip
    (directory / "model.onnx").write_bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    np.savez(directory / "expected.npz", **expected)


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
