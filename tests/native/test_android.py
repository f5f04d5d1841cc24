"""The operator library for Android in Android's own ONNX Runtime: the bits that the numpy reference gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.lowbit.formats import CODECS, PackedTensor, pack_t2, sparse_rows
from edgekit.lowbit.reference import block_matmul, int8_matmul, sparse_matmul, ternary_matmul
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import BLOCK_OPERATORS, EDGEKIT
from tests.native.test_arm import FORCED
from tests.support.bionic import harness
from tests.support.tooling import require

N = 70
MACHINES = {
    # name: (ABI, QEMU's processor, the instruction set that the library chooses there)
    "x86_64": ("x86_64", "", ""),
    "cortex-a72": ("arm64-v8a", "cortex-a72", "neon"),
    "cortex-a76": ("arm64-v8a", "cortex-a76", "neon_dotprod"),
    "max": ("arm64-v8a", "max", "neon_i8mm"),
}


@dataclass(frozen=True)
class Case:
    """One node of the model."""

    op: str
    rows: int
    k: int
    scales: str  # tensor, row or group
    block: int
    bias: bool
    half: bool = False
    bits: int = 8  # of SparseMatMul
    b: int = 64  # of Int4MatMul and Int8BlockMatMul

    def arrays(self, seed: int) -> tuple[np.ndarray, PackedTensor, np.ndarray | None]:
        random = np.random.default_rng(seed)
        blocks = -(-self.k // 128)
        shape = {"tensor": (1,), "row": (N,), "group": (N, blocks)}[self.scales]
        scales = random.uniform(0.01, 2.0, shape).astype(np.float32)
        x = (random.standard_normal((self.rows, self.k)) * 3).astype(np.float16 if self.half else np.float32)
        bias = random.standard_normal(N).astype(np.float32) if self.bias else None
        if self.op == "TernaryMatMul":
            return x, pack_t2(random.integers(-1, 2, (N, self.k)).astype(np.int8), scales), bias
        if self.op == "SparseMatMul":
            codes = random.integers(-(1 << (self.bits - 1)), 1 << (self.bits - 1), (N, self.k)).astype(np.int8)
            codes[random.random((N, self.k)) < random.uniform(0, 1, (N, 1))] = 0
            name = f"sparse-int{self.bits}"
            return x, PackedTensor(name, (N, self.k), 128, sparse_rows.pack([codes], N, self.bits), scales), bias
        if self.op in BLOCK_OPERATORS:
            name = "int4" if self.op == "Int4MatMul" else "int8"
            return x, CODECS[name].quantize(random.standard_normal((N, self.k)).astype(np.float32), self.b), bias
        data = np.full((N, blocks * 128), 128, np.uint8)
        data[:, : self.k] = random.integers(0, 256, (N, self.k))
        return x, PackedTensor("int8-channel", (N, self.k), 128, data.reshape(N, blocks, 128), scales), bias

    def expected(self, seed: int) -> np.ndarray:
        x, weight, bias = self.arrays(seed)
        reference = {
            "TernaryMatMul": ternary_matmul,
            "Int8MatMul": int8_matmul,
            "SparseMatMul": sparse_matmul,
            "Int4MatMul": block_matmul,
            "Int8BlockMatMul": block_matmul,
        }[self.op]
        return np.asarray(reference(x.astype(np.float32), weight, bias, self.block)).astype(x.dtype)


CASES = (
    Case("TernaryMatMul", 1, 1, "tensor", 0, False),
    Case("TernaryMatMul", 1, 300, "tensor", 128, True),
    Case("TernaryMatMul", 1, 700, "row", 0, True),
    Case("TernaryMatMul", 5, 300, "row", 128, False),
    Case("TernaryMatMul", 5, 700, "tensor", 0, False),
    Case("TernaryMatMul", 20, 300, "group", 0, True),
    Case("TernaryMatMul", 20, 700, "group", 128, True),
    Case("TernaryMatMul", 1, 700, "group", 128, False),
    Case("TernaryMatMul", 20, 1, "row", 128, True),
    Case("TernaryMatMul", 5, 300, "row", 0, True, half=True),
    Case("Int8MatMul", 1, 700, "row", 0, True),
    Case("Int8MatMul", 1, 1, "tensor", 128, False),
    Case("Int8MatMul", 5, 300, "tensor", 128, True),
    Case("Int8MatMul", 20, 700, "row", 0, False),
    Case("Int8MatMul", 20, 300, "row", 128, True),
    Case("SparseMatMul", 1, 700, "row", 0, True, bits=4),
    Case("SparseMatMul", 1, 700, "row", 128, False, bits=8),
    Case("SparseMatMul", 20, 300, "tensor", 128, True, bits=4),
    Case("SparseMatMul", 5, 700, "row", 0, False, half=True, bits=8),
    Case("Int4MatMul", 1, 700, "group", 64, True),
    Case("Int4MatMul", 1, 300, "group", 0, False, b=16),
    Case("Int4MatMul", 20, 300, "group", 32, True, b=32),
    Case("Int4MatMul", 20, 700, "group", 256, False, b=256),
    Case("Int4MatMul", 5, 700, "group", 128, True, half=True, b=128),
    Case("Int8BlockMatMul", 1, 700, "group", 64, True),
    Case("Int8BlockMatMul", 1, 300, "group", 0, False, b=16),
    Case("Int8BlockMatMul", 20, 300, "group", 32, True, b=32),
    Case("Int8BlockMatMul", 20, 700, "group", 256, False, b=256),
    Case("Int8BlockMatMul", 5, 700, "group", 128, True, half=True, b=128),
)


def value(name: str, array: np.ndarray, constant: bool) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(array.shape)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor if constant else None)


def write_model(folder: Path, cases: tuple[Case, ...]) -> None:
    """``model.onnx`` with a node for each case, Xi to Yi, and Xi.bin beside it."""
    inputs, constants, nodes = [], [], []
    for i, case in enumerate(cases):
        x, weight, bias = case.arrays(i)
        x.tofile(folder / f"X{i}.bin")
        assert weight.scales is not None
        inputs.append(value(f"X{i}", x, constant=False))
        own = [value(f"W{i}", weight.data, True), value(f"scales{i}", weight.scales, True)]
        own += [value(f"bias{i}", bias, True)] if bias is not None else []
        constants += own
        attributes = {"K": case.k, "N": N, "activation_block_size": case.block}
        attributes |= {"bits": FORMATS[weight.format].bits} if FORMATS[weight.format].layout == "sparse" else {}
        attributes |= {"block_size": weight.block_size} if case.op in BLOCK_OPERATORS else {}
        integers = [ir.AttrInt64(name, number) for name, number in attributes.items()]
        nodes.append(ir.Node(EDGEKIT, case.op, [inputs[i], *own], integers, num_outputs=1, name=f"node{i}"))
        nodes[i].outputs[0].name = f"Y{i}"
        nodes[i].outputs[0].type = ir.TensorType(ir.DataType.FLOAT16 if case.half else ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, [node.outputs[0] for node in nodes], nodes=nodes, initializers=constants,
        opset_imports={"": 21, EDGEKIT: 1}, name="g",
    )  # fmt: skip
    (folder / "model.onnx").write_bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


def prepared(abi: str) -> harness.Harness:
    fault = harness.missing(abi)
    require(not fault, fault)
    return harness.prepare(abi)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, CASES)
    return folder


def isa_of(version: str) -> str:
    return version.split()[1]


def wrong_cases(folder: Path) -> list[Case]:
    """The cases whose output is not the reference's, bit for bit; the outputs are taken away."""
    wrong = []
    for i, case in enumerate(CASES):
        found = folder / f"Y{i}.out"
        if found.read_bytes() != case.expected(i).tobytes():
            wrong.append(case)
        found.unlink()
    return wrong


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("threads", [1, 3])
def test_outputs_are_the_reference_bit_for_bit(machine: str, threads: int, model: Path) -> None:
    abi, cpu, isa = MACHINES[machine]
    version = prepared(abi).run(model, cpu=cpu, threads=threads)
    assert wrong_cases(model) == []
    assert version.endswith(f"; {len(CASES)}")
    if isa:
        assert isa_of(version) == isa


