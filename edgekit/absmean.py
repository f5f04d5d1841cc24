"""Ternary weights as BitNet b1.58 rounds them (absmean): the very operations of transformers' WeightQuant."""

from __future__ import annotations

from torch import Tensor

LEAST = 1e-5
"""Smallest mean magnitude that is divided by."""


def inverse_scale(weight: Tensor) -> Tensor:
    """1 / mean |w| of a whole matrix, float32."""
    return 1.0 / weight.float().abs().mean().clamp(min=LEAST)


def codes(weight: Tensor, inverse: Tensor) -> Tensor:
    """-1, 0 or 1 for each weight, float32; halves go to the even neighbour. ``inverse`` is of the whole matrix."""
    return (weight.float() * inverse).round().clamp(-1, 1)
