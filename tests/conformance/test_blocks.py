"""``ai.edgekit::Int4MatMul`` and ``Int8BlockMatMul``: every instruction set of this processor against the numpy reference, bit
for bit, the function body to rounding, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.formats import CODECS, PackedTensor
from edgekit.lowbit.functions import FUNCTIONS
from edgekit.lowbit.library import load_library
from edgekit.lowbit.reference import block_matmul
from edgekit.metrics import tensor_distance
from edgekit.spec.formats import FORMATS, STOCK_BLOCKS
from tests.conformance.test_operators import ISAS, agree, native, refusal
from tests.support import operator_sessions as sessions

FORMAT = pytest.mark.parametrize("format_name", ["int4", "int4-fp16", "int8"])


def operator(format_name: str) -> str:
    return FORMATS[format_name].operator


def case(
    format_name: str, rows: int, n: int, k: int, block: int, seed: int
) -> tuple[np.ndarray, PackedTensor, np.ndarray]:
    """X, W with codes of every value and scales of both signs, and a bias."""
    random = np.random.default_rng(seed)
    scales = random.uniform(-2.0, 2.0, (n, -(-k // block))).astype(scale_type(format_name))
    if scales.dtype == np.float16:  # subnormal ones too
        scales[random.random(scales.shape) < 0.2] *= np.float16(2e-5)
    x = (random.standard_normal((rows, k)) * random.uniform(0.01, 30)).astype(np.float32)
    codes = random.integers(0, 1 << FORMATS[format_name].bits, (n, k))
    return x, packed(format_name, codes, block, scales), random.standard_normal(n).astype(np.float32)


def packed(format_name: str, codes: np.ndarray, block: int, scales: np.ndarray) -> PackedTensor:
    """Codes from 0 on, [N, K], as the format stores them."""
    (n, k), bits = codes.shape, FORMATS[format_name].bits
    padded = np.full((n, -(-k // block) * block), 1 << (bits - 1), np.uint8)
    padded[:, :k] = codes
    data = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << 4
    scales = scales.astype(scale_type(format_name))
    return PackedTensor(format_name, (n, k), block, data.reshape(n, -1, block * bits // 8), scales)


def scale_type(format_name: str) -> type[np.floating]:
    return np.float16 if FORMATS[format_name].scale_bits == 16 else np.float32


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", STOCK_BLOCKS)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40), n=st.integers(1, 90), k=st.integers(1, 700), seed=st.integers(0, 999),
    in_blocks=st.booleans(), with_bias=st.booleans(),
)  # fmt: skip
def test_any_shape(
    format_name: str, isa: str, block: int, rows: int, n: int, k: int, seed: int, in_blocks: bool, with_bias: bool
) -> None:
    x, weight, offset = case(format_name, rows, n, k, block, seed)
    bias, own = offset if with_bias else None, block if in_blocks else 0
    agree(block_matmul(x, weight, bias, own), native(isa, operator(format_name))(x, weight, bias, own), None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", STOCK_BLOCKS)
def test_many_tokens_and_long_rows(format_name: str, isa: str, block: int) -> None:
    """Enough for panels on every instruction set, and for more than one of them at a time."""
    for rows, n, k in ((270, 70, 1000), (129, 70, 6912), (1, 70, 9000), (4, 33, 9000)):
        x, weight, bias = case(format_name, rows, n, k, block, 7)
        for own in (0, block):
            agree(block_matmul(x, weight, bias, own), native(isa, operator(format_name))(x, weight, bias, own), None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", STOCK_BLOCKS)
@pytest.mark.parametrize("rows", [1, 3, 20, 130])
@pytest.mark.parametrize("largest", [False, True])
def test_sums_do_not_overflow(format_name: str, isa: str, block: int, rows: int, largest: bool) -> None:
    """All codes at their limits over a long row: what 16-bit accumulators get wrong."""
    k, code = 4096, (1 << FORMATS[format_name].bits) - 1 if largest else 0
    weight = packed(format_name, np.full((33, k), code), block, np.ones((33, k // block), np.float32))
    x = np.full((rows, k), -3.0, np.float32)
    for own in (0, block):
        agree(block_matmul(x, weight, None, own), native(isa, operator(format_name))(x, weight, None, own), None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-38, 1e-44, 1e30])
@pytest.mark.parametrize("rows", [1, 20])
def test_extremes(format_name: str, isa: str, value: float, rows: int) -> None:
    weight = case(format_name, 1, 40, 300, 64, 5)[1]
    x = np.full((rows, 300), value, np.float32)
    for own in (0, 64):
        agree(block_matmul(x, weight, None, own), native(isa, operator(format_name))(x, weight, None, own), None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 5, 20])
def test_float16(format_name: str, isa: str, rows: int) -> None:
    """X widened exactly, Y rounded to nearest; what is too large becomes infinity."""
    x, weight, bias = case(format_name, rows, 40, 300, 32, 3)
    half = x.astype(np.float16)
    bias[0] = 1e6
    with np.errstate(over="ignore"):
        expected = block_matmul(half.astype(np.float32), weight, bias, 32).astype(np.float16)
    assert np.isinf(expected).any()
    agree(expected, native(isa, operator(format_name))(half, weight, bias, 32), None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(0, 300), (2, 0, 300), (2, 3, 300), (300,)])
def test_leading_dimensions(format_name: str, isa: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = case(format_name, 6, 40, 300, 16, 4)
    given_x = np.resize(x, shape).astype(np.float32)
    found = native(isa, operator(format_name))(given_x, weight, bias, 0)
    assert found.shape == (*shape[:-1], 40)
    agree(block_matmul(given_x.reshape(-1, 300), weight, bias).reshape(found.shape), found, None)


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("own", [0, 32])
def test_what_is_not_finite_is_refused(format_name: str, isa: str, value: float, own: int) -> None:
    x, weight, _ = case(format_name, 20, 40, 300, 32, 5)
    x[-1, 299] = value
    with pytest.raises(
        Exception,
        match=f"{operator(format_name)}: X holds NaN or infinity, which has no 8-bit code; look for the first layer",
    ):
        native(isa, operator(format_name))(x, weight, None, own)


@pytest.mark.parametrize("isa", ISAS)
def test_every_float16_is_the_float32_that_it_is(isa: str) -> None:
    """All scales there are: a code and an activation of 1 give each back."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    scales = every[np.isfinite(every)].reshape(-1, 8)
    codes = np.zeros((len(scales), 8 * 32), np.uint8) + np.uint8(8)
    codes[:, ::32] = 9
    for block in range(8):
        for rows in (1, 20):
            x = np.zeros((rows, 256), np.float32)
            x[:, 32 * block] = 127.0
            found = native(isa, "Int4MatMul")(x, packed("int4-fp16", codes, 32, scales), None, 32)
            expected = np.float32(127) * scales[:, block].astype(np.float32) + np.float32(0)
            np.testing.assert_array_equal(found.view(np.uint32), np.tile(expected, (rows, 1)).view(np.uint32))


