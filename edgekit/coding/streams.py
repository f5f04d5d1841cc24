"""Streams: many symbols of 2, 4 or 8 bits, stored, as one value, or entropy coded (docs/pack.md section 5)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.coding import native, portable
from edgekit.coding.tables import (
    ALONE,
    BASE,
    CLASSES,
    LANES,
    NEIGHBOURS,
    Counts,
    Model,
    Symbols,
    base_class,
    bits_needed,
    model_of,
)

STORED, ONE, CODED = range(3)
_WORTH_IT = 0.998
"""Contexts make decoding slower: they are used where they make a stream smaller than this share."""


class Coder(Protocol):
    """What codes symbols: the native library, or ``portable``."""

    def count(self, symbols: Symbols, width: int, centre: int) -> Counts: ...
    def encode(self, symbols: Symbols, model: Model, base: Symbols | None) -> bytes: ...
    def decode(self, data: memoryview, size: int, width: int, base: Symbols | None) -> Symbols: ...


def coder() -> Coder:
    """The fastest coder that this machine has."""
    return native.load() or portable


def encode_stream(symbols: Symbols, width: int, base: Symbols | None = None) -> bytes:
    """Symbols uint8 [n], n > 0, of ``width`` bits as the smallest stream that is known.

    ``base`` uint8 [n] are those of an older version, of which ``symbols`` are the differences.
    """
    counts = np.bincount(symbols, minlength=256)
    if counts.max() == len(symbols):
        return bytes([ONE, int(symbols[0])])
    model = _model(symbols, counts, width, base)
    coded = bytes([CODED]) + model.to_bytes() + coder().encode(symbols, model, base)
    stored_bytes = -(-len(symbols) * width // 8)
    return coded if len(coded) <= stored_bytes else bytes([STORED]) + join(symbols, width).tobytes()


def _model(symbols: Symbols, counts: Counts, width: int, base: Symbols | None) -> Model:
    """The cheapest of the kinds."""
    lanes = LANES if len(symbols) >= 8192 else 4 if len(symbols) >= 1024 else 1
    centre = int(counts.argmax())
    best, bits = model_of(counts[None], width, lanes, ALONE, centre), bits_needed(counts)
    if lanes == LANES:
        by_class = coder().count(symbols, width, centre)
        neighbours = model_of(by_class, width, lanes, NEIGHBOURS, centre)
        cost = _cost(by_class, neighbours.starts)
        if len(neighbours.tables) > 1 and cost < _WORTH_IT * bits:
            best, bits = neighbours, cost
    if base is not None:
        pairs = np.bincount(base_class(base, width).astype(np.intp) << 8 | symbols, minlength=16 << 8)
        by_base = pairs.reshape(16, 256)[: 4 if width == 2 else 16]
        if sum(bits_needed(row) for row in by_base if row.any()) < _WORTH_IT * bits:
            best = model_of(by_base, width, lanes, BASE, centre)
    return best


def _cost(by_class: Counts, starts: tuple[int, ...]) -> float:
    stops = [*starts[1:], CLASSES]
    return sum(bits_needed(by_class[a:b].sum(axis=0)) for a, b in zip(starts, stops, strict=True))


def coded_bits(numbers: NDArray[np.int32]) -> int | None:
    """Bits that whole numbers [n] are coded with, tables counted; None beyond 16 bits.

    Numbers that fit no byte are coded as two, high ones apart from low ones.
    """
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < -(1 << 15) or high >= 1 << 15:
        return None
    if low >= -128 and high < 128:
        return 8 * len(encode_stream((numbers + 128).astype(np.uint8), 8))
    halves = np.ascontiguousarray((numbers + (1 << 15)).astype("<u2")).view(np.uint8).reshape(-1, 2)
    return sum(8 * len(encode_stream(np.ascontiguousarray(halves[:, half]), 8)) for half in (0, 1))


def decode_stream(data: memoryview, size: int, width: int, base: Symbols | None = None) -> Symbols:
    """The ``size`` symbols of a stream, uint8. Raises ValueError when it is damaged."""
    if not len(data):
        raise ValueError("a stream of no bytes")
    mode, body = data[0], data[1:]
    if mode == STORED and len(body) == -(-size * width // 8):
        return split(np.frombuffer(body, np.uint8), width)[:size]
    if mode == ONE and len(body) == 1 and not body[0] >> width:
        return np.full(size, body[0], np.uint8)
    if mode == CODED:
        return coder().decode(body, size, width, base)
    raise ValueError(f"a stream of unknown mode {mode} or wrong size")


def split(data: Symbols, width: int) -> Symbols:
    """Bytes as symbols of ``width`` bits, the lowest of each byte first."""
    if width == 8:
        return data
    if width == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(-1)
    return np.stack([data >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(-1)


def join(symbols: Symbols, width: int) -> Symbols:
    """The reverse of :func:`split`; a last byte that is not full is filled with zeros."""
    if width == 8:
        return symbols
    per_byte = 8 // width
    padded = np.zeros(-(-len(symbols) // per_byte) * per_byte, np.uint8)
    padded[: len(symbols)] = symbols
    parts = padded.reshape(-1, per_byte)
    joined = parts[:, 0].copy()
    for index in range(1, per_byte):
        joined |= parts[:, index] << (index * width)
    return joined
