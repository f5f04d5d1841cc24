"""``ai.edgekit::TernaryMatMul``, ``Int8MatMul`` and ``SparseMatMul``: one suite, each implementation against the integer-exact numpy reference.

Every instruction set that this processor has is forced in turn and must give the reference's very bits. Other processors
are covered in ``tests/native``, emulated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.formats import CODECS, PackedTensor, pack_t2
from edgekit.lowbit.functions import exact_function, int8_function, ternary_function
from edgekit.lowbit.library import load_library
from edgekit.lowbit.reference import activation_codes, int8_matmul, quantize_activations, ternary_matmul
from edgekit.metrics import tensor_distance
from tests.support import golden_operators as golden
from tests.support import operator_sessions as sessions

Run = Callable[[np.ndarray, PackedTensor, "np.ndarray | None", int], np.ndarray]


def exact_body(x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None, block: int) -> np.ndarray:
    """The operator's definition in standard operators, on ONNX Runtime."""
    session = sessions.of_function(exact_function(bias is not None), weight, bias, block)
    return np.asarray(session.run(None, {"X": x})[0])


def function_body(x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None, block: int) -> np.ndarray:
    """What a bundle carries: MatMulNBits with 2 bits, activations rounded in blocks of 128."""
    return np.asarray(sessions.of_function(ternary_function(), weight, bias, block).run(None, {"X": x})[0])


def native(isa: str, op: str = "TernaryMatMul") -> Run:
    def run(x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None, block: int) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEKIT_ISA", isa)
            session = sessions.native(op, x, weight, bias, block)
        return np.asarray(session.run(None, {"X": x})[0])

    return run


@dataclass(frozen=True)
class Implementation:
    run: Run
    blocks: tuple[int, ...]  # activation_block_size that it computes
    scales: tuple[str, ...]  # kinds of scales that it takes
    decibels: float | None  # least SQNR against the reference; None: the same bits


def _supported() -> tuple[str, ...]:
    library = load_library()
    assert library is not None, "EDGEKIT_OPS_LIBRARY=none would leave nothing to test"
    return library.supported


ISAS = _supported()
ALL = ("tensor", "row", "group")
IMPLEMENTATIONS = {
    "standard operators, exact": Implementation(exact_body, (0,), ("tensor", "row"), 120.0),
    "function body, MatMulNBits": Implementation(function_body, (128,), ALL, 110.0),
    **{f"native, {isa}": Implementation(native(isa), (0, 128), ALL, None) for isa in ISAS},
}


def agree(expected: np.ndarray, found: np.ndarray, decibels: float | None) -> None:
    if decibels is None:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
    else:
        assert tensor_distance(expected, found)["sqnr_db"] >= decibels