@FORMAT
@pytest.mark.parametrize("isa", ISAS)
def test_scales_that_are_not_finite_give_nan(format_name: str, isa: str) -> None:
    for rows in (1, 20):
        x, weight, _ = case(format_name, rows, 40, 300, 64, 5)
        assert weight.scales is not None
        weight.scales[3, 1] = np.nan
        found = native(isa, operator(format_name))(x, weight, None, 64)
        assert np.isnan(found[:, 3]).all() and np.isfinite(np.delete(found, 3, axis=1)).all()


GOOD: dict[str, np.ndarray] = {
    "X": np.zeros((2, 300), np.float32), "scales": np.ones((40, 5), np.float32), "bias": np.zeros(40, np.float32),
}  # fmt: skip
SIZES: dict[str, Any] = {"K": 300, "N": 40, "block_size": 64, "activation_block_size": 0}


def good(format_name: str) -> dict[str, np.ndarray]:
    w = np.zeros((40, 5, 8 * FORMATS[format_name].bits), np.uint8)
    return {"X": GOOD["X"], "W": w, "scales": GOOD["scales"].astype(scale_type(format_name)), "bias": GOOD["bias"]}


@FORMAT
def test_sums_begin_at_positive_zero(format_name: str) -> None:
    """-0 from a negative scale does not get through: 0 + -0 is 0, and so is 0 + a bias of -0."""
    arrays = {**good(format_name), "scales": -good(format_name)["scales"], "bias": np.full(40, -0.0, np.float32)}
    inputs = [sessions.graph_input(ir.tensor(array).dtype, array.ndim, name) for name, array in arrays.items()]
    library = load_library()
    assert library is not None
    session = sessions.one_node("ai.edgekit", operator(format_name), inputs, library=library.path, **SIZES)
    assert not np.signbit(session.run(None, arrays)[0]).any()


