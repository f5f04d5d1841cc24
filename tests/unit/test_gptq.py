"""GPTQ: equal to the procedure by hand, better than rounding, and on a grid that the int4 format keeps bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.lowbit.formats import CODECS
from edgekit.methods.eora import output_error
from edgekit.methods.gptq import Gptq, codes, column_steps, damped, gptq, inverse_factor, rounded, step_of

GROUPS = st.sampled_from([0, 16, 32, 64, 128, 256])


def case(rows: int = 6, columns: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [N, K], and the Hessian of correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(300, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), (inputs.t() @ inputs).double()


def by_hand(weight: Tensor, hessian: Tensor, order: list[int], steps: Tensor) -> Tensor:
    """Optimal brain surgeon, one column after the other: the inverse of what is left is made anew each time."""
    work, result = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    for place, column in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(damped[left][:, left])
        result[:, column] = codes(work[:, column], steps[:, column], 4) * steps[:, column]
        error = (work[:, column] - result[:, column]) / inverse[0, 0]
        work[:, left] -= torch.outer(error, inverse[0])
    return result.float()


def test_the_procedure_by_hand() -> None:
    weight, hessian = case()
    moments = hessian.diagonal()
    steps = column_steps(weight, 4, 64, moments)  # one group: its step is taken before anything is corrected
    found = gptq(weight, hessian, Gptq(4, 64, act_order=False, damping=0.01, sweeps=0))
    torch.testing.assert_close(found, by_hand(weight, hessian, list(range(40)), steps))
    order = torch.argsort(moments, descending=True).tolist()
    found = gptq(weight, hessian, Gptq(4, 16, damping=0.01, sweeps=0))
    torch.testing.assert_close(found, by_hand(weight, hessian, order, column_steps(weight, 4, 16, moments)))


def test_columns_in_several_batches() -> None:
    weight, hessian = case(3, 150)
    steps = column_steps(weight, 4, 256, hessian.diagonal())
    found = gptq(weight, hessian, Gptq(4, 0, act_order=False, damping=0.01, sweeps=0))
    torch.testing.assert_close(found, by_hand(weight, hessian, list(range(150)), steps))


@pytest.mark.parametrize("how", [Gptq(), Gptq(3), Gptq(4, 0), Gptq(3, 32, act_order=True)])
def test_less_error_than_rounding(how: Gptq) -> None:
    weight, hessian = case(16, 160)
    mine = output_error(gptq(weight, hessian, how) - weight, hessian)
    moments = hessian.diagonal()
    plain, searched = (
        output_error(rounded(weight, how.bits, how.group_size, m) - weight, hessian) for m in (None, moments)
    )
    assert mine < 0.7 * min(plain, searched)


@settings(max_examples=20)
@given(st.sampled_from([2, 3, 4]), GROUPS, st.integers(1, 140), st.booleans(), st.integers(0, 3))
def test_sweeps_only_lower_the_error_of_each_row(
    bits: int, group: int, columns: int, ordered: bool, sweeps: int
) -> None:
    weight, hessian = case(5, columns, columns)
    metric = damped(hessian, 0.05)

    def errors(found: Tensor) -> Tensor:
        difference = (found - weight).double()
        return ((difference @ metric) * difference).sum(1)

    plain = errors(rounded(weight, bits, group, hessian.diagonal()))
    few, more = (errors(gptq(weight, hessian, Gptq(bits, group, ordered, 0.05, n))) for n in (sweeps, sweeps + 1))
    assert (more <= few * (1 + 1e-4)).all() and (more <= plain * (1 + 1e-4)).all()
    assert torch.equal(gptq(weight, hessian, Gptq(bits, group)), gptq(weight, hessian, Gptq(bits, group)))


def test_sweeps_find_better_steps_and_codes() -> None:
    weight, hessian = case(64, 256)
    once, swept = (output_error(gptq(weight, hessian, Gptq(sweeps=n)) - weight, hessian) for n in (0, 4))
    assert swept < 0.85 * once


@pytest.mark.parametrize("bits", [3, 4])
def test_searched_steps_lose_less_where_inputs_are_large(bits: int) -> None:
    weight, hessian = case(16, 160)
    hessian = hessian * torch.outer(scale := torch.linspace(0.1, 5, 160).double(), scale)
    moments = hessian.diagonal()
    plain, searched = (
        float(((rounded(weight, bits, 32, m) - weight).double().square() * moments).sum()) for m in (None, moments)
    )
    assert searched < 0.92 * plain


def test_white_noise_is_plain_rounding() -> None:
    weight, _ = case(5, 200)
    for group in (0, 32, 128):
        hessian = torch.eye(200, dtype=torch.float64)
        assert torch.equal(
            gptq(weight, hessian, Gptq(4, group, sweeps=0)), rounded(weight, 4, group, hessian.diagonal())
        )


@settings(max_examples=25)
@given(st.sampled_from([3, 4]), GROUPS, st.integers(1, 140), st.booleans(), st.floats(1e-8, 1e4))
def test_the_format_keeps_it_exactly(bits: int, group: int, columns: int, ordered: bool, size: float) -> None:
    weight, hessian = case(3, columns, columns)
    found = gptq(weight * size, hessian, Gptq(bits, group, act_order=ordered)).numpy()
    for block in (16, 32, 64, 128, 256):
        if not group or group % block == 0:
            for name in ("int4", "int4-fp16"):
                packed = CODECS[name].quantize(found, block)
                assert np.array_equal(CODECS[name].dequantize(packed), found), (name, block)


def test_inputs_that_are_always_zero() -> None:
    weight, hessian = case(4, 32)
    hessian[5], hessian[:, 5] = 0, 0
    found = gptq(weight, hessian, Gptq(4, 32, act_order=True, sweeps=0))
    assert torch.equal(found[:, 5], rounded(weight, 4, 32, hessian.diagonal())[:, 5])
    assert torch.equal(gptq(weight, torch.zeros(32, 32, dtype=torch.float64), Gptq(sweeps=0)), rounded(weight, 4, 32))


def test_the_factor_is_the_inverse() -> None:
    _, hessian = case()
    factor = inverse_factor(hessian, 0.05)
    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(factor.t() @ factor @ damped, torch.eye(40, dtype=torch.float64))
    assert torch.equal(factor, factor.triu())


def test_steps_put_the_largest_weight_lowest() -> None:
    steps = step_of(torch.tensor([[1.0, -4.0], [3.0, 1.0], [0.0, 0.0]], dtype=torch.float64), 4)
    assert steps.tolist() == [0.5, -0.375, 1.0]


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"gptq: bits 5, group_size 32; bits are 2 to 4, group sizes 0, 16, 32"):
        Gptq(5)
    with pytest.raises(UsageError, match=r"gptq: damping 0 is not above 0"):
        Gptq(damping=0)
    with pytest.raises(UsageError, match=r"gptq: sweeps -1 is below 0; 0 leaves what GPTQ found"):
        Gptq(sweeps=-1)
