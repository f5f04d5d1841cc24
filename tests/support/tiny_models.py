"""Hand-made bundles that are no decoders: one linear layer in each of the forms that a bundle may hold it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgekit.bundle import Bundle
from edgekit.lowbit.formats import CODECS
from edgekit.lowbit.functions import FUNCTIONS
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import EDGEKIT, MICROSOFT, NATIVE_OPERATORS
from edgekit.spec.records import Layer, VectorInfo
from tests.support.tiny_bundle import FLOAT, GraphWriter, manifest, recipe, write_bundle

SIZE = 256
DIMS: list[int | str] = ["batch", SIZE]
SETTINGS: dict[str, dict[str, Any]] = {
    "t2": {"activation_block_size": 0},
    "int4": {"block_size": 128, "activation_block_size": 128},
    "int8": {"block_size": 128, "activation_block_size": 128},
}
"""Attributes of the operator beside K and N, by format."""


def weight() -> np.ndarray:
    """A ternary matrix float32 [256, 256], which every format can hold."""
    return (np.random.default_rng(3).integers(-1, 2, (SIZE, SIZE)) * 0.5).astype(np.float32)


def linear_bundle(
    path: Path,
    format_name: str = "fp32",
    task: str = "generic",
    rows: int = 4,
    kind: str = "sample",
    shift: float = 0.0,
) -> Bundle:
    """Output ``y`` = x W^T; its golden answers are exact, plus ``shift``."""
    g = GraphWriter()
    x = g.input("x", FLOAT, DIMS)
    packed = CODECS[format_name].quantize(weight(), 128)
    data = g.constant("w", packed.data)
    functions: list[ir.Function] = []
    settings = SETTINGS.get(format_name, {})
    if format_name == "fp32":
        (y,) = g.op("MatMul", x, g.op("Transpose", data, perm=[1, 0])[0])
    else:
        assert packed.scales is not None
        scales = g.constant("scales", packed.scales)
        operator = FORMATS[format_name].operator
        domain = EDGEKIT if operator in NATIVE_OPERATORS else MICROSOFT
        functions = [FUNCTIONS[operator]()] if domain == EDGEKIT else []
        (y,) = g.op(operator, x, data, scales, domain=domain, K=SIZE, N=SIZE, **settings)
    (tap,) = g.op("Identity", y, name="tap")
    (z,) = g.op("Mul", tap, g.constant("two", np.full(1, 2.0, np.float32)))
    model = g.model({"y": (z, DIMS)}, functions=functions)
    random, vectors = np.random.default_rng(5), {}
    for index in range(2):
        inputs = random.normal(size=(rows, SIZE)).astype(np.float32)
        exact = (inputs @ weight().T).astype(np.float32)
        answers = {f"{who}.y": 2 * exact + np.float32(shift) for who in ("original", "compressed")}
        vectors[f"vectors/sample-{index}.safetensors"] = {"input.x": inputs, "tap.linear": exact, **answers}
    layer = Layer(
        "linear", format_name, 128, 8.0, (SIZE, SIZE), activation_block_size=settings.get("activation_block_size", -1)
    )
    found = manifest(
        model, task, recipe(cosine=0.999), layers=(layer,),
        taps={"linear": "tap"}, vectors=tuple(VectorInfo(name, kind) for name in vectors),
    )  # fmt: skip
    return write_bundle(path, model, found, vectors)


def broken_graph(directory: Path) -> None:
    """Replaces a bundle's graph by one that ONNX Runtime refuses, keeping its size."""
    path = directory / "model.onnx"
    model = ir.load(path)
    next(n for n in model.graph if n.op_type == "Mul").op_type = "Mus"
    size = path.stat().st_size
    ir.save(model, path)
    assert path.stat().st_size == size
