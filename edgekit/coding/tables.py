"""Frequency tables: which there are, when each is used, and their bytes.

A stream of symbols (docs/pack.md section 5) has one to sixteen tables. Which of them codes a symbol is known before the
symbol is: always the first (``ALONE``), by the magnitudes of the symbols before it (``NEIGHBOURS``), or by the symbol
that a base version has in the same place (``BASE``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.coding.bits import BitReader, BitWriter, Reader

Symbols = NDArray[np.uint8]
Counts = NDArray[np.int64]

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
"""Frequencies of a table add up to this."""
MOST_TABLES = 16
CLASSES = 64
"""Classes of neighbourhoods, four an octave."""
LANES = 16
ALONE, NEIGHBOURS, BASE = range(3)


@dataclass(frozen=True)
class Model:
    """How a stream is coded; ``tables`` are int64 [tables, 256] of sum SCALE each."""

    width: int  # bits of a symbol: 2, 4 or 8
    lanes: int
    kind: int
    centre: int  # magnitudes are distances to it, round the circle of 2^width
    tables: Counts
    starts: tuple[int, ...] = (0,)  # first class of each table, for NEIGHBOURS
    escape: int | None = None  # a symbol that says: the next escaped byte is meant

    def table_of_class(self) -> NDArray[np.intp]:
        """The table of each of the CLASSES."""
        return np.searchsorted(np.array(self.starts), np.arange(CLASSES), side="right") - 1

    def first_slots(self) -> Counts:
        """int64 [tables, 256]: where each symbol's slots begin; they follow one another as the table's bytes do."""
        order = zigzag(self.width, self.centre)
        first = np.zeros_like(self.tables)
        first[:, order] = np.cumsum(self.tables[:, order], axis=1) - self.tables[:, order]
        return first

    def to_bytes(self) -> bytes:
        """The stream's head, as :func:`read_model` reads it."""
        flags = self.lanes.bit_length() - 1 | self.kind << 3 | (0 if self.escape is None else 1 << 5)
        out = bytearray([flags, self.centre])
        if self.escape is not None:
            out.append(self.escape)
        if self.kind == NEIGHBOURS:
            out += bytes([len(self.tables) - 1, *self.starts[1:]])
        bits = BitWriter()
        for table in self.tables:
            _write_table(table[zigzag(self.width, self.centre)], bits)
        return bytes(out) + bits.to_bytes()


def read_model(source: Reader, width: int) -> Model:
    """A stream's head. Raises ValueError when it is not as a writer makes it."""
    flags, centre = source.byte(), source.byte()
    lanes, kind, escaped = 1 << (flags & 7), flags >> 3 & 3, flags >> 5
    if lanes > LANES or kind > BASE or escaped > 1 or (kind == NEIGHBOURS and lanes != LANES):
        raise ValueError(f"a stream of unknown kind {flags}")
    escape = source.byte() if escaped else None
    if centre >> width or (escape or 0) >> width:
        raise ValueError("a symbol is wider than its stream's")
    starts = [0]
    if kind == NEIGHBOURS:
        starts += source.take(source.byte() & 15)
        if any(a >= b for a, b in zip(starts, [*starts[1:], CLASSES], strict=True)):
            raise ValueError("classes of neighbourhoods are not in order")
    count = base_classes(width) if kind == BASE else len(starts)
    bits = BitReader(source)
    tables = np.zeros((count, 256), np.int64)
    order = zigzag(width, centre)
    for table in tables:
        _read_table(table, order, bits)
    return Model(width, lanes, kind, centre, tables, tuple(starts), escape)


