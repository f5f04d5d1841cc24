"""Weight formats: what is packed comes back, row by row, and its size is counted whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats import CODECS, detect_ternary, pack_t2, unpack_t2

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 300))


def gaussian(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(SHAPES, st.integers(0, 99))
def test_ternary_codes_come_back(shape: tuple[int, int], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    packed = pack_t2(codes, np.ones(1, np.float32))
    np.testing.assert_array_equal(unpack_t2(packed), codes)
    assert packed.data.shape == (shape[0], -(-shape[1] // 128), 32)


def test_ternary_bytes() -> None:
    """-1, 0, 1, 1 are the codes 0, 1, 2, 2, lowest bits first; padding is the code 1."""
    packed = pack_t2(np.array([[-1, 0, 1, 1]], np.int8), np.ones(1, np.float32))
    assert packed.data[0, 0, 0] == 0b10_10_01_00
    assert (packed.data[0, 0, 1:] == 0b01_01_01_01).all()


@pytest.mark.parametrize("name", CODECS)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_rows_of_a_packed_weight_are_the_packed_rows(name: str, shape: tuple[int, int], seed: int) -> None:
    weight = gaussian(shape, seed) if name != "t2" else np.sign(gaussian(shape, seed)) * 0.5
    whole, half = CODECS[name].quantize(weight, 0), shape[0] // 2
    part, alone = whole.rows(half, shape[0]), CODECS[name].quantize(weight[half:], 0)
    np.testing.assert_array_equal(CODECS[name].dequantize(part), CODECS[name].dequantize(alone))


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.51 / 127), ("int4", 1.01 / 8), ("int4-fp16", 1.01 / 8)])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_rounding_stays_within_a_step(name: str, bound: float, block: int, shape: tuple[int, int], seed: int) -> None:
    weight = gaussian(shape, seed)
    found = CODECS[name].dequantize(CODECS[name].quantize(weight, block))
    for start in range(0, shape[1], block):
        part = np.s_[:, start : start + block]
        largest = np.abs(weight[part]).max(axis=1, keepdims=True)
        assert (np.abs(found[part] - weight[part]) <= bound * largest + 1e-7).all()


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp32", 32),
        ("fp16", 16),
        ("int8", 8 + 32 / 64),
        ("int8-channel", 8 + 32 / 256),
        ("int4", 4 + 32 / 64),
        ("int4-fp16", 4 + 16 / 32),
        ("t2", 2 + 32 / 256),
    ],
)
def test_bits_per_weight_count_scales(name: str, bits: float) -> None:
    weight = gaussian((4, 256))
    if name == "t2":
        weight = np.sign(weight) * np.arange(1, 5, dtype=np.float32)[:, None]
    assert CODECS[name].quantize(weight, 0).bits_per_weight == bits


def test_padding_is_counted() -> None:
    assert CODECS["int4"].quantize(gaussian((1, 65)), 64).bits_per_weight == 8 * (64 + 8) / 65


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_rounding_by_row_stays_within_a_step(shape: tuple[int, int], seed: int) -> None:
    weight = gaussian(shape, seed)
    found = CODECS["int8-channel"].dequantize(CODECS["int8-channel"].quantize(weight, 0))
    largest = np.abs(weight).max(axis=1, keepdims=True)
    assert (np.abs(found - weight) <= 0.51 / 127 * largest + 1e-7).all()


@pytest.mark.parametrize("name", ["int8", "int8-channel", "int4", "int4-fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(name: str, bad: float) -> None:
    weight = gaussian((3, 64))
    weight[1, 7] = bad
    with pytest.raises(UnsupportedError, match="NaN or infinity"):
        CODECS[name].quantize(weight, 0)


@pytest.mark.parametrize("part", [1, 2, 3, 5, 6, 7])
def test_multiples_of_a_float16_step_are_kept_exactly(part: int) -> None:
    """Also where all codes are multiples of one number, so that a coarser step would do that float16 does not hold."""
    step = np.float32(np.float16(0.0012345))
    codes = np.random.default_rng(0).integers(-(7 // part), 7 // part + 1, (4, 96)) * part
    weight = (codes * step).astype(np.float32)
    packed = CODECS["int4-fp16"].quantize(weight, 32)
    assert packed.scales is not None and packed.scales.dtype == np.float16
    np.testing.assert_array_equal(CODECS["int4-fp16"].dequantize(packed), weight)


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(UnsupportedError, match=r"scales of up to 1e\+06, float16 holds at most 65504; use int4"):
        CODECS["int4-fp16"].quantize(np.full((1, 2), 1e6, np.float32), 0)
    with pytest.raises(UnsupportedError, match="float16 holds at most 65504"):
        CODECS["fp16"].quantize(np.full((1, 2), 1e6, np.float32), 0)


@pytest.mark.parametrize("name", ["int8", "int8-channel", "int4", "int4-fp16"])
def test_zero_and_tiny_weights(name: str) -> None:
    for weight in (np.zeros((2, 64), np.float32), np.full((2, 64), 1e-44, np.float32)):
        assert np.isfinite(CODECS[name].dequantize(CODECS[name].quantize(weight, 0))).all()


@pytest.mark.parametrize(("shape", "scales"), [((1,), "tensor"), ((6,), "row"), ((6, 3), "group")])
def test_ternary_is_detected_with_its_scales(shape: tuple[int, ...], scales: str) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-1, 2, (6, 300)).astype(np.float32)
    values = random.uniform(0.5, 2.0, shape).astype(np.float32)
    spread = np.repeat(values, 128, axis=1)[:, :300] if scales == "group" else values.reshape(-1, 1)
    weight = codes * spread
    found = detect_ternary(weight)
    assert found is not None
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(CODECS["t2"].dequantize(CODECS["t2"].quantize(weight, 0)), weight)


def test_ordinary_weights_are_not_ternary() -> None:
    weight = gaussian((8, 256))
    assert detect_ternary(weight) is None
    with pytest.raises(UnsupportedError, match=r"distinct magnitudes, t2 needs"):
        CODECS["t2"].quantize(weight, 0)
    assert detect_ternary(np.zeros((2, 5), np.float32)) is not None