@FORMAT
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((2, 299), np.float32)}, "X [2, 299] has 299 columns, 300 expected (attribute K)"),
        ({"W": np.zeros((40, 3, 64), np.uint8)}, "W is [40, 3, 64], [40, 5, {bytes}] expected (N, K/64 rounded up, bytes of a block)"),
        ({"W": np.zeros((40, 4, 32), np.uint8)}, "W is [40, 4, 32], [40, 5, {bytes}] expected"),
        ({"W": np.zeros((39, 5, 32), np.uint8)}, "W is [39, 5, 32], [40, 5, {bytes}] expected"),
        ({"W": np.zeros((40, 160), np.uint8)}, "W is [40, 160], [40, 5, {bytes}] expected"),
        ({"scales": np.ones(1, np.float32)}, "scales are [1], [40, 5] expected"),
        ({"scales": np.ones(40, np.float32)}, "scales are [40], [40, 5] expected"),
        ({"scales": np.ones((40, 3), np.float32)}, "scales are [40, 3], [40, 5] expected"),
        ({"scales": np.ones((40, 5, 1), np.float32)}, "scales are [40, 5, 1], [40, 5] expected"),
        ({"bias": np.zeros(41, np.float32)}, "bias is [41], [40] expected"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(format_name: str, changed: dict[str, np.ndarray], message: str) -> None:
    expected = f"{operator(format_name)}: {message.format(bytes=8 * FORMATS[format_name].bits)}"
    arrays = {**good(format_name), **changed}
    arrays["scales"] = arrays["scales"].astype(scale_type(format_name))
    assert expected in refusal(operator(format_name), arrays, **SIZES)


@pytest.mark.parametrize(("op", "kind"), [("Int4MatMul", np.float64), ("Int8BlockMatMul", np.float16)])
def test_scales_of_another_type_are_refused(op: str, kind: type[np.floating]) -> None:
    """By ONNX Runtime, which knows what the operator takes; the operator's own words are in tests/native."""
    arrays = good("int4" if op == "Int4MatMul" else "int8")
    found = refusal(op, {**arrays, "scales": arrays["scales"].astype(kind)}, **SIZES)
    assert f"of input parameter (scales) of operator ({op}) in node (node) is invalid" in found


@FORMAT
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"K": 0}, "attribute K is 0, 1 to 131072 expected"),
        ({"K": 1 << 23}, "attribute K is 8388608, 1 to 131072 expected"),
        ({"N": 0}, "attribute N is 0, 1 to 2^31 - 1 expected"),
        ({"block_size": 48}, "attribute block_size is 48, 16, 32, 64, 128 or 256 expected"),
        ({"block_size": 0}, "attribute block_size is 0, 16, 32, 64, 128 or 256 expected"),
        ({"block_size": 512}, "attribute block_size is 512, 16, 32, 64, 128 or 256 expected"),
        ({"activation_block_size": 32}, "attribute activation_block_size is 32, 0 (per token) or 64 expected"),
        ({"activation_block_size": -1}, "attribute activation_block_size is -1, 0 (per token) or 64 expected"),
    ],
)  # fmt: skip
def test_attributes_out_of_range_are_refused(format_name: str, changed: dict[str, int], message: str) -> None:
    found = refusal(operator(format_name), good(format_name), **{**SIZES, **changed})
    assert f"{operator(format_name)}: {message}" in found


@FORMAT
@pytest.mark.parametrize("name", SIZES)
def test_a_missing_attribute_is_named(format_name: str, name: str) -> None:
    given_sizes = {key: size for key, size in SIZES.items() if key != name}
    message = f"{operator(format_name)}: attribute {name} is missing or no integer; export the model again"
    assert message in refusal(operator(format_name), good(format_name), **given_sizes)


@FORMAT
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block", STOCK_BLOCKS)
@pytest.mark.parametrize("columns", [100, 256, 576])
def test_the_function_body_reads_the_same_bytes(format_name: str, columns: int, block: int, with_bias: bool) -> None:
    """What runs without the operator, be there no library or an older one: MatMulNBits with the same rounding."""
    x, weight, offset = case(format_name, 3, 96, columns, block, 0)
    bias = offset if with_bias else None
    found = sessions.of_function(FUNCTIONS[operator(format_name)](), weight, bias, block).run(None, {"X": x})[0]
    assert tensor_distance(block_matmul(x, weight, bias, block), found)["sqnr_db"] >= 110


@FORMAT
@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 300), block=st.sampled_from(STOCK_BLOCKS), seed=st.integers(0, 999))
def test_codes_times_scales_are_the_weight(format_name: str, n: int, k: int, block: int, seed: int) -> None:
    """What the reference multiplies with is what the format says."""
    weight = case(format_name, 1, n, k, block, seed)[1]
    exact = np.eye(k, dtype=np.float32) * np.float32(127)  # a step of 1
    values = block_matmul(exact, weight) / np.float32(127)
    np.testing.assert_allclose(values.T, CODECS[format_name].dequantize(weight), rtol=1e-6)
