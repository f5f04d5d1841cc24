"""EoRA: the best correction of a rank, whatever the scale of the Hessian; never worse than a plain decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.lowbit.formats import CODECS
from edgekit.methods.eora import (
    Compensation,
    block_of,
    compensated,
    eora,
    output_error,
    plain_svd,
    rank_within,
    stored,
    stored_bytes,
)


def case(rows: int, columns: int, seed: int = 0, inputs: int = 200) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), (x.t() @ x).double()


def left(difference: Tensor, hessian: Tensor, low: Tensor) -> float:
    return output_error(difference - low, hessian)


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 50))
def test_never_worse_than_plain(rows: int, columns: int, rank: int, seed: int) -> None:
    difference, hessian = case(rows, columns, seed)
    total = output_error(difference, hessian)
    mine = left(difference, hessian, eora(difference, hessian, rank).product)
    assert mine <= left(difference, hessian, plain_svd(difference, rank).product) + 1e-6 * total
    if rank >= min(rows, columns):
        assert mine <= 1e-5 * total  # directions beyond float32 are left out


def test_the_best_of_its_rank() -> None:
    """What is left is the energy of the singular values that were cut: no B A of that rank leaves less (Eckart-Young)."""
    difference, hessian = case(12, 9)
    root = torch.linalg.cholesky(hessian)  # any F with F F^T = S
    singular = torch.linalg.svdvals(difference.double() @ root)
    for rank in (1, 3, 8):
        mine = left(difference, hessian, eora(difference, hessian, rank).product)
        assert mine == pytest.approx(float(singular[rank:].square().sum()), rel=1e-4)


def test_by_way_of_a_cholesky_factor() -> None:
    difference, hessian = case(12, 9)
    root = torch.linalg.cholesky(hessian)
    up, singular, down = torch.linalg.svd(difference.double() @ root, full_matrices=False)
    expected = (up[:, :4] * singular[:4]) @ down[:4] @ torch.linalg.inv(root)
    torch.testing.assert_close(eora(difference, hessian, 4).product.double(), expected, rtol=1e-3, atol=1e-4)


@given(st.floats(1e-6, 1e6))
def test_the_scale_of_the_hessian_does_not_matter(scale: float) -> None:
    difference, hessian = case(7, 11)
    first, second = eora(difference, hessian, 3), eora(difference, hessian * scale, 3)
    torch.testing.assert_close(first.product, second.product, rtol=1e-4, atol=1e-5)


def test_inputs_of_few_directions() -> None:
    difference, hessian = case(10, 30, inputs=4)  # a Hessian of rank 4
    low = eora(difference, hessian, 4)
    assert left(difference, hessian, low.product) < 1e-8 * output_error(difference, hessian)
    assert torch.isfinite(low.product).all() and low.product.abs().max() < 100
    nothing = eora(difference, torch.zeros(30, 30, dtype=torch.float64), 2)
    assert torch.equal(nothing.product, plain_svd(difference, 2).product)


@pytest.mark.parametrize("name", ["int8", "int4", "fp16"])
@pytest.mark.parametrize("rank", [3, 16, 40])
def test_rounded_adapters_are_stored_exactly(name: str, rank: int) -> None:
    difference, hessian = case(50, 70)
    low = compensated(difference, hessian, Compensation(rank=rank, format=name), rank)
    for matrix in (low.up, low.down):
        packed = CODECS[name].quantize(matrix.numpy(), 0 if name == "fp16" else block_of(matrix.shape[1]))
        assert np.array_equal(CODECS[name].dequantize(packed), matrix.numpy())
        assert packed.nbytes == stored_bytes(matrix.shape[0], matrix.shape[1], name)
    exact = left(difference, hessian, eora(difference, hessian, rank).product)
    assert left(difference, hessian, low.product) < exact + 0.05 * output_error(difference, hessian)


def test_b_is_fitted_to_the_rounded_a() -> None:
    difference, hessian = case(50, 70)
    found = eora(difference, hessian, 8)
    plain = stored(found.up, "int4") @ stored(found.down, "int4")
    refitted = compensated(difference, hessian, Compensation(rank=8, format="int4"), 8).product
    assert left(difference, hessian, refitted) < left(difference, hessian, plain)


def test_svd_as_baseline() -> None:
    difference, hessian = case(20, 30)
    low = compensated(difference, hessian, Compensation(rank=4, format="fp16", method="svd"), 4)
    torch.testing.assert_close(low.product, plain_svd(difference, 4).product, rtol=1e-2, atol=1e-2)


@given(st.integers(1, 200_000), st.sampled_from(["int8", "int4", "fp16"]))
def test_the_largest_rank_within_bytes(limit: int, name: str) -> None:
    shapes = [(96, 64), (64, 96)]

    def cost(rank: int) -> int:
        ranks = [min(rank, 64)] * 2
        return sum(stored_bytes(r, k, name) + stored_bytes(n, r, name) for r, (n, k) in zip(ranks, shapes, strict=True))

    if cost(1) > limit:
        with pytest.raises(UsageError, match=rf"eora\.bytes: {limit}; rank 1 takes {cost(1)} bytes already"):
            rank_within(limit, shapes, name)
        return
    rank = rank_within(limit, shapes, name)
    assert cost(rank) <= limit and (rank == 64 or cost(rank + 1) > limit)


def test_refusals() -> None:
    for given_settings, message in (
        ({"rank": 1, "format": "int5"}, r"eora\.format: 'int5' is not one of int8, int4, fp16"),
        ({"rank": 1, "bytes": 1}, r"eora: rank 1, bytes 1; give one of them, above 0"),
        ({"rank": 1, "of": "none"}, r"eora: of 'none', original ''; give original with of: none, and only then"),
    ):
        with pytest.raises(UsageError, match=message):
            Compensation(**given_settings)
