"""The same matrix product in every form that ONNX Runtime's CPU offers, as models whose weights are mapped from a file.

What ONNX Runtime 1.32 makes of the stock forms (seen in its optimized graphs): MatMulNBits stays;
DynamicQuantizeLinear, MatMulInteger, Cast and Mul become one DynamicQuantizeMatMul; the QDQ form becomes QuantizeLinear
and MatMulIntegerToFloat.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgekit.lowbit.formats import PackedTensor, pack_t2, sparse_rows
from edgekit.lowbit.functions import ternary_function
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import (
    BLOCK_OPERATORS,
    EDGEKIT,
    INT4_MATMUL,
    INT8_BLOCK_MATMUL,
    MICROSOFT,
    SPARSE_MATMUL,
    TERNARY_MATMUL,
)

NAMES = (
    "ternary", "ternary-g128", "int8", "int8-64", "int4", "int4-32", "int4-fp16", "MatMulNBits-2", "MatMulNBits-4",
    "MatMulNBits-4-64", "MatMulNBits-8", "MatMulNBits-8-64", "DynamicQuantizeLinear+MatMulInteger", "QDQ-int8",
    "MatMul-fp32",
)  # fmt: skip
"""Every implementation; the first seven are ours. int4 and what ends in -64 have blocks of 64, int4-32 of 32 (with float32
scales) and int4-fp16 too (with float16), the others of 128."""
PAGE = 4096
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
}


@dataclass(frozen=True)
class Product:
    """One way to compute Y = X W^T: nodes from X to Y, and the arrays they read."""

    nodes: Callable[[str, dict[str, str], str], list[onnx.NodeProto]]  # of X's name, the arrays' names, Y's name
    arrays: dict[str, np.ndarray]
    weight: PackedTensor | None = None  # for ours: what the result is checked with
    activation_block: int = 0
    rotates: bool = True  # rows of its arrays can change places

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales as stored."""
        return sum(array.nbytes for array in self.arrays.values())


