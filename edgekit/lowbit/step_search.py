"""The scale of each block with which a layer's outputs lose least, found by trying.

With inputs x of mean squares m = E[x x^T]_kk, the outputs of a block of weights w stored as scale * code lose about
sum m (w - scale * code)^2. For given codes the best scale is sum(m code w) / sum(m code^2), and leaves
sum(m w^2) - sum(m code w)^2 / sum(m code^2). Codes come of candidate steps below and just above the one that makes the
block's largest weight the outermost code: clipping it pays where its input is small (docs/adr/0011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FACTORS = tuple(np.linspace(0.70, 1.06, 10).tolist())
"""Candidate steps, as shares of the largest magnitude over the outermost code of either side."""
SMALLEST = np.float32(np.finfo(np.float32).tiny * 512)
"""Of a largest magnitude that can be divided by its step."""


def search_scales(blocks: Floats, moments: Floats, scales: Floats, most: int) -> Floats:
    """The best scales float32 [n, blocks] found for values float32 [n, blocks, b], codes -most - 1 to most.

    ``moments`` [blocks, b], not negative, are the mean squares of the inputs that each value is multiplied with. A block
    keeps its scale of ``scales`` where that loses nothing, or where no input is ever anything but zero.
    """
    largest = np.abs(blocks).max(axis=-1, initial=0)
    largest = np.where(largest < SMALLEST, np.float32(1), largest)
    shares = blocks / largest[..., None]  # of any magnitude, a block is searched in the same numbers
    weights = moments / np.maximum(moments.max(axis=-1, initial=0), SMALLEST)[:, None]
    weighted, nearest, codes = shares * weights, np.empty_like(blocks), np.empty_like(blocks)
    exact = (np.clip(np.rint(blocks / scales[..., None]), -most - 1, most) * scales[..., None] == blocks).all(axis=-1)
    best, result = np.zeros_like(scales), scales
    steps: list[Floats] = [np.asarray(scales / largest, np.float32)]
    steps += [np.full((1, 1), f / side, np.float32) for side in (most + 1, most) for f in FACTORS]
    for step in steps:
        np.rint(np.divide(shares, step[..., None], out=nearest), out=nearest)
        for sign in (1, -1):  # of the scale: which side has one code more
            np.clip(nearest, -most - (sign > 0), most + (sign < 0), out=codes)
            products = np.einsum("nkb,nkb->nk", codes, weighted)
            squares = np.einsum("nkb,kb->nk", np.multiply(codes, codes, out=codes), weights)
            squares = np.maximum(squares, SMALLEST)
            gains = products * products / squares
            better = (gains > best) & ~exact
            best = np.where(better, gains, best)
            result = np.where(better, sign * products / squares * largest, result)
    return np.asarray(result, np.float32)