def test_every_instruction_set_of_this_machine(model: Path) -> None:
    runner = prepared("x86_64")
    supported = runner.run(model).partition(";")[0].split()[2:]
    assert wrong_cases(model) == []
    assert supported[-1] == "scalar"
    for isa in supported:
        assert isa_of(runner.run(model, isa=isa)) == isa
        assert wrong_cases(model) == [], isa


@pytest.mark.parametrize(("cpu", "isa"), FORCED)
def test_every_instruction_set_of_the_emulated_processors(cpu: str, isa: str, model: Path) -> None:
    assert isa_of(prepared("arm64-v8a").run(model, isa=isa, cpu=cpu)) == isa
    assert wrong_cases(model) == []


@pytest.mark.parametrize(("cpu", "isa"), [("cortex-a72", "neon_dotprod"), ("cortex-a76", "neon_i8mm")])
def test_what_the_processor_lacks_is_refused_not_a_crash(cpu: str, isa: str, model: Path) -> None:
    with pytest.raises(harness.ReplayError, match=f"EDGEKIT_ISA={isa}: this processor cannot run it; it has neon"):
        prepared("arm64-v8a").run(model, isa=isa, cpu=cpu)


@pytest.mark.parametrize("abi", ["x86_64", "arm64-v8a"])
def test_a_refusal_arrives_as_onnxruntimes_error(abi: str, model: Path) -> None:
    with pytest.raises(harness.ReplayError, match="EDGEKIT_ISA=sve9: this processor cannot run it; it has "):
        prepared(abi).run(model, isa="sve9")


@pytest.mark.parametrize("abi", ["x86_64", "arm64-v8a"])
def test_what_is_not_finite_is_refused(abi: str, tmp_path: Path) -> None:
    write_model(tmp_path, CASES[3:4])
    np.full((5, 300), np.nan, np.float32).tofile(tmp_path / "X0.bin")
    with pytest.raises(harness.ReplayError, match="TernaryMatMul: X holds NaN or infinity"):
        prepared(abi).run(tmp_path)
