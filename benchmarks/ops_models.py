"""The same matrix product in every form that ONNX Runtime's CPU offers, as models whose weights are mapped from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.lowbit.formats import FORMATS, PackedTensor, pack_t2

OURS = "ai.edgekit"
MICROSOFT = "com.microsoft"
PAGE = 4096
TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


@dataclass(frozen=True)
class Product:
    """One way to compute Y = X W^T: nodes from X to Y, and the arrays they read."""

    nodes: Callable[[str, dict[str, str], str], list[onnx.NodeProto]]  # of X's name, the arrays' names, Y's name
    arrays: dict[str, np.ndarray]
    weight: PackedTensor | None = None  # for ours: to check the result with

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales as stored."""
        return sum(array.nbytes for array in self.arrays.values())


def products(n: int, k: int, seed: int = 0) -> dict[str, Product]:
    """Every implementation of an N x K product by name, made of random weights."""
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 2, (n, k), dtype=np.int8)
    return {
        "ternary": _ours("TernaryMatMul", pack_t2(codes, np.full(1, 0.02, np.float32)), 0),
        "ternary-g128": _ours("TernaryMatMul", pack_t2(codes, random.uniform(0.01, 0.1, (n, -(-k // 128))).astype(np.float32)), 128),
        "int8": _ours("Int8MatMul", _int8(random, n, k), 0),
        "MatMulNBits-2": _nbits(2, pack_t2(codes, np.full((n, -(-k // 128)), 0.02, np.float32))),
        "MatMulNBits-4": _nbits(4, _random_packed(random, "int4", n, k)),
        "MatMulNBits-8": _nbits(8, _random_packed(random, "int8", n, k)),
        "DynamicQuantizeLinear+MatMulInteger": _dynamic(random, n, k),
        "QDQ-int8": _qdq(random, n, k),
        "MatMul-fp32": _float(random, n, k),
    }  # fmt: skip


def _ours(op: str, weight: PackedTensor, block: int) -> Product:
    n, k = weight.shape

    def nodes(x: str, arrays: dict[str, str], y: str) -> list[onnx.NodeProto]:
        inputs = [x, arrays["w"], arrays["scales"]]
        return [helper.make_node(op, inputs, [y], domain=OURS, K=k, N=n, activation_block_size=block)]

    assert weight.scales is not None
    return Product(nodes, {"w": weight.data, "scales": weight.scales}, weight)


def _int8(random: np.random.Generator, n: int, k: int) -> PackedTensor:
    data = np.full((n, -(-k // 128) * 128), 128, np.uint8)
    data[:, :k] = random.integers(1, 256, (n, k), dtype=np.uint8)
    return PackedTensor("int8", (n, k), 128, data.reshape(n, -1, 128), np.full(n, 0.01, np.float32))


def _random_packed(random: np.random.Generator, name: str, n: int, k: int) -> PackedTensor:
    blocks, width = -(-k // 128), 128 * FORMATS[name].bits // 8
    data = random.integers(0, 256, (n, blocks, width), dtype=np.uint8)
    return PackedTensor(name, (n, k), 128, data, np.full((n, blocks), 0.01, np.float32))


def _nbits(bits: int, weight: PackedTensor) -> Product:
    n, k = weight.shape
    assert weight.scales is not None
    arrays = {"w": weight.data, "scales": weight.scales}
    if bits == 2:  # zero point 1, four a byte
        arrays["zero"] = np.full((n, -(-weight.data.shape[1] // 4)), 0x55, np.uint8)

    def nodes(x: str, names: dict[str, str], y: str) -> list[onnx.NodeProto]:
        settings = {"K": k, "N": n, "bits": bits, "block_size": 128, "accuracy_level": 4}
        return [helper.make_node("MatMulNBits", [x, *names.values()], [y], domain=MICROSOFT, **settings)]

    return Product(nodes, arrays)


def _dynamic(random: np.random.Generator, n: int, k: int) -> Product:
    """Stock int8: activations u8 per tensor, weights s8 with one scale a channel."""
    w = random.integers(-127, 128, (k, n), dtype=np.int8)
    arrays = {"w": w, "zero": np.zeros((), np.int8), "scales": np.full(n, 0.01, np.float32)}

    def nodes(x: str, names: dict[str, str], y: str) -> list[onnx.NodeProto]:
        q, step, zero, sums, floats, scale = (
            f"{y}.{part}" for part in ("q", "step", "zero", "sums", "floats", "scale")
        )
        return [
            helper.make_node("DynamicQuantizeLinear", [x], [q, step, zero]),
            helper.make_node("MatMulInteger", [q, names["w"], zero, names["zero"]], [sums]),
            helper.make_node("Cast", [sums], [floats], to=TensorProto.FLOAT),
            helper.make_node("Mul", [step, names["scales"]], [scale]),
            helper.make_node("Mul", [floats, scale], [y]),
        ]

    return Product(nodes, arrays)


def _qdq(random: np.random.Generator, n: int, k: int) -> Product:
    """Static int8 with a known range of X."""
    arrays = {
        "w": random.integers(-127, 128, (k, n), dtype=np.int8), "scales": np.full(n, 0.01, np.float32),
        "w_zero": np.zeros(n, np.int8), "step": np.array(0.03, np.float32), "zero": np.array(128, np.uint8),
    }  # fmt: skip

    def nodes(x: str, names: dict[str, str], y: str) -> list[onnx.NodeProto]:
        q, back, w = f"{y}.q", f"{y}.back", f"{y}.w"
        return [
            helper.make_node("QuantizeLinear", [x, names["step"], names["zero"]], [q]),
            helper.make_node("DequantizeLinear", [q, names["step"], names["zero"]], [back]),
            helper.make_node("DequantizeLinear", [names["w"], names["scales"], names["w_zero"]], [w], axis=1),
            helper.make_node("MatMul", [back, w], [y]),
        ]

    return Product(nodes, arrays)


def _float(random: np.random.Generator, n: int, k: int) -> Product:
    w = random.standard_normal((k, n), dtype=np.float32)

    def nodes(x: str, names: dict[str, str], y: str) -> list[onnx.NodeProto]:
        return [helper.make_node("MatMul", [x, names["w"]], [y])]

    return Product(nodes, {"w": w})


def write_model(product: Product, k: int, copies: int, path: Path) -> None:
    """A model of ``copies`` products of one X, each with weights of its own, mapped from ``path``.data.

    Weights differ from copy to copy (rows are rotated): ONNX Runtime keeps equal prepacked weights once.
    """
    initializers, nodes, outputs = [], [], []
    with path.with_suffix(".data").open("wb") as file:
        for copy in range(copies):
            names = {name: f"{name}{copy}" for name in product.arrays}
            for name, array in product.arrays.items():
                turned = np.roll(array, copy, axis=0) if array.ndim > 1 else array
                initializers.append(_external(names[name], turned, file, path))
            nodes += product.nodes("X", names, f"Y{copy}")
            outputs.append(helper.make_tensor_value_info(f"Y{copy}", TensorProto.FLOAT, ["M", "N"]))
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["M", k])
    graph = helper.make_graph(nodes, "products", [x], outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(OURS, 1), helper.make_opsetid(MICROSOFT, 1)]
    path.write_bytes(helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString())


def _external(name: str, array: np.ndarray, file, path: Path) -> onnx.TensorProto:  # type: ignore[no-untyped-def]
    if array.nbytes < PAGE:
        return onnx.numpy_helper.from_array(array, name)
    file.write(b"\0" * (-file.tell() % PAGE))
    place = {"location": path.with_suffix(".data").name, "offset": file.tell(), "length": array.nbytes}
    file.write(np.ascontiguousarray(array).tobytes())
    tensor = onnx.TensorProto(name=name, data_type=TYPES[str(array.dtype)], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def names_of(copies: int) -> list[str]:
    """The outputs of a model with so many products."""
    return [f"Y{copy}" for copy in range(copies)]