def product(name: str, n: int, k: int) -> Product:
    """The implementation ``name`` of an N x K product, made of random weights that are the same on every call."""
    random = np.random.default_rng(0)
    blocks = -(-k // 128)
    if name == "int8":
        return _ours("Int8MatMul", _int8(random, n, k), 0)
    if name == "MatMulNBits-4":
        return _nbits(4, _random_packed(random, "int4", n, k, 128))
    if name == "MatMulNBits-4-64":
        return _nbits(4, _random_packed(random, "int4", n, k, 64))
    if name in ("int4", "int4-32"):
        block = 32 if name == "int4-32" else 64
        return _ours(INT4_MATMUL, _random_packed(random, "int4", n, k, block), block)
    if name == "int4-fp16":
        return _ours(INT4_MATMUL, _random_packed(random, name, n, k, 32), 32)
    if name == "int8-64":
        return _ours(INT8_BLOCK_MATMUL, _random_packed(random, "int8", n, k, 64), 64)
    if name == "MatMulNBits-8-64":
        return _nbits(8, _random_packed(random, "int8", n, k, 64))
    if name == "MatMulNBits-8":
        return _nbits(8, _random_packed(random, "int8", n, k, 128))
    if name == "DynamicQuantizeLinear+MatMulInteger":
        return _dynamic(random, n, k)
    if name == "QDQ-int8":
        return _qdq(random, n, k)
    if name == "MatMul-fp32":
        return _float(random, n, k)
    if name.startswith("sparse-"):  # sparse-int4-80: 80 % zeros; sparse-int4-a128-80: activations in blocks of 128
        own, _, zeros = name.rpartition("-")
        block = 128 if own.endswith("-a128") else 0
        return sparse_product(own.removesuffix("-a128"), n, k, int(zeros) / 100, block)
    codes = random.integers(-1, 2, (n, k), dtype=np.int8)
    if name == "ternary":
        return _ours(TERNARY_MATMUL, pack_t2(codes, np.full(1, 0.02, np.float32)), 0)
    if name == "ternary-g128":
        return _ours(TERNARY_MATMUL, pack_t2(codes, random.uniform(0.01, 0.1, (n, blocks)).astype(np.float32)), 128)
    assert name == "MatMulNBits-2", name
    return _nbits(2, pack_t2(codes, np.full((n, blocks), 0.02, np.float32)))


def sparse_product(format_name: str, n: int, k: int, zeros: float, block: int) -> Product:
    """SparseMatMul with a share of zeros that lie anywhere."""
    random, bits = np.random.default_rng(0), FORMATS[format_name].bits
    half = 1 << (bits - 1)
    codes = random.integers(1, half, (n, k), dtype=np.int8)
    codes[random.random((n, k), dtype=np.float32) < 0.5] *= -1
    codes[random.random((n, k), dtype=np.float32) < zeros] = 0
    scales = np.full(n, 0.01, np.float32)
    return _ours(
        SPARSE_MATMUL, PackedTensor(format_name, (n, k), 128, sparse_rows.pack([codes], n, bits), scales), block
    )


def _ours(op: str, weight: PackedTensor, block: int) -> Product:
    n, k = weight.shape
    sparse = FORMATS[weight.format].layout == "sparse"
    more: dict[str, Any] = {"bits": FORMATS[weight.format].bits} if sparse else {}
    if op in BLOCK_OPERATORS:
        more = {"block_size": weight.block_size}

    def nodes(x: str, arrays: dict[str, str], y: str) -> list[onnx.NodeProto]:
        inputs = [x, arrays["w"], arrays["scales"]]
        return [helper.make_node(op, inputs, [y], domain=EDGEKIT, K=k, N=n, activation_block_size=block, **more)]

    assert weight.scales is not None
    return Product(nodes, {"w": weight.data, "scales": weight.scales}, weight, block, rotates=not sparse)


def _int8(random: np.random.Generator, n: int, k: int) -> PackedTensor:
    data = np.full((n, -(-k // 128) * 128), 128, np.uint8)
    data[:, :k] = random.integers(1, 256, (n, k), dtype=np.uint8)
    return PackedTensor("int8-channel", (n, k), 128, data.reshape(n, -1, 128), np.full(n, 0.01, np.float32))


def _random_packed(random: np.random.Generator, name: str, n: int, k: int, block: int) -> PackedTensor:
    blocks, width = -(-k // block), block * FORMATS[name].bits // 8
    data = random.integers(0, 256, (n, blocks, width), dtype=np.uint8)
    kind = np.float16 if FORMATS[name].scale_bits == 16 else np.float32
    return PackedTensor(name, (n, k), block, data, random.uniform(0.01, 0.1, (n, blocks)).astype(kind))


def _nbits(bits: int, weight: PackedTensor) -> Product:
    n, k = weight.shape
    assert weight.scales is not None
    arrays = {"w": weight.data, "scales": weight.scales}
    if bits == 2:  # zero point 1, four a byte
        arrays["zero"] = np.full((n, -(-weight.data.shape[1] // 4)), 0x55, np.uint8)

    def nodes(x: str, names: dict[str, str], y: str) -> list[onnx.NodeProto]:
        settings: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": weight.block_size, "accuracy_level": 4}
        return [helper.make_node("MatMulNBits", [x, *names.values()], [y], domain=MICROSOFT, **settings)]

    return Product(nodes, arrays)


def _dynamic(random: np.random.Generator, n: int, k: int) -> Product:
    """Stock int8: activations u8 per tensor, weights s8 with one scale a channel."""
    w = random.integers(-127, 128, (k, n), dtype=np.int8)
    arrays: dict[str, np.ndarray] = {"w": w, "zero": np.zeros((), np.int8), "scales": np.full(n, 0.01, np.float32)}

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
    arrays: dict[str, np.ndarray] = {
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


def write_products(product: Product, n: int, k: int, count: int, distinct: bool, path: Path) -> None:
    """A model of ``count`` products Xi -> Yi, their weights mapped from ``path``.data.

    Each product has an input of its own, so that no two nodes are equal and none is merged with another. With
    ``distinct`` each has weights of its own, the first one's with their rows rotated where they can be: ONNX Runtime
    keeps equal prepacked weights once. Without, all read one array.
    """
    nodes: list[onnx.NodeProto] = []
    with _Data(path) as data:
        for i in range(count):
            turn = i if distinct else 0
            names = {name: f"{name}{turn}" for name in product.arrays}
            if turn == i:
                for name, array in product.arrays.items():
                    rolled = np.roll(array, turn, axis=0) if array.ndim and product.rotates else array
                    data.add(names[name], rolled)
            nodes += product.nodes(f"X{i}", names, f"Y{i}")
    inputs = [helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, ["M", k]) for i in range(count)]
    outputs = [helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, ["M", n]) for i in range(count)]
    _write(path, nodes, inputs, outputs, data.initializers)


def write_chain(layers: int, size: int, path: Path) -> None:
    """A model X0 -> Y of ``layers`` ternary products size x size one after another, as a bundle holds them.

    It carries the function body, so it also runs where the operator library is not registered.
    """
    one = product("ternary", size, size)
    nodes: list[onnx.NodeProto] = []
    with _Data(path) as data:
        for i in range(layers):
            names = {name: f"{name}{i}" for name in one.arrays}
            for name, array in one.arrays.items():
                data.add(names[name], np.roll(array, i, axis=0))
            nodes += one.nodes(f"X{i}", names, "Y" if i == layers - 1 else f"X{i + 1}")
    inputs = [helper.make_tensor_value_info("X0", TensorProto.FLOAT, ["M", size])]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", size])]
    _write(path, nodes, inputs, outputs, data.initializers, [ir.to_proto(ternary_function())])


class _Data:
    """The file beside a model that holds its large arrays, each from the start of a page."""

    def __init__(self, path: Path) -> None:
        self.initializers: list[onnx.TensorProto] = []
        self._path = path.with_suffix(".data")
        self._file: BinaryIO

    def __enter__(self) -> _Data:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        # On the disk before anything is timed: writing back takes time from whatever runs then.
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, name: str, array: np.ndarray) -> None:
        if array.nbytes < PAGE:
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
            return
        self._file.write(b"\0" * (-self._file.tell() % PAGE))
        place = {"location": self._path.name, "offset": self._file.tell(), "length": array.nbytes}
        self._file.write(np.ascontiguousarray(array).data)
        tensor = onnx.TensorProto(name=name, data_type=TYPES[str(array.dtype)], dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto],
    functions: list[onnx.FunctionProto] | None = None,
) -> None:
    graph = helper.make_graph(nodes, "products", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(EDGEKIT, 1), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions or [])
    path.write_bytes(model.SerializeToString())
