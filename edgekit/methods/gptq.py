"""GPTQ: weights are rounded column by column, and what a column loses the columns after it make up for.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323).
With H = sum x x^T, H^-1 = U^T U and U upper triangular, rounding column i to q adds -(w_i - q) / U_ii * U_i,j to each
column j after it, which minimizes trace(dW H dW^T) over those columns.

The grid is the one that the int4 format stores: symmetric, a step for each ``group_size`` columns of a row, searched for the
least error weighted with the diagonal of H (edgekit.lowbit.step_search). Steps are numbers that float16 holds, so that
int4-fp16 finds every weight again bit for bit when the model is exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.lowbit.grid import MANTISSA
from edgekit.lowbit.step_search import search_scales

COLUMNS = 128
"""Columns that are corrected one by one before the rest are, all at once."""
GROUP_SIZES = (0, 16, 32, 64, 128, 256)
BITS = (2, 3, 4)
SMALLEST = 1e-35
"""A step below it float32 could not divide by."""


@dataclass(frozen=True)
class Gptq:
    """``group_size`` columns share a step, 0 = the whole row (per channel). 2 and 3 bits are stored as int4 too, and
    code smaller.

    ``act_order`` rounds the columns with the largest inputs first; steps are then those of the weights before.
    ``damping`` is added to H's diagonal, as a share of its mean.
    """

    bits: int = 4
    group_size: int = 32
    act_order: bool = True
    damping: float = 0.05

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group_size not in GROUP_SIZES:
            raise UsageError(
                f"gptq: bits {self.bits}, group_size {self.group_size}; bits are 2 to 4, group sizes "
                f"{', '.join(map(str, GROUP_SIZES))}"
            )
        if not 0 < self.damping <= 1:
            raise UsageError(f"gptq: damping {self.damping} is not above 0 and at most 1")


def gptq(weight: Tensor, hessian: Tensor, settings: Gptq) -> Tensor:
    """``weight`` [N, K] on the grid, float32, for inputs whose sum of x x^T is ``hessian`` float64 [K, K]."""
    columns = weight.shape[1]
    group = settings.group_size or columns
    order = torch.argsort(torch.diagonal(hessian), descending=True) if settings.act_order else torch.arange(columns)
    factor = inverse_factor(hessian[order][:, order], settings.damping)
    work = weight.detach().double()[:, order]
    moments = torch.diagonal(hessian)
    steps = column_steps(
        weight, settings.bits, group, moments
    )  # without act_order each group's are renewed when it is reached
    result = torch.empty_like(work)
    for start in range(0, columns, COLUMNS):
        stop = min(start + COLUMNS, columns)
        errors = torch.zeros(len(work), stop - start, dtype=torch.float64)
        for column in range(start, stop):
            if not settings.act_order and column % group == 0:
                part = slice(column, column + group)
                steps[:, part] = step_of(work[:, part], settings.bits, moments[part])[:, None]
            step = steps[:, order[column]]
            result[:, column] = codes(work[:, column], step, settings.bits) * step
            errors[:, column - start] = (work[:, column] - result[:, column]) / factor[column, column]
            work[:, column + 1 : stop] -= torch.outer(errors[:, column - start], factor[column, column + 1 : stop])
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    restored = torch.empty_like(result)
    restored[:, order] = result
    return restored.float()


def rounded(weight: Tensor, bits: int, group_size: int, moments: Tensor | None = None) -> Tensor:
    """``weight`` [N, K] at the nearest points of the same grid, float32: what GPTQ is compared with.

    Without ``moments`` [K], of the inputs, the largest weight of a group is at the lowest code.
    """
    steps = column_steps(weight, bits, group_size or weight.shape[1], moments)
    return (codes(weight.detach().double(), steps, bits) * steps).float()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U float64 [K, K], upper triangular, with U^T U = (H + damping * mean(diag H))^-1.

    An input that was always zero counts as uncorrelated noise: its column is just rounded.
    """
    damped = hessian.double().clone()
    diagonal = torch.diagonal(damped)
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def step_of(values: Tensor, bits: int, moments: Tensor | None = None) -> Tensor:
    """The step of each row of ``values`` [N, K], float64 [N], not zero: searched with the inputs' ``moments`` [K] where they
    are given, else the largest magnitude is at the lowest code."""
    high, low = values.max(1).values, values.min(1).values
    step = torch.where(high > -low, high, low) / -(1 << (bits - 1))
    step = torch.where(step.abs() < SMALLEST, 1.0, step)
    if moments is not None:
        weights = (moments / moments.max().clamp(min=SMALLEST)).float().numpy()[None]
        block, plain = values.float().numpy()[:, None], step.float().numpy()[:, None]
        step = torch.from_numpy(search_scales(block, weights, plain, (1 << (bits - 1)) - 1)[:, 0]).double()
    return halved(step)


def column_steps(weight: Tensor, bits: int, group: int, moments: Tensor | None = None) -> Tensor:
    """For each weight [N, K] the step of its group, float64 [N, K]."""
    wide, steps = weight.detach().double(), []
    for start in range(0, wide.shape[1], group):
        part = wide[:, start : start + group]
        step = step_of(part, bits, None if moments is None else moments[start : start + group])
        steps.append(step[:, None].expand(part.shape))
    return torch.cat(steps, dim=1)


def codes(values: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Whole numbers from -2^(bits-1) to 2^(bits-1) - 1."""
    return torch.round(values / steps).clamp_(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def shortened(steps: Tensor) -> Tensor:
    """The nearest numbers of 16 significant bits: float32 holds their multiples exactly."""
    mantissa, exponent = torch.frexp(steps)
    return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(MANTISSA))), exponent - MANTISSA)


def halved(steps: Tensor) -> Tensor:
    """The nearest numbers that float16 holds, not zero."""
    unit = (torch.frexp(steps).exponent - 11).clamp(min=-24)
    halves = torch.ldexp(torch.round(torch.ldexp(steps, -unit)), unit)
    return torch.where(halves == 0, torch.full_like(halves, 2.0**-24), halves)