def _write_table(frequencies: Counts, bits: BitWriter) -> None:
    used = int(np.flatnonzero(frequencies)[-1]) + 1
    k = max(0, (SCALE // used).bit_length() - 2) if used > 1 else SCALE_BITS
    bits.bits(used - 1, 8)
    bits.bits(k, 4)
    for frequency in frequencies[:used]:
        bits.golomb(int(frequency), k)


def _read_table(table: Counts, order: NDArray[np.intp], bits: BitReader) -> None:
    used, k = bits.bits(8) + 1, bits.bits(4)
    if used > len(order) or k > SCALE_BITS:
        raise ValueError(f"a table of {used} symbols of order {k}")
    for symbol in order[:used]:
        table[symbol] = bits.golomb(k, SCALE)
    if (total := int(table.sum())) != SCALE:
        raise ValueError(f"frequencies add up to {total}, not {SCALE}")


def zigzag(width: int, centre: int) -> NDArray[np.intp]:
    """All symbols by their distance to ``centre``: itself, + 1, - 1, + 2, ..."""
    steps = np.arange(1 << width)
    return (centre + np.where(steps % 2, steps + 1, -steps) // 2) % (1 << width)


def magnitudes(symbols: Symbols, width: int, centre: int) -> NDArray[np.int64]:
    """Distances of symbols to ``centre`` on the circle of 2^width."""
    up = (symbols.astype(np.int64) - centre) % (1 << width)
    return np.minimum(up, (1 << width) - up)


def neighbourhood(activity: int) -> int:
    """The class of a decayed sum of magnitudes: its exponent and two more bits."""
    if activity < 4:
        return activity
    exponent = activity.bit_length() - 1
    return 4 * (exponent - 1) + (activity >> (exponent - 2) & 3)


def activities(magnitude: NDArray[np.int64]) -> Iterator[int]:
    """For each step of LANES symbols the activity before it: all earlier magnitudes, decaying by a quarter a step."""
    activity = 0
    for start in range(0, len(magnitude), LANES):
        yield activity
        activity += int(magnitude[start : start + LANES].sum()) - (activity >> 2)


def base_classes(width: int) -> int:
    """Tables of a BASE stream: one a symbol, for bytes one for each upper half."""
    return min(1 << width, MOST_TABLES)


def base_class(base: Symbols, width: int) -> Symbols:
    """The table that codes the symbol in the place of each base symbol."""
    return base >> np.uint8(4) if width == 8 else base


def model_of(counts: Counts, width: int, lanes: int, kind: int, centre: int) -> Model:
    """The cheapest model found for ``counts`` int64 [classes, 256]: rare symbols escaped, like classes merged."""
    starts = _merge(counts) if kind == NEIGHBOURS else [0]
    if kind == NEIGHBOURS:
        counts = np.add.reduceat(counts, starts, axis=0)
        starts[0] = 0
    direct = [_direct(row) for row in counts]
    escaped = any((row[~own] > 0).any() for row, own in zip(counts, direct, strict=True))
    escape = _escape_symbol(counts, width, centre) if escaped else None
    tables = [_table(row, own, escape, centre) for row, own in zip(counts, direct, strict=True)]
    return Model(width, lanes, kind, centre, np.stack(tables), tuple(starts), escape)


def bits_needed(counts: Counts) -> float:
    """About the bits of symbols counted [256], their table included."""
    return float(_bits(counts[None])[0])


def _bits(counts: Counts) -> NDArray[np.float64]:
    total = counts.sum(axis=-1)
    each = np.where(counts > 0, counts * np.log2(np.maximum(counts, 1)), 0.0).sum(axis=-1)
    bits: NDArray[np.float64] = total * np.log2(np.maximum(total, 1)) - each + 7.0 * (counts > 0).sum(axis=-1) + 12
    return bits


def _merge(counts: Counts) -> list[int]:
    """First class of each table: neighbours are joined while that saves bits or there are too many."""
    starts = [int(c) for c in np.flatnonzero(counts.sum(axis=1))] or [0]
    groups = np.add.reduceat(counts, starts, axis=0)
    costs = _bits(groups)
    while len(starts) > 1:
        joined = groups[:-1] + groups[1:]
        saved = costs[:-1] + costs[1:] - _bits(joined)
        best = int(saved.argmax())
        if saved[best] <= 0 and len(starts) <= MOST_TABLES:
            break
        groups = np.concatenate([groups[:best], joined[best : best + 1], groups[best + 2 :]])
        costs = _bits(groups)
        del starts[best + 1]
    return starts


def _direct(counts: Counts) -> NDArray[np.bool_]:
    """Symbols with a frequency of their own: those for which a slot costs less than escaping them."""
    own: NDArray[np.bool_] = (counts * SCALE > 0.2 * counts.sum()) & (counts > 1)
    own[int(counts.argmax())] = True
    return own


def _escape_symbol(counts: Counts, width: int, centre: int) -> int:
    """The rarest symbol, of several the one nearest to the centre."""
    order = zigzag(width, centre)
    return int(order[int(counts.sum(axis=0)[order].argmin())])


def _table(counts: Counts, direct: NDArray[np.bool_], escape: int | None, centre: int) -> Counts:
    """Frequencies of sum SCALE that code ``counts`` in few bits; an unused class gets what needs no bits."""
    coded = np.where(direct, counts, 0)
    if escape is not None:
        coded[escape] = 0
        coded[escape] = counts.sum() - coded.sum()
    if not coded.any():
        coded[centre] = 1
    used = np.flatnonzero(coded)
    weight = coded[used].astype(np.float64)
    frequencies = np.maximum(1, np.rint(weight * SCALE / weight.sum())).astype(np.int64)
    while (off := int(frequencies.sum()) - SCALE) != 0:
        step = 1 if off < 0 else -1
        changed = np.maximum(frequencies + step, 1)
        gain = weight * np.log2(changed / frequencies)
        gain[changed == frequencies] = -np.inf
        frequencies[int(gain.argmax())] += step
    table = np.zeros(256, np.int64)
    table[used] = frequencies
    return table
