"""Weights on a coarse grid are kept exactly by every format that has room for their codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.lowbit.formats import CODECS
from edgekit.lowbit.grid import grid_steps, short

EIGHT = ("int8", "int8-channel", "sparse-int8")
FOUR = ("int4", "sparse-int4")


@given(st.data(), st.integers(1, 127), st.floats(1e-6, 1e3), st.integers(1, 300), st.floats(0, 0.95))
def test_codes_come_back_bit_for_bit(data: st.DataObject, most: int, step: float, columns: int, zeros: float) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = random.integers(-most, most + 1, (7, columns)) * (random.random((7, columns)) >= zeros)
    weight = (codes * np.float32(short(step))).astype(np.float32)
    for name in EIGHT + (FOUR if most <= 7 else ()):
        packed = CODECS[name].quantize(weight, 0)
        assert np.array_equal(CODECS[name].dequantize(packed), weight), name


@given(st.floats(1e-30, 1e30))
def test_short_steps_have_exact_multiples(step: float) -> None:
    found = short(step)
    assert found == pytest.approx(step, rel=2**-15) and np.float32(found) == found
    assert all(float(np.float32(found) * np.float32(code)) == found * code for code in range(1, 256))


def test_the_largest_step_of_each_row() -> None:
    rows = np.zeros((6, 200), np.float32)
    rows[1, 150] = 0.3  # one value: itself
    rows[2, :3] = [2, -4, 6]  # of 2, not of 1
    rows[3, :2] = [3, 2]
    rows[4, :2] = [128, 1]  # 128 steps are too many
    rows[5] = np.random.default_rng(0).normal(size=200)
    assert grid_steps(rows, 127).tolist() == [0, np.float32(0.3), 2, 1, 0, 0]
    assert grid_steps(rows[2:4], 2).tolist() == [0, 0]


def test_ordinary_weights_are_stored_as_ever() -> None:
    weight = np.random.default_rng(1).normal(size=(64, 320)).astype(np.float32)
    packed = CODECS["int8-channel"].quantize(weight, 0)
    assert packed.scales is not None and np.array_equal(packed.scales, np.abs(weight).max(1) / np.float32(127))
    assert not grid_steps(weight, 127).any()


def test_rows_do_not_depend_on_their_neighbours() -> None:
    random = np.random.default_rng(2)
    grid = (random.integers(-20, 21, (4, 96)) * np.float32(short(0.01))).astype(np.float32)
    mixed = np.concatenate([random.normal(size=(4, 96)).astype(np.float32), grid])
    for name in EIGHT:
        packed, alone = CODECS[name].quantize(mixed, 0), CODECS[name].quantize(grid, 0)
        assert np.array_equal(CODECS[name].dequantize(packed)[4:], CODECS[name].dequantize(alone))


@pytest.mark.parametrize("name", EIGHT)
def test_blocks_of_a_row_share_its_step(name: str) -> None:
    """What packs well: scales that repeat, codes that are few."""
    random = np.random.default_rng(3)
    weight = (random.integers(-9, 10, (5, 256)) * np.float32(short(0.02))).astype(np.float32)
    packed = CODECS[name].quantize(weight, 0)
    assert packed.scales is not None and np.unique(packed.scales).tolist() == [np.float32(short(0.02))]