def case(rows: int, n: int, k: int, kind: str, seed: int) -> tuple[np.ndarray, PackedTensor, np.ndarray]:
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 2, (n, k)).astype(np.int8)
    shape = {"tensor": (1,), "row": (n,), "group": (n, -(-k // 128))}[kind]
    scales = random.uniform(0.01, 2.0, shape).astype(np.float32)
    x = (random.standard_normal((rows, k)) * random.uniform(0.01, 30)).astype(np.float32)
    return x, pack_t2(codes, scales), random.standard_normal(n).astype(np.float32)


def int8_case(rows: int, n: int, k: int, kind: str, seed: int) -> tuple[np.ndarray, PackedTensor, np.ndarray]:
    x, ternary, bias = case(rows, n, k, kind, seed)
    data = np.full((n, -(-k // 128) * 128), 128, np.uint8)
    data[:, :k] = np.random.default_rng(seed).integers(0, 256, (n, k))
    return x, PackedTensor("int8-channel", (n, k), 128, data.reshape(n, -1, 128), ternary.scales), bias


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("with_bias", [False, True])
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 40), n=st.integers(1, 90), k=st.integers(1, 700), seed=st.integers(0, 999))
def test_ternary_of_any_shape(name: str, kind: str, with_bias: bool, rows: int, n: int, k: int, seed: int) -> None:
    one = IMPLEMENTATIONS[name]
    x, weight, offset = case(rows, n, k, kind, seed)
    bias = offset if with_bias else None
    for block in one.blocks if kind in one.scales else ():
        agree(ternary_matmul(x, weight, bias, block), one.run(x, weight, bias, block), one.decibels)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", [0, 128])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40), n=st.integers(1, 90), k=st.integers(1, 700), seed=st.integers(0, 999),
    kind=st.sampled_from(["tensor", "row"]), with_bias=st.booleans(),
)  # fmt: skip
def test_int8_of_any_shape(
    isa: str, block: int, rows: int, n: int, k: int, seed: int, kind: str, with_bias: bool
) -> None:
    x, weight, offset = int8_case(rows, n, k, kind, seed)
    bias = offset if with_bias else None
    agree(int8_matmul(x, weight, bias, block), native(isa, "Int8MatMul")(x, weight, bias, block), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("block", [0, 128])
def test_many_tokens(isa: str, kind: str, block: int) -> None:
    """Enough for panels on every instruction set, and for more than one of them at a time."""
    x, weight, bias = case(270, 70, 1000, kind, 6)
    agree(ternary_matmul(x, weight, bias, block), native(isa)(x, weight, bias, block), None)
    if kind != "group":
        x, weight, bias = int8_case(270, 70, 1000, kind, 7)
        agree(int8_matmul(x, weight, bias, block), native(isa, "Int8MatMul")(x, weight, bias, block), None)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, 1e-44, 1e30])
@pytest.mark.parametrize("code", [-1, 0, 1])
def test_extremes(name: str, value: float, code: int) -> None:
    one = IMPLEMENTATIONS[name]
    weight = pack_t2(np.full((3, 300), code, np.int8), np.full(1, 0.5, np.float32))
    x = np.full((2, 300), value, np.float32)
    for block in one.blocks:
        found = one.run(x, weight, None, block)
        np.testing.assert_allclose(found, ternary_matmul(x, weight, None, block), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 130])
def test_sums_do_not_overflow(isa: str, rows: int) -> None:
    """All codes at their limits over a long row: what 16-bit accumulators get wrong."""
    k = 6912
    x = np.full((rows, k), 3.0, np.float32)
    ternary = pack_t2(np.ones((33, k), np.int8), np.ones(1, np.float32))
    expected = np.float32(127 * k) * activation_codes(x, 0)[1][0, 0]
    assert (native(isa)(x, ternary, None, 0) == expected).all()
    int8 = PackedTensor("int8-channel", (33, k), 128, np.zeros((33, k // 128, 128), np.uint8), np.ones(1, np.float32))
    expected = np.float32(-128 * 127 * k) * activation_codes(x, 0)[1][0, 0]
    assert (native(isa, "Int8MatMul")(x, int8, None, 0) == expected).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_float16(isa: str, rows: int) -> None:
    """X widened exactly, Y rounded to nearest; what is too large becomes infinity."""
    x, weight, bias = case(rows, 40, 300, "row", 3)
    half = x.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (ternary_matmul(half.astype(np.float32), weight, bias) * np.float32(1)).astype(np.float16)
    agree(expected, native(isa)(half, weight, bias, 0), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(0, 300), (2, 0, 300), (2, 3, 300), (300,)])
def test_leading_dimensions(isa: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = case(6, 40, 300, "row", 4)
    given_x = np.resize(x, shape).astype(np.float32)
    found = native(isa)(given_x, weight, bias, 0)
    assert found.shape == (*shape[:-1], 40)
    agree(ternary_matmul(given_x.reshape(-1, 300), weight, bias).reshape(found.shape), found, None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_not_finite_is_refused(isa: str, value: float, rows: int) -> None:
    x, weight, _ = case(rows, 40, 300, "row", 5)
    x[-1, 299] = value
    message = "TernaryMatMul: X holds NaN or infinity, which has no 8-bit code; look for the first layer"
    with pytest.raises(Exception, match=message):
        native(isa)(x, weight, None, 0)


@pytest.mark.parametrize(("isa", "threads"), [*((isa, 2) for isa in ISAS), (ISAS[0], 1), (ISAS[0], 4)])
def test_golden_vectors(isa: str, threads: int, tmp_path: Path) -> None:
    """The bits that every implementation in every language gives; in a process that knows nothing of edgekit."""
    outputs = golden.write_model(tmp_path)
    library = load_library()
    assert library is not None
    script = Path(golden.__file__).with_name("replay_golden.py")
    command = [sys.executable, str(script), str(tmp_path), str(library.path), str(threads)]
    environment = {**os.environ, "EDGEKIT_ISA": isa, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["version"].split()[1] == isa
    assert (found["outputs"], found["differing"]) == (outputs, [])
    assert found["version"].endswith(f"; {len(golden.golden())}")  # the operators ran, as many as there are nodes


def refusal(op: str, arrays: dict[str, np.ndarray], **attributes: Any) -> str:
    """What the operator says of these inputs, given when it runs (ONNX Runtime cannot check them before)."""
    library = load_library()
    assert library is not None
    kinds = {name: ir.tensor(array).dtype for name, array in arrays.items()}
    inputs = [sessions.graph_input(kind, arrays[name].ndim, name) for name, kind in kinds.items()]
    with pytest.raises(Exception, match=op) as caught:
        session = sessions.one_node("ai.edgekit", op, inputs, library=library.path, **attributes)
        session.run(None, arrays)
    return str(caught.value)


GOOD: dict[str, np.ndarray] = {
    "X": np.zeros((2, 300), np.float32), "W": np.zeros((40, 3, 32), np.uint8), "scales": np.ones(1, np.float32),
    "bias": np.zeros(40, np.float32),
}  # fmt: skip
SIZES: dict[str, Any] = {"K": 300, "N": 40, "activation_block_size": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((2, 299), np.float32)}, "TernaryMatMul: X [2, 299] has 299 columns, 300 expected (attribute K)"),
        ({"W": np.zeros((40, 2, 32), np.uint8)}, "TernaryMatMul: W is [40, 2, 32], [40, 3, 32] expected (N, K/128 rounded up, bytes of a block)"),
        ({"W": np.zeros((39, 3, 32), np.uint8)}, "TernaryMatMul: W is [39, 3, 32], [40, 3, 32] expected"),
        ({"W": np.zeros((40, 96), np.uint8)}, "TernaryMatMul: W is [40, 96], [40, 3, 32] expected"),
        ({"scales": np.ones(39, np.float32)}, "TernaryMatMul: scales are [39], [1], [40] or [40, 3] expected"),
        ({"scales": np.ones((40, 2), np.float32)}, "TernaryMatMul: scales are [40, 2], [1], [40] or [40, 3] expected"),
        ({"bias": np.zeros(41, np.float32)}, "TernaryMatMul: bias is [41], [40] expected"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    assert message in refusal("TernaryMatMul", {**GOOD, **changed}, **SIZES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"K": 0}, "TernaryMatMul: attribute K is 0, 1 to 4194304 expected"),
        ({"K": 1 << 23}, "TernaryMatMul: attribute K is 8388608, 1 to 4194304 expected"),
        ({"K": -5}, "TernaryMatMul: attribute K is -5, 1 to 4194304 expected"),
        ({"N": 0}, "TernaryMatMul: attribute N is 0, 1 to 2^31 - 1 expected"),
        ({"N": 1 << 40}, "TernaryMatMul: attribute N is 1099511627776, 1 to 2^31 - 1 expected"),
        ({"activation_block_size": 64}, "TernaryMatMul: attribute activation_block_size is 64, 0 (per token) or 128 expected"),
    ],
)  # fmt: skip
def test_attributes_out_of_range_are_refused(changed: dict[str, int], message: str) -> None:
    assert message in refusal("TernaryMatMul", GOOD, **{**SIZES, **changed})


@pytest.mark.parametrize("name", ["K", "N", "activation_block_size", "bits"])
def test_a_missing_attribute_is_named_with_its_operator(name: str) -> None:
    operator = "SparseMatMul" if name == "bits" else "TernaryMatMul"
    given: dict[str, Any] = {key: size for key, size in {**SIZES, "bits": 4}.items() if key != name}
    message = f"{operator}: attribute {name} is missing or no integer; export the model again"
    assert message in refusal(operator, {**GOOD, "W": np.zeros(40, np.uint8)}, **given)


def test_sums_begin_at_positive_zero() -> None:
    """-0 from a negative scale does not get through: 0 + -0 is 0, and so is 0 + a bias of -0."""
    arrays = {**GOOD, "scales": -np.ones(1, np.float32), "bias": np.full(40, -0.0, np.float32)}
    inputs = [sessions.graph_input(ir.DataType.FLOAT, 2), sessions.graph_input(ir.DataType.UINT8, 3, "W")]
    inputs += [sessions.graph_input(ir.DataType.FLOAT, 1, name) for name in ("scales", "bias")]
    library = load_library()
    assert library is not None
    session = sessions.one_node("ai.edgekit", "TernaryMatMul", inputs, library=library.path, **SIZES)
    assert not np.signbit(session.run(None, arrays)[0]).any()


def test_int8_refuses_scales_of_blocks() -> None:
    arrays = {**GOOD, "W": np.zeros((40, 3, 128), np.uint8), "scales": np.ones((40, 3), np.float32)}
    assert "Int8MatMul: scales are [40, 3], [1], [40] expected" in refusal("Int8MatMul", arrays, **SIZES)


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_library()
    assert library is not None
    monkeypatch.setenv("EDGEKIT_ISA", "sve9")
    options = onnxruntime.SessionOptions()
    message = f"EDGEKIT_ISA=sve9: this processor cannot run it; it has {' '.join(ISAS)}. Unset EDGEKIT_ISA"
    with pytest.raises(Exception, match=message):
        options.register_custom_ops_library(str(library.path))


@pytest.mark.parametrize("format_name", ["int8", "int4"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_matmul_nbits_rounds_as_the_reference_says(format_name: str, block: int, rows: int) -> None:
    """What the compressed PyTorch model is built on: dequantized weights times rounded activations."""
    random = np.random.default_rng(0)
    weight = CODECS[format_name].quantize(random.standard_normal((96, 576)).astype(np.float32), block)
    x = random.standard_normal((rows, 576)).astype(np.float32)
    found = sessions.matmul_nbits(weight).run(None, {"X": x})[0]
    expected = quantize_activations(x, block) @ CODECS[format_name].dequantize(weight).T
    assert tensor_distance(expected, found)["sqnr_db"] >= 110


@pytest.mark.parametrize("format_name", ["int8", "int4"])
@pytest.mark.parametrize("block", [32, 64])
def test_lookup_reads_the_bytes_of_the_product(format_name: str, block: int) -> None:
    weight = CODECS[format_name].quantize(np.random.default_rng(0).standard_normal((50, 576)).astype(np.float32), block)
    ids = np.array([0, 49, 7, 7], np.int64)
    found = sessions.gather_quantized(weight).run(None, {"X": ids})[0]
    np.testing.assert_array_equal(found, CODECS[format_name].dequantize(weight)[ids])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("columns", [256, 576])
def test_the_body_of_int8_matmul_reads_the_same_bytes(columns: int, with_bias: bool) -> None:
    """What runs without the library: MatMulNBits with 8 bits, activations rounded in blocks of 128."""
    random = np.random.default_rng(0)
    weight = CODECS["int8-channel"].quantize(random.standard_normal((96, columns)).astype(np.float32), 0)
    bias = random.standard_normal(96).astype(np.float32) if with_bias else None
    x = random.standard_normal((3, columns)).astype(np.float32)
    found = sessions.of_function(int8_function(), weight, bias, 0).run(None, {"X": x})[0]
    assert tensor_distance(int8_matmul(x, weight, bias, 128), found)["sqnr_db"] >= 110
