"""Weights of three values without training: W ~ a T (one plane), or W ~ a1 T1 + a2 T2 (two planes), T in {-1, 0, 1}.

One plane is PT2-LLM's (arXiv 2510.03267): iterative ternary fitting of T and a for each 128 columns of a row, then a
once more for the least error of the outputs (activation-aware grid alignment; T stays, or it would fit the calibration
text too well). With ``offset`` a constant mu for each 128 columns is fitted too; it is kept as a low-rank branch, mu
times the sum of the inputs. Two planes are PTQTP's (arXiv 2509.16989): a ridge regression for (a1, a2) and, for each
weight, the best of its nine values, in turns. Either way what a block of 128 columns loses the columns after it make up
for, as in GPTQ.

PT2-LLM also reorders columns by similarity. It is left out: the t2 format shares a scale between neighbours, so the
inputs would have to be reordered at run time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.methods.gptq import inverse_factor
from edgekit.spec.formats import NATIVE_BLOCK

ROUNDS = 50
NINE = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)), dtype=torch.float64)
"""The pairs (t1, t2)."""


@dataclass(frozen=True)
class Ternary:
    """``planes`` 1 or 2; ``offset`` (one plane) fits mu; ``aligned`` scales to outputs; ``feedback`` as in GPTQ."""

    planes: int = 2
    offset: bool = False
    aligned: bool = True
    feedback: bool = True
    damping: float = 0.01
    ridge: float = 1e-4  # of the regressions, as a share of the diagonal
    group_size: int = NATIVE_BLOCK  # columns of a row that share a step; 0 = the row, without offset

    def __post_init__(self) -> None:
        if self.planes not in (1, 2) or (self.offset and self.planes == 2):
            raise UsageError(
                f"ternarize: planes {self.planes}, offset {self.offset}; planes are 1 or 2, and only one plane has an "
                "offset"
            )
        if self.group_size not in (0, NATIVE_BLOCK) or (self.offset and not self.group_size):
            raise UsageError(
                f"ternarize: group_size {self.group_size}, offset {self.offset}; a group is {NATIVE_BLOCK} columns, or 0, a "
                "row, which has no offset"
            )
        if not (0 < self.damping <= 1 and 0 <= self.ridge <= 1):
            raise UsageError(
                f"ternarize: damping {self.damping}, ridge {self.ridge}; shares of at most 1, damping above 0"
            )


@dataclass(frozen=True)
class Planes:
    """Float32 ternary matrices [N, K], a magnitude for each 128 columns of a row, and mu [N, ceil(K/128)] or None."""

    planes: tuple[Tensor, ...]
    offset: Tensor | None

    @property
    def weight(self) -> Tensor:
        """What they add up to, float32 [N, K]."""
        total = torch.stack(self.planes).sum(0)
        if self.offset is None:
            return total
        return total + self.offset.repeat_interleave(NATIVE_BLOCK, 1)[:, : total.shape[1]]


def ternarize(weight: Tensor, hessian: Tensor, settings: Ternary) -> Planes:
    """``weight`` [N, K] for inputs whose sum of x x^T is ``hessian`` float64 [K, K]."""
    work = weight.detach().double().clone()
    factor = inverse_factor(hessian, settings.damping) if settings.feedback else None
    columns = work.shape[1]
    blocks: list[tuple[list[Tensor], Tensor | None]] = []
    size = settings.group_size or columns
    for start in range(0, columns, size):
        part = slice(start, min(start + size, columns))
        planes, offset = _block(work[:, part], hessian[part, part], settings)
        blocks.append((planes, offset))
        if factor is not None:
            residual = work[:, part] - sum(planes) - (0 if offset is None else offset[:, None])
            # Solving with the block of U gives the errors that GPTQ would have column by column.
            errors = torch.linalg.solve_triangular(factor[part, part], residual, upper=True, left=False)
            work[:, part.stop :] -= errors @ factor[part, part.stop :]
    whole = tuple(torch.cat([planes[i] for planes, _ in blocks], 1).float() for i in range(settings.planes))
    offsets = [offset for _, offset in blocks if offset is not None]
    return Planes(whole, torch.stack(offsets, 1).float() if offsets else None)


def block_sums(columns: int) -> Tensor:
    """The A that makes mu a low-rank branch: float32 [ceil(K/128), K], ones where a column belongs to a block."""
    belongs = torch.arange(columns) // NATIVE_BLOCK
    return (torch.arange(int(belongs[-1]) + 1)[:, None] == belongs).float()


def _block(weight: Tensor, hessian: Tensor, settings: Ternary) -> tuple[list[Tensor], Tensor | None]:
    signs = two_planes(weight, settings.ridge) if settings.planes == 2 else fitted(weight, settings.offset)[None]
    bases = torch.cat([signs, torch.ones_like(weight)[None]]) if settings.offset else signs
    seen, ridge = (hessian, settings.ridge) if settings.aligned else (None, 0.0)
    scales = regressed(weight, bases, seen, ridge).float().double()  # as they are stored
    planes = [signs[i] * scales[:, i, None] for i in range(settings.planes)]
    return planes, scales[:, -1] if settings.offset else None


def fitted(weight: Tensor, offset: bool) -> Tensor:
    """Iterative ternary fitting of rows [N, b]: T float64 [N, b], from the threshold 0.75 mean|w| until it stays."""
    centred = weight - weight.mean(1, keepdim=True) if offset else weight
    signs = centred.sign() * (centred.abs() > 0.75 * centred.abs().mean(1, keepdim=True))
    for _ in range(ROUNDS):
        bases = torch.stack([signs, torch.ones_like(weight)]) if offset else signs[None]
        scales = regressed(weight, bases, None, 0.0)
        scale, middle = scales[:, :1], scales[:, 1, None] if offset else 0.0
        nearest = ((weight - middle) / torch.where(scale == 0, 1.0, scale)).round().clamp(-1, 1)
        renewed = torch.where(scale == 0, signs, nearest)
        if torch.equal(renewed, signs):
            break
        signs = renewed
    return signs


def two_planes(weight: Tensor, ridge: float) -> Tensor:
    """T1 and T2 float64 [2, N, b] of rows [N, b]: regression and the best of nine values in turns, until they stay."""
    first = fitted(weight, False)
    residual = weight - first * regressed(weight, first[None], None, ridge)[:, :1]
    signs = torch.stack([first, fitted(residual, False)])
    for _ in range(ROUNDS):
        scales = regressed(weight, signs, None, ridge)
        values = scales @ NINE.t()  # [N, 9]
        best = (weight[:, :, None] - values[:, None, :]).abs().argmin(2)
        renewed = NINE[best].permute(2, 0, 1)
        if torch.equal(renewed, signs):
            break
        signs = renewed
    return signs


def regressed(weight: Tensor, bases: Tensor, hessian: Tensor | None, ridge: float) -> Tensor:
    """For each row w of ``weight`` [N, b] the c with the least (w - c B) S (w - c B)^T + ridge: float64 [N, m].

    ``bases`` [m, N, b] are the rows B of each w; S is ``hessian`` [b, b], or one.
    """
    rows = bases.permute(1, 0, 2)  # [N, m, b]
    seen = rows if hessian is None else rows @ hessian
    gram, target = seen @ rows.transpose(1, 2), (seen @ weight[:, :, None])[..., 0]
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    diagonal += ridge * diagonal  # relative: the scale of S does not matter
    return _solved(gram, target)


def _solved(gram: Tensor, target: Tensor) -> Tensor:
    """x [N, m] with ``gram`` [N, m, m] x = ``target`` [N, m], m 1 or 2; the least one where it is not unique: a plane
    of zeros, or two equal ones."""
    if gram.shape[1] == 1:
        square = gram[:, 0, 0]
        return torch.where(square[:, None] > 0, target / torch.where(square > 0, square, 1.0)[:, None], 0.0)
    a, b, c = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    determinant = a * c - b * b
    singular = determinant <= 1e-10 * a * c
    first, second = c * target[:, 0] - b * target[:, 1], a * target[:, 1] - b * target[:, 0]
    solved = torch.stack([first, second], 1) / torch.where(singular, 1.0, determinant)[:, None]
    if bool(singular.any()):
        inverse: Tensor = torch.linalg.pinv(gram[singular], hermitian=True)
        solved[singular] = (inverse @ target[singular][..., None])[..., 0]
    return solved
