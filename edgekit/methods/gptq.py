"""GPTQ: weights are rounded column by column, and what a column loses the columns after it make up for.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323).
With H = sum x x^T, H^-1 = U^T U and U upper triangular, rounding column i to q adds -(w_i - q) / U_ii * U_i,j to each
column j after it, which minimizes trace(dW H dW^T) over those columns.

The grid is the one that the int4 format stores: symmetric, a step for each ``group_size`` columns of a row, searched for the
least error weighted with the diagonal of H (edgekit.lowbit.step_search). Steps are numbers that float16 holds, so that
int4-fp16 finds every weight again bit for bit when the model is exported.

What GPTQ decided once is then decided again (``sweeps``): each step by least squares for the codes as they are, each code for
all others as they are, both in the metric of H, so that no change makes the error larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.lowbit.grid import MANTISSA
from edgekit.lowbit.step_search import search_scales

COLUMNS = 64
"""Columns that are corrected one by one before the rest are, all at once."""
GROUP_SIZES = (0, 16, 32, 64, 128, 256)
BITS = (2, 3, 4)
SMALLEST = 1e-35
"""A step below it float32 could not divide by."""


@dataclass(frozen=True)
class Gptq:
    """``group_size`` columns share a step, 0 = the whole row (per channel). 2 and 3 bits are stored as int4 too, and
    code smaller.

    ``act_order`` rounds the columns with the largest inputs first. ``damping`` is added to H's diagonal, as a share of its
    mean. ``sweeps``: how often steps and codes are chosen again after GPTQ.
    """

    bits: int = 4
    group_size: int = 32
    act_order: bool = True
    damping: float = 0.05
    sweeps: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group_size not in GROUP_SIZES:
            raise UsageError(
                f"gptq: bits {self.bits}, group_size {self.group_size}; bits are 2 to 4, group sizes "
                f"{', '.join(map(str, GROUP_SIZES))}"
            )
        if not 0 < self.damping <= 1:
            raise UsageError(f"gptq: damping {self.damping} is not above 0 and at most 1")
        if self.sweeps < 0:
            raise UsageError(f"gptq: sweeps {self.sweeps} is below 0; 0 leaves what GPTQ found")


def gptq(weight: Tensor, hessian: Tensor, settings: Gptq) -> Tensor:
    """``weight`` [N, K] on the grid, float32, for inputs whose sum of x x^T is ``hessian`` float64 [K, K].

    After at least one sweep no row loses more, in the metric of the damped Hessian, than by rounding it to the nearest
    points of the same grid.
    """
    order = torch.arange(len(hessian))
    if settings.act_order:
        order = torch.argsort(torch.diagonal(hessian), descending=True)
    group = settings.group_size or len(hessian)
    steps = column_steps(weight, settings.bits, group, torch.diagonal(hessian))[:, order].t().contiguous()
    sorted_weight = weight.detach().double().t()[order].contiguous()  # [K, N]: a column of the weight lies in one piece
    metric = damped(hessian, settings.damping)[order][:, order]
    chosen = _with_feedback(sorted_weight, _factor(metric), steps, settings.bits)
    if settings.sweeps:
        chosen = _improved(sorted_weight, chosen, steps, metric, order // group, settings)
    restored = torch.empty_like(chosen)
    restored[order] = chosen
    return restored.t().float().contiguous()


def _with_feedback(weight: Tensor, factor: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Codes times steps, float64 [K, N], of ``weight`` and ``steps`` [K, N], from the first of K on."""
    work, result = weight.clone(), torch.empty_like(weight)
    for start in range(0, len(work), COLUMNS):
        stop = min(start + COLUMNS, len(work))
        errors = torch.empty_like(work[start:stop])
        for k in range(start, stop):
            result[k] = codes(work[k], steps[k], bits) * steps[k]
            errors[k - start] = (work[k] - result[k]) / factor[k, k]
            work[k + 1 : stop].addr_(factor[k, k + 1 : stop], errors[k - start], alpha=-1)
        work[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return result


def _improved(weight: Tensor, chosen: Tensor, steps: Tensor, metric: Tensor, groups: Tensor, settings: Gptq) -> Tensor:
    """``chosen`` [K, N], or ``weight`` rounded where a column of it is nearer, with steps and codes chosen anew in turns.

    ``metric`` [K, K] is what errors are measured with; ``groups`` [K] says which of K share a step.
    """
    nearest = codes(weight, steps, settings.bits) * steps
    better = _error(weight - nearest, metric) < _error(weight - chosen, metric)
    chosen = torch.where(better, nearest, chosen)
    scale = torch.diagonal(metric).mean()
    whole, metric = torch.round(chosen / steps).float(), (metric / scale).float()
    weight, steps = weight.float(), steps.float()
    for _ in range(settings.sweeps):
        pull = metric @ (weight - whole * steps)
        for group in range(int(groups.max()) + 1):
            _refit_steps(whole, steps, metric, pull, (groups == group).nonzero()[:, 0])
        pull = metric @ (weight - whole * steps)
        for start in range(0, len(whole), COLUMNS):
            _choose_codes(whole, steps, metric, pull, slice(start, start + COLUMNS), settings.bits)
    return whole * steps


def _refit_steps(whole: Tensor, steps: Tensor, metric: Tensor, pull: Tensor, inside: Tensor) -> None:
    """The best step of one group, in place, all else as it is; ``pull`` [K, N] is metric @ error."""
    part, before = whole[inside], steps[inside[0]]
    curvature = (part * (metric[inside][:, inside] @ part)).sum(0)
    slope = (pull[inside] * part).sum(0)
    change = halved((before + slope / curvature.clamp(min=SMALLEST)).double()).float() - before
    change = torch.where(change * (2 * slope - change * curvature) > 0, change, 0)  # float16 may not hold a better one
    steps[inside] = before + change
    pull.addmm_(metric[:, inside], part * change, alpha=-1)


def _choose_codes(whole: Tensor, steps: Tensor, metric: Tensor, pull: Tensor, part: slice, bits: int) -> None:
    """The best code of each weight of some of K, one after the other, in place; ``pull`` [K, N] is metric @ error."""
    near, local = metric[part, part], pull[part].clone()
    moved = torch.empty_like(local)
    for k, (old, step) in enumerate(zip(whole[part].clone(), steps[part], strict=True)):
        new = codes(old * step + local[k] / near[k, k], step, bits)
        whole[part][k] = new
        moved[k] = (new - old) * step
        local.addr_(near[k], moved[k], alpha=-1)
    pull.addmm_(metric[:, part], moved, alpha=-1)


def _error(difference: Tensor, metric: Tensor) -> Tensor:
    """Of each column of [K, N] its square in ``metric`` [K, K]."""
    return (difference * (metric @ difference)).sum(0)


def rounded(weight: Tensor, bits: int, group_size: int, moments: Tensor | None = None) -> Tensor:
    """``weight`` [N, K] at the nearest points of the same grid, float32: what GPTQ is compared with.

    Without ``moments`` [K], of the inputs, the largest weight of a group is at the lowest code.
    """
    steps = column_steps(weight, bits, group_size or weight.shape[1], moments)
    return (codes(weight.detach().double(), steps, bits) * steps).float()


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H), float64 [K, K].

    An input that was always zero counts as uncorrelated noise: its column is just rounded.
    """
    raised = hessian.double().clone()
    diagonal = torch.diagonal(raised)
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    return raised


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U float64 [K, K], upper triangular, with U^T U = damped(H)^-1."""
    return _factor(damped(hessian, damping))


def _factor(metric: Tensor) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric))
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
