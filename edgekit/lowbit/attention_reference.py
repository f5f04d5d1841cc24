"""An exact numpy model of ``ai.edgekit::CachedAttention``: slow, and the same bits as every kernel.

The text to read beside this is ``docs/operators.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Float = Floats | np.float32

BLOCK = 64
"""Positions whose scores have a maximum and a sum of their own."""
LANES = 8
"""Of every sum over a head or over a block."""
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ONE, _SMALLEST = np.float32(1), np.float32(-87)


@dataclass(frozen=True)
class Attention:
    """Attributes of the operator."""

    num_heads: int
    kv_num_heads: int
    scale: float
    local_window_size: int = -1
    do_rotary: int = 0
    rotary_interleaved: int = 0
    softcap: float = 0.0


def fused(a: Float, b: Float, c: Float) -> Floats:
    """a * b + c, rounded once: the product is exact in float64, and what the sum loses there goes into its last bit."""
    product, addend = np.multiply(a, b, dtype=np.float64), np.float64(c)
    total = np.asarray(product + addend)
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    odd = np.where((lost != 0) & np.isfinite(lost) & (bits % 2 == 0), np.where((lost > 0) == (total > 0), 1, -1), 0)
    result: Floats = (bits + odd).view(np.float64).astype(np.float32)
    return result


def exp_of(x: Floats) -> Floats:
    """exp(x) for x <= 0; 0 below -87."""
    inside = np.maximum(x, _SMALLEST)
    n = fused(inside, np.float32(1.44269504), np.float32(12582912)) - np.float32(12582912)
    r = fused(n, np.float32(-0.693359375), inside)
    r = fused(n, np.float32(2.12194440e-4), r)
    y = np.full_like(r, np.float32(_EXP[0]))
    for coefficient in _EXP[1:]:
        y = fused(y, r, np.float32(coefficient))
    y = fused(y, r * r, r) + _ONE
    return np.where(x < _SMALLEST, np.float32(0), y * np.ldexp(_ONE, n.astype(np.int32))).astype(np.float32)


def capped(x: Floats, softcap: float) -> Floats:
    """softcap * tanh(x / softcap)."""
    cap = np.float32(softcap)
    z = x * (_ONE / cap)
    e = exp_of(np.where(z < 0, z, -z) * np.float32(2))
    tanh = (_ONE - e) / (_ONE + e)
    result: Floats = np.where(z < 0, -tanh, tanh) * cap
    return result


def folded(lanes: Floats) -> Floats:
    """Eight lanes along the last axis -> their sum, in halves."""
    for half in (4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def rotated(x: Floats, turns: Floats, interleaved: int, scale: float) -> Floats:
    """One head [D] turned by angles whose cosines and sines are [2, R], and scaled."""
    (cos, sin), half, y = turns, turns.shape[1], x.copy()
    first, second = (np.s_[0 : 2 * half : 2], np.s_[1 : 2 * half : 2]) if interleaved else (np.s_[:half], np.s_[half : 2 * half])  # fmt: skip
    y[first] = fused(x[first], cos, -(x[second] * sin))
    y[second] = fused(x[second], cos, x[first] * sin)
    return y * np.float32(scale)


def _scores(q: Floats, keys: Floats) -> Floats:
    lanes = np.zeros((len(keys), LANES), np.float32)
    for d in range(0, len(q), LANES):
        lanes = fused(q[d : d + LANES], keys[:, d : d + LANES], lanes)
    return folded(lanes)


def _row(
    q: Floats, keys: Floats, values: Floats, first: int, end: int, softcap: float, sink: np.float32 | None
) -> Floats:
    """One query [D] over positions ``first`` to ``end`` - 1 of keys and values [positions, D]."""
    most: Float = np.float32(-np.inf) if sink is None else sink
    total: Float = np.float32(0) if sink is None else _ONE
    y = np.zeros_like(q)
    for block in range(first // BLOCK, (end - 1) // BLOCK + 1):
        seen = slice(max(first, block * BLOCK), min(end, (block + 1) * BLOCK))
        scores = _scores(q, keys[seen])
        if softcap:
            scores = capped(scores, softcap)
        own_most = scores.max()
        weights = np.zeros(BLOCK, np.float32)
        weights[seen.start - block * BLOCK : seen.stop - block * BLOCK] = exp_of(scores - own_most)
        lanes = np.zeros(LANES, np.float32)
        for lane in weights.reshape(-1, LANES):
            lanes = lanes + lane
        part = np.zeros_like(q)
        for position in range(seen.start, seen.stop):
            part = fused(weights[position - block * BLOCK], values[position], part)
        now = max(most, own_most)
        before, own = exp_of(np.asarray(most - now)), exp_of(np.asarray(own_most - now))
        y = fused(part, own, y * before)
        total = fused(folded(lanes), own, total * before)
        most = now
    result: Floats = y * (_ONE / total)
    return result


def cached_attention(
    facts: Attention, query: Floats, key: Floats, value: Floats, past_key: Floats, past_value: Floats,
    seqlens_k: NDArray[np.int32], cos: Floats | None = None, sin: Floats | None = None, sink: Floats | None = None,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """``query`` [B, S, H D], ``key`` and ``value`` [B, S, G D], caches [B, G, P, D] that have room; as the operator does it.

    Returns the output [B, S, H D] and the caches.
    """
    batch, tokens, width = query.shape
    heads, groups = facts.num_heads, facts.kv_num_heads
    dim = width // heads
    keys, values, y = past_key.copy(), past_value.copy(), np.zeros_like(query)
    for b in range(batch):
        start = int(seqlens_k[b]) + 1 - tokens
        for t in range(tokens):
            at = start + t
            turns = np.zeros((2, 0), np.float32) if cos is None or sin is None else np.stack((cos[at], sin[at]))
            for g in range(groups):
                own = slice(g * dim, (g + 1) * dim)
                keys[b, g, at] = rotated(key[b, t, own], turns, facts.rotary_interleaved, 1.0)
                values[b, g, at] = value[b, t, own]
            for h in range(heads):
                own = slice(h * dim, (h + 1) * dim)
                q = rotated(query[b, t, own], turns, facts.rotary_interleaved, facts.scale)
                g = h // (heads // groups)
                first = max(0, at + 1 - facts.local_window_size) if facts.local_window_size > 0 else 0
                y[b, t, own] = _row(q, keys[b, g], values[b, g], first, at + 1, facts.softcap, None if sink is None else sink[h])  # fmt: skip
    return y, keys, values
