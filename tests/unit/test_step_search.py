"""Scales of int4 searched with the inputs' mean squares: never worse than the largest weight's, exact where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.lowbit.formats import CODECS, PackedTensor
from edgekit.lowbit.formats.integers import quantize_int4
from edgekit.lowbit.step_search import search_scales

Floats = NDArray[np.float32]


def weighted_error(weight: Floats, moments: Floats, packed: PackedTensor) -> NDArray[np.float64]:
    """Of each block [n, blocks]."""
    rest = (CODECS["int4"].dequantize(packed).astype(np.float64) - weight) ** 2 * moments
    rest = np.pad(rest, ((0, 0), (0, -weight.shape[1] % packed.block_size)))
    return np.asarray(rest.reshape(len(weight), -1, packed.block_size).sum(-1))


@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.sampled_from([16, 33, 64, 130]),
    block=st.sampled_from([16, 32, 64]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_block_loses_more_than_with_its_largest_weight(
    seed: int, columns: int, block: int, scale: float, spread: float
) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_t(3, (5, columns)) * scale).astype(np.float32)
    weight[random.random(weight.shape) < 0.1] = 0
    weight[0] = 0
    moments = np.exp(spread * random.standard_normal(columns)).astype(np.float32)
    moments[random.random(columns) < 0.1] = 0
    plain, searched = (quantize_int4(weight, block, m) for m in (None, moments))
    before, after = (weighted_error(weight, moments, packed) for packed in (plain, searched))
    assert (after <= before * (1 + 1e-5)).all()
    assert searched.nbytes == plain.nbytes
    assert np.isfinite(CODECS["int4"].dequantize(searched)).all()


def test_a_block_worked_out_by_hand() -> None:
    """The large weight meets an input that is nearly always zero: it is clipped, and all others become exact.

    Values 10, 1, 2, ..., 7 with mean squares 1e-9 and 1: step 1 stores 1 to 7, and 10 as 7.
    """
    block = np.array([[[10, 1, 2, 3, 4, 5, 6, 7]]], np.float32)
    moments = np.array([[1e-9, 1, 1, 1, 1, 1, 1, 1]], np.float32)
    plain = np.array([[10 / -8]], np.float32)
    scale = search_scales(block, moments, plain, 7)
    assert scale == pytest.approx(1.0, abs=1e-6)
    # Were all inputs alike, clipping 10 would lose 9; nothing is clipped then.
    assert abs(search_scales(block, np.ones((1, 8), np.float32), plain, 7)[0, 0]) > 1.2


def test_what_lies_on_a_grid_stays_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (6, 4, 32)).astype(np.float32)
    codes[:, :, 0] = -8
    steps = np.ldexp(random.integers(1 << 15, 1 << 16, (6, 4, 1)), -20).astype(np.float32)
    weight = (codes * steps).reshape(6, 128)
    moments = np.exp(3 * random.standard_normal(128)).astype(np.float32)
    np.testing.assert_array_equal(CODECS["int4"].dequantize(quantize_int4(weight, 32, moments)), weight)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    plain, searched = quantize_int4(weight, 32), quantize_int4(weight, 32, np.zeros(64, np.float32))
    np.testing.assert_array_equal(searched.data, plain.data)
    np.testing.assert_array_equal(searched.scales, plain.scales)


def test_any_part_of_a_weight_is_stored_as_in_the_whole() -> None:
    """Merged layers hold what their parts would, and the same weight gives the same bytes."""
    random = np.random.default_rng(2)
    weight, moments = random.standard_normal((40, 96)).astype(np.float32), random.random(96).astype(np.float32)
    whole, again, part = (quantize_int4(w, 32, moments) for w in (weight, weight, weight[7:21]))
    np.testing.assert_array_equal(whole.data, again.data)
    np.testing.assert_array_equal(whole.scales, again.scales)
    np.testing.assert_array_equal(whole.rows(7, 21).data, part.data)
    np.testing.assert_array_equal(whole.rows(7, 21).scales, part.scales)
