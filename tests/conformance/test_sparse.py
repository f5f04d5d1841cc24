"""``ai.edgekit::SparseMatMul``: every instruction set of this processor against the numpy reference, bit for bit, the function
body to rounding, and what damaged bytes are answered with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import BundleError
from edgekit.lowbit.formats import CODECS, PackedTensor, sparse_rows, unpack_sparse
from edgekit.lowbit.functions import sparse_function
from edgekit.lowbit.reference import sparse_matmul
from edgekit.spec.formats import FORMATS
from tests.conformance.test_operators import ISAS, agree, native, refusal
from tests.support import operator_sessions as sessions

FORMAT_NAMES = tuple(name for name, row in FORMATS.items() if row.layout == "sparse")


def case(name: str, rows: int, n: int, k: int, zeros: float, seed: int) -> tuple[np.ndarray, PackedTensor, np.ndarray]:
    """X, W with codes of every value, and a bias."""
    random = np.random.default_rng(seed)
    bits = FORMATS[name].bits
    codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k)).astype(np.int8)
    codes[random.random((n, k)) < zeros] = 0
    scales = random.uniform(0.01, 2.0, n if seed % 2 else 1).astype(np.float32)
    x = (random.standard_normal((rows, k)) * random.uniform(0.01, 30)).astype(np.float32)
    weight = PackedTensor(name, (n, k), 128, sparse_rows.pack([codes], n, bits), scales)
    return x, weight, random.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("block", [0, 128])
@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 1, 2, 5, 17, 40]), n=st.integers(1, 90), k=st.integers(1, 700), seed=st.integers(0, 999),
    zeros=st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0]), with_bias=st.booleans(),
)  # fmt: skip
def test_any_shape_and_share_of_zeros(
    isa: str, name: str, block: int, rows: int, n: int, k: int, zeros: float, seed: int, with_bias: bool
) -> None:
    x, weight, offset = case(name, rows, n, k, zeros, seed)
    bias = offset if with_bias else None
    agree(sparse_matmul(x, weight, bias, block), native(isa, "SparseMatMul")(x, weight, bias, block), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("block", [0, 128])
def test_many_tokens_and_long_rows(isa: str, name: str, block: int) -> None:
    for rows, k in ((270, 1000), (1, 9000)):
        x, weight, bias = case(name, rows, 70, k, 0.8, 7)
        agree(sparse_matmul(x, weight, bias, block), native(isa, "SparseMatMul")(x, weight, bias, block), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_sums_do_not_overflow(isa: str, rows: int) -> None:
    """All codes at their limits over a long row: what 16-bit accumulators get wrong."""
    k = 6912
    codes = np.full((33, k), -128, np.int8)
    weight = PackedTensor("sparse-int8", (33, k), 128, sparse_rows.pack([codes], 33, 8), np.ones(1, np.float32))
    x = np.full((rows, k), 3.0, np.float32)
    agree(sparse_matmul(x, weight), native(isa, "SparseMatMul")(x, weight, None, 0), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 20])
def test_float16_and_leading_dimensions(isa: str, rows: int) -> None:
    x, weight, bias = case("sparse-int4", rows, 40, 300, 0.8, 3)
    half = x.astype(np.float16)
    expected = sparse_matmul(half.astype(np.float32), weight, bias).astype(np.float16)
    agree(expected, native(isa, "SparseMatMul")(half, weight, bias, 0), None)
    found = native(isa, "SparseMatMul")(x[None], weight, bias, 0)
    agree(sparse_matmul(x, weight, bias)[None], found, None)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("columns", [64, 300, 576])
@pytest.mark.parametrize("zeros", [0.0, 0.8, 1.0])
def test_the_function_body_reads_the_same_bytes(name: str, columns: int, zeros: float, with_bias: bool) -> None:
    """What runs without the library: MatMulNBits with 8 bits, activations rounded in blocks of 128."""
    x, weight, offset = case(name, 3, 96, columns, zeros, 5)
    bias = offset if with_bias else None
    found = sessions.of_function(sparse_function(), weight, bias, 0).run(None, {"X": x})[0]
    expected = sparse_matmul(x, weight, bias, 128)
    # It adds up 128 + w and takes 128 off again, in float: the error is one of that, however small the weights are.
    assert weight.scales is not None
    largest = 127 * np.abs(x).max() * np.abs(weight.scales).max() * columns
    assert np.abs(expected - found).max() <= 2**-22 * largest


@pytest.mark.parametrize("name", FORMAT_NAMES)
@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 300), zeros=st.floats(0, 1), seed=st.integers(0, 999), data=st.data())
def test_what_is_packed_comes_back_whole_and_in_parts(
    name: str, n: int, k: int, zeros: float, seed: int, data: st.DataObject
) -> None:
    random, bits = np.random.default_rng(seed), FORMATS[name].bits
    codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k)).astype(np.int8)
    codes[random.random((n, k)) < zeros] = 0
    middle = data.draw(st.integers(0, n))
    packed = sparse_rows.pack([codes[:middle], codes[middle:]], n, bits)
    assert len(packed) == sparse_rows.total_bytes(sparse_rows.row_bytes(codes, bits))
    np.testing.assert_array_equal(sparse_rows.unpack(packed, n, k, bits), codes)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    cut = sparse_rows.cut(packed, start, stop)
    np.testing.assert_array_equal(sparse_rows.unpack(cut, stop - start, k, bits), codes[start:stop])


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_zeros_stay_zero_and_bytes_follow_the_rate(name: str) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 2560)).astype(np.float32)
    weight[random.random(weight.shape) < 0.8] = 0
    packed = CODECS[name].quantize(weight, 0)
    codes = unpack_sparse(packed)
    assert not codes[weight == 0].any()
    stored = (codes != 0).mean() * FORMATS[name].bits
    assert 1 + stored < packed.bits_per_weight < 1 + stored + 0.08  # places of rows, scales, halves of bytes
    error = CODECS[name].dequantize(packed) - weight
    assert packed.scales is not None
    assert (np.abs(error) <= packed.scales[:, None].__abs__() * 0.5001).mean() > 0.99


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 5000), flip=st.integers(1, 255), rows=st.sampled_from([1, 2]))
def test_damaged_bytes_are_refused_or_other_weights_never_a_crash(at: int, flip: int, rows: int) -> None:
    """Both sides of one rule: where numpy refuses the bytes, so does the operator; where not, both read the same."""
    x, weight, _ = case("sparse-int4", rows, 20, 300, 0.8, 3)
    data = weight.data.copy()
    data[at % len(data)] ^= flip
    damaged = PackedTensor(weight.format, weight.shape, 128, data, weight.scales)
    try:
        expected = sparse_matmul(x, damaged)
    except BundleError:
        with pytest.raises(
            Exception, match=r"SparseMatMul: (row [0-9]+ of W has a mask that|W says that its rows are)"
        ):
            native(ISAS[0], "SparseMatMul")(x, damaged, None, 0)
    else:
        agree(expected, native(ISAS[0], "SparseMatMul")(x, damaged, None, 0), None)


def test_damage_is_named() -> None:
    x, packed, _ = case("sparse-int4", 1, 20, 300, 0.8, 3)
    weight = np.asarray(packed.data, np.uint8)
    given_arrays: dict[str, np.ndarray] = {"X": x, "W": weight.copy(), "scales": np.ones(1, np.float32)}
    sizes = {"K": 300, "N": 20, "bits": 4, "activation_block_size": 0}
    third = int(sparse_rows.row_places(weight, 20)[3])
    given_arrays["W"][third : third + 2] = 255
    expected = (
        "SparseMatMul: row 3 of W has a mask that does not fit its codes; the file is damaged, export or copy it again"
    )
    assert expected in refusal("SparseMatMul", given_arrays, **sizes)
    with pytest.raises(BundleError, match="sparse weight has a mask that does not fit its codes"):
        sparse_rows.unpack(given_arrays["W"], 20, 300, 4)
    short = {**given_arrays, "W": weight[:-1]}
    end = int(sparse_rows.row_places(weight, 20)[-1])
    expected = (
        f"SparseMatMul: W says that its rows are bytes 84 to {end}, 84 to {end - 1} expected; the file is damaged"
    )
    assert expected in refusal("SparseMatMul", short, **sizes)
    with pytest.raises(BundleError, match="sparse weight's rows are not one after the other"):
        sparse_rows.unpack(short["W"], 20, 300, 4)
    with pytest.raises(BundleError, match="sparse weight has 20 rows, 15 to 21 expected"):
        sparse_rows.cut(weight, 15, 21)
    with pytest.raises(BundleError, match="is too short for 20 rows"):
        sparse_rows.unpack(weight[:100], 20, 300, 4)
    assert "W has 100 bytes, at least" in refusal("SparseMatMul", {**given_arrays, "W": weight[:100]}, **sizes)
    assert "attribute bits is 5, 4 or 8 expected" in refusal("SparseMatMul", given_arrays, **{**sizes, "bits": 5})


def test_what_is_not_finite_is_refused() -> None:
    x, weight, _ = case("sparse-int8", 1, 20, 300, 0.8, 3)
    x[0, 299] = np.inf
    with pytest.raises(Exception, match="SparseMatMul: X holds NaN or infinity, which has no 8-bit code"):
        native(ISAS[0], "SparseMatMul")(x, weight, None, 0)
