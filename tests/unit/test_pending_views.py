"""Pending reshapes and transposes: whatever cancels must cancel, whatever stays must mean the same as numpy's."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from edgekit.frontend.decoder.pending_views import View

SPLITS = {24: [(24,), (2, 12), (4, 6), (2, 3, 4), (2, 2, 6)]}


def replay(view: View, array: np.ndarray) -> np.ndarray:
    for kind, argument in view.steps:
        array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
    return array


def test_splitting_heads_and_back_is_nothing() -> None:
    start = View(ir.Value(name="x"), (2, 5, 12))
    heads = start.reshape((2, 5, 3, 4)).transpose((0, 2, 1, 3))
    assert heads.shape == (2, 3, 5, 4)
    assert heads.transpose((0, 2, 1, 3)).reshape((2, 5, 12)).steps == ()


def test_transpose_that_moves_the_last_axis_is_kept() -> None:
    view = View(ir.Value(name="x"), (2, 3)).transpose((1, 0))
    assert view.before_transpose() == (view, ())


@given(st.lists(st.one_of(st.sampled_from(SPLITS[24]), st.randoms(use_true_random=False)), max_size=8))
def test_any_chain_means_what_numpy_means(chain: list[object]) -> None:
    array: np.ndarray = np.arange(24)
    view, plain = View(ir.Value(name="x"), (24,)), array
    for step in chain:
        if isinstance(step, tuple):
            view, plain = view.reshape(step), plain.reshape(step)
        else:
            order = list(range(plain.ndim))
            step.shuffle(order)  # type: ignore[attr-defined]
            view, plain = view.transpose(order), plain.transpose(order)
    assert view.shape == plain.shape
    np.testing.assert_array_equal(replay(view, array), plain)
