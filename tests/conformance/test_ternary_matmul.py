"""``ai.edgekit::TernaryMatMul``: one suite, each implementation against the integer-exact numpy reference.

A native kernel joins as one more line in IMPLEMENTATIONS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.formats import FORMATS, PackedTensor, pack_t2
from edgekit.lowbit.functions import exact_function, ternary_function
from edgekit.lowbit.reference import activation_codes, quantize_activations, ternary_matmul
from edgekit.metrics import tensor_distance
from tests.conformance import sessions

Run = Callable[[np.ndarray, PackedTensor, np.ndarray | None], np.ndarray]


def exact_body(x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None) -> np.ndarray:
    """The operator's definition in standard operators, on ONNX Runtime."""
    session = sessions.ternary(exact_function(bias is not None), weight, bias, 0)
    return np.asarray(session.run(None, {"X": x})[0])


def function_body(x: np.ndarray, weight: PackedTensor, bias: np.ndarray | None) -> np.ndarray:
    """What a bundle carries: MatMulNBits with 2 bits, activations rounded in blocks of 128."""
    return np.asarray(sessions.ternary(ternary_function(), weight, bias, 128).run(None, {"X": x})[0])


IMPLEMENTATIONS: dict[str, tuple[Run, int, float]] = {
    # name: how it is run, the activation block of the reference it is compared with, least SQNR in dB
    "standard operators, exact": (exact_body, 0, 120.0),
    "function body, MatMulNBits": (function_body, 128, 110.0),
}


def case(rows: int, n: int, k: int, kind: str, seed: int) -> tuple[np.ndarray, PackedTensor, np.ndarray]:
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 2, (n, k)).astype(np.int8)
    shape = {"tensor": (1,), "row": (n,), "group": (n, -(-k // 128))}[kind]
    scales = random.uniform(0.01, 2.0, shape).astype(np.float32)
    x = (random.standard_normal((rows, k)) * random.uniform(0.01, 30)).astype(np.float32)
    return x, pack_t2(codes, scales), random.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["tensor", "row", "group"])
@pytest.mark.parametrize("with_bias", [False, True])
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), n=st.integers(1, 40), k=st.integers(1, 400), seed=st.integers(0, 999))
def test_any_shape(name: str, kind: str, with_bias: bool, rows: int, n: int, k: int, seed: int) -> None:
    run, block, decibels = IMPLEMENTATIONS[name]
    if run is exact_body and kind == "group":
        return  # its definition has one scale a row
    x, weight, offset = case(rows, n, k, kind, seed)
    bias = offset if with_bias else None
    expected = ternary_matmul(x, weight, bias, block)
    assert tensor_distance(expected, run(x, weight, bias))["sqnr_db"] >= decibels


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, 1e-44, 1e30])
@pytest.mark.parametrize("code", [-1, 0, 1])
def test_extremes(name: str, value: float, code: int) -> None:
    run, block, _ = IMPLEMENTATIONS[name]
    weight = pack_t2(np.full((3, 300), code, np.int8), np.full(1, 0.5, np.float32))
    x = np.full((2, 300), value, np.float32)
    np.testing.assert_allclose(run(x, weight, None), ternary_matmul(x, weight, None, block), rtol=1e-5, atol=1e-30)


def test_sums_are_integers() -> None:
    """All codes at their limit over a long row: what 16-bit accumulators get wrong."""
    x = np.full((1, 6912), 3.0, np.float32)
    weight = pack_t2(np.ones((1, 6912), np.int8), np.ones(1, np.float32))
    codes, steps = activation_codes(x, 0)
    assert codes.min() == codes.max() == 127
    assert ternary_matmul(x, weight)[0, 0] == np.float32(127 * 6912) * steps[0, 0]


@pytest.mark.parametrize("format_name", ["int8", "int4"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_matmul_nbits_rounds_as_the_reference_says(format_name: str, block: int, rows: int) -> None:
    """What the compressed PyTorch model is built on: dequantized weights times rounded activations."""
    random = np.random.default_rng(0)
    weight = FORMATS[format_name].quantize(random.standard_normal((96, 576)).astype(np.float32), block)
    x = random.standard_normal((rows, 576)).astype(np.float32)
    found = sessions.matmul_nbits(weight).run(None, {"X": x})[0]
    expected = quantize_activations(x, block) @ FORMATS[format_name].dequantize(weight).T
    assert tensor_distance(expected, found)["sqnr_db"] >= 110


@pytest.mark.parametrize("format_name", ["int8", "int4"])
@pytest.mark.parametrize("block", [32, 64])
def test_lookup_reads_the_bytes_of_the_product(format_name: str, block: int) -> None:
    weight = FORMATS[format_name].quantize(
        np.random.default_rng(0).standard_normal((50, 576)).astype(np.float32), block
    )
    ids = np.array([0, 49, 7, 7], np.int64)
    found = sessions.gather_quantized(weight).run(None, {"X": ids})[0]
    np.testing.assert_array_equal(found, FORMATS[format_name].dequantize(weight)[ids])
