"""Low-rank compensation of compressed linear layers: y = W_c x + B (A x).

EoRA, Liu et al., "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation" (arXiv
2410.21271): among all B A of a rank, the one that leaves the least error ||(W - W_c - B A) X||, found by a singular
value decomposition of W - W_c in the eigenspace of S = X X^T. The scale of S does not matter. The plain decomposition
of W - W_c (ZeroQuant-V2, arXiv 2303.08302) is the baseline.

Layers that read one input (query, key and value; gate and up) are compensated as one matrix, their rows one below the
other: they share A, which is the best choice for all of them together and is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.methods.gptq import codes, rounded, shortened
from edgekit.spec import formats

METHODS = ("eora", "svd")
FORMATS = ("int8", "int4", "fp16")
OF = ("int4", "gptq", "ternarize", "2:4", "none")


@dataclass(frozen=True)
class Compensation:
    """What is compressed how (``of``), and what compensates it: ``rank`` of each group's A, or ``bytes`` of all A and
    B.

    ``format`` is what A and B are rounded to, and stored as. of: "int4" is plain rounding with the group size of the
    section gptq, "none" leaves them as they are, compressed before: ``original`` is then the
    model that they were made from.
    """

    of: str = "gptq"
    rank: int = 0
    bytes: int = 0
    original: str = ""  # with of "none": the model before it was compressed, a directory or what else is exported
    format: str = "int8"
    method: str = "eora"  # or svd, the baseline

    def __post_init__(self) -> None:
        for name, known in {"of": OF, "format": FORMATS, "method": METHODS}.items():
            if getattr(self, name) not in known:
                raise UsageError(f"eora.{name}: '{getattr(self, name)}' is not one of {', '.join(known)}")
        if (self.of == "none") != bool(self.original):
            raise UsageError(
                f"eora: of '{self.of}', original '{self.original}'; give original with of: none, and only then"
            )
        if (self.rank > 0) == (self.bytes > 0) or min(self.rank, self.bytes) < 0:
            raise UsageError(f"eora: rank {self.rank}, bytes {self.bytes}; give one of them, above 0")


@dataclass(frozen=True)
class LowRank:
    """B [N, r] and A [r, K], float32; B A is added to a weight."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """[N, K]."""
        return self.up @ self.down


def eora(difference: Tensor, hessian: Tensor, rank: int) -> LowRank:
    """The B A of ``rank`` with the least trace((D - B A) S (D - B A)^T) for D = ``difference`` [N, K], S = ``hessian``
    [K, K].

    Directions in which no input has energy beyond rounding are left out, as by a pseudo-inverse.
    """
    values, vectors = torch.linalg.eigh(hessian.double())
    used = values > values[-1] * len(values) * torch.finfo(torch.float32).eps
    if not bool(used.any()):  # no input at all: any correction is as good
        return plain_svd(difference, rank)
    roots, vectors = values[used].sqrt(), vectors[:, used]
    up, singular, down = torch.linalg.svd(difference.double() @ (vectors * roots), full_matrices=False)
    return _parts(up, singular, (down / roots) @ vectors.t(), rank)


def plain_svd(difference: Tensor, rank: int) -> LowRank:
    """The B A of ``rank`` nearest to ``difference`` [N, K]."""
    up, singular, down = torch.linalg.svd(difference.double(), full_matrices=False)
    return _parts(up, singular, down, rank)


def _parts(up: Tensor, singular: Tensor, down: Tensor, rank: int) -> LowRank:
    roots = singular[:rank].sqrt()
    return LowRank((up[:, :rank] * roots).float(), (roots[:, None] * down[:rank]).float())


def compensated(
    difference: Tensor, hessian: Tensor, settings: Compensation, rank: int, beside: LowRank | None = None
) -> LowRank:
    """The B A of ``settings`` on the grids of its format; B is fitted again to the A that was rounded.

    ``beside`` is the branch of a layer that has one (``difference`` [N, K] is what it leaves): its A becomes the first
    rows of the new one, and its B is fitted again with the rest.
    """
    if settings.method == "eora":
        fitted, weights = eora(difference, hessian, rank), hessian.double()
    else:
        fitted, weights = plain_svd(difference, rank), torch.eye(len(hessian), dtype=torch.float64)
    down, target = stored(fitted.down, settings.format), difference
    if beside is not None:
        down, target = torch.cat([_levelled(beside.down, down, weights), down]), difference + beside.product
    seen = down.double() @ weights
    up = target.double() @ seen.t() @ torch.linalg.pinv(seen @ down.double().t(), hermitian=True)
    return LowRank(stored(up.float(), settings.format), down)


def _levelled(down: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """``down`` times the power of two that gives its rows about the energy of ``other``'s, so that what belongs to both
    in B is of one size and can share a step."""

    def energy(rows: Tensor) -> float:
        return float(((rows.double() @ weights) * rows.double()).sum(1).mean())

    mine, theirs = energy(down), energy(other)
    return down * 2.0 ** round(math.log2(theirs / mine) / 2) if mine > 0 and theirs > 0 else down


def stored(matrix: Tensor, name: str) -> Tensor:
    """``matrix`` [n, k] rounded so that it is kept exactly at export: to float16, to int8 with a step for each row, or
    to int4 with one for each block."""
    if name == "fp16":
        return matrix.half().float()
    if name == "int4":
        return rounded(matrix, 4, block_of(matrix.shape[1]))
    step = shortened(matrix.double().abs().amax(1, keepdim=True) / 127)
    step = torch.where(step < 1e-35, 1.0, step)
    return (codes(matrix.double(), step, 8).clamp_(min=-127) * step).float()


def block_of(columns: int) -> int:
    """The block size that a matrix of so many columns is stored with: the smallest that holds a row, 16 to 64."""
    return next((size for size in (16, 32) if columns <= size), 64)


def stored_bytes(rows: int, columns: int, name: str) -> int:
    """Bytes of a matrix [rows, columns] in a bundle, scales (float32, one a block) and padding included."""
    return formats.FORMATS[name].nbytes(rows, columns, block_of(columns))


def rank_within(limit: int, shapes: Sequence[tuple[int, int]], name: str) -> int:
    """The largest rank with which the A and B of all groups [N, K] take ``limit`` bytes at most.

    Raises UsageError when rank 1 takes more.
    """

    def cost(rank: int) -> int:
        return sum(stored_bytes(min(rank, n, k), k, name) + stored_bytes(n, min(rank, n, k), name) for n, k in shapes)

    if cost(1) > limit:
        raise UsageError(f"eora.bytes: {limit}; rank 1 takes {cost(1)} bytes already; allow more")
    low, high = 1, max(min(shape) for shape in shapes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle - 1)
    return low


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """trace(D S D^T): the squared error that ``difference`` [N, K] makes in the outputs, summed over all inputs."""
    wide = difference.double()
    return float(((wide @ hessian.double()) * wide).sum().clamp(min=0))
