"""The coder of symbols in numpy: what docs/pack.md section 5 says, the oracle of the C++ one, and what runs without it.

Range asymmetric numeral systems (Duda, arXiv 1311.2540) with interleaved lanes (Giesen, arXiv 1402.3392): states of 32
bits, words of 16. The decoder goes forward, so the encoder goes backward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.coding.bits import Reader, number
from edgekit.coding.tables import (
    BASE,
    CLASSES,
    LANES,
    NEIGHBOURS,
    SCALE,
    SCALE_BITS,
    Counts,
    Model,
    Symbols,
    activities,
    base_class,
    magnitudes,
    neighbourhood,
    read_model,
    zigzag,
)

LOW = 1 << 16
"""Where every state begins and ends."""


def count(symbols: Symbols, width: int, centre: int) -> Counts:
    """int64 [CLASSES, 256]: how often each symbol stands in each class of neighbourhood."""
    counts = np.zeros((CLASSES, 256), np.int64)
    for step, activity in enumerate(activities(magnitudes(symbols, width, centre))):
        np.add.at(counts[neighbourhood(activity)], symbols[step * LANES : (step + 1) * LANES], 1)
    return counts


def encode(symbols: Symbols, model: Model, base: Symbols | None) -> bytes:
    """What follows the model's bytes in a stream of ``symbols`` [n] (``base`` [n] for BASE)."""
    which = _tables(symbols, model, base)
    escaped = np.zeros(len(symbols), np.bool_)
    coded = symbols
    if model.escape is not None:
        escaped = (model.tables[which, symbols] == 0) | (symbols == model.escape)
        coded = np.where(escaped, np.uint8(model.escape), symbols)
    frequency = model.tables[which, coded].astype(np.uint64)
    start = model.first_slots()[which, coded].astype(np.uint64)
    states = np.full(model.lanes, LOW, np.uint64)
    words: list[NDArray[np.uint64]] = []
    for at in reversed(range(0, len(symbols), model.lanes)):
        f, s = frequency[at : at + model.lanes], start[at : at + model.lanes]
        x = states[: len(f)]
        full = x >= f << np.uint64(32 - SCALE_BITS)
        words.append(x[full][::-1] & np.uint64(0xFFFF))
        x = np.where(full, x >> np.uint64(16), x)
        states[: len(f)] = (x // f << np.uint64(SCALE_BITS)) + x % f + s
    written = np.concatenate(words)[::-1].astype("<u2")
    escapes = symbols[escaped].tobytes()
    return number(len(written)) + number(len(escapes)) + states.astype("<u4").tobytes() + written.tobytes() + escapes


def _tables(symbols: Symbols, model: Model, base: Symbols | None) -> NDArray[np.intp]:
    """The table of each symbol."""
    if model.kind == BASE:
        assert base is not None
        return base_class(base, model.width).astype(np.intp)
    if model.kind != NEIGHBOURS:
        return np.zeros(len(symbols), np.intp)
    magnitude = magnitudes(symbols, model.width, model.centre)
    classes = [neighbourhood(activity) for activity in activities(magnitude)]
    return np.repeat(model.table_of_class()[classes], LANES)[: len(symbols)]


def decode(data: memoryview, size: int, width: int, base: Symbols | None) -> Symbols:
    """The ``size`` symbols of a stream, its model included. Raises ValueError when it is damaged."""
    source = Reader(data)
    model = read_model(source, width)
    if model.kind == BASE and base is None:
        raise ValueError("a stream refers to a base version, and there is none")
    word_count, escape_count = source.number(size), source.number(size)
    states = np.frombuffer(source.take(4 * model.lanes), "<u4").astype(np.uint64)
    words = np.frombuffer(source.take(2 * word_count), "<u2").astype(np.uint64)
    escapes = np.frombuffer(source.take(escape_count), np.uint8)
    if source.left or (states < LOW).any():
        raise ValueError("a stream's parts do not fit together")
    return _decode(model, size, states, words, escapes, base)


def _decode(
    model: Model,
    size: int,
    states: NDArray[np.uint64],
    words: NDArray[np.uint64],
    escapes: Symbols,
    base: Symbols | None,
) -> Symbols:
    order = zigzag(model.width, model.centre)
    symbol_at = np.stack([np.repeat(order, table[order]) for table in model.tables]).astype(np.uint8)
    frequencies, starts = model.tables.astype(np.uint64), model.first_slots().astype(np.uint64)
    of_class, activity = model.table_of_class(), 0
    which = None if base is None else base_class(base, model.width).astype(np.intp)
    out = np.empty(size, np.uint8)
    word = escape = 0
    for at in range(0, size, model.lanes):
        x = states[: min(model.lanes, size - at)]
        t: NDArray[np.intp] | int = 0
        if model.kind == BASE and which is not None:
            t = which[at : at + len(x)]
        elif model.kind == NEIGHBOURS:
            t = int(of_class[neighbourhood(activity)])
        slot = x & np.uint64(SCALE - 1)
        decoded = symbol_at[t, slot.astype(np.intp)]
        x = frequencies[t, decoded] * (x >> np.uint64(SCALE_BITS)) + slot - starts[t, decoded]
        low = x < LOW
        needed = int(low.sum())
        if word + needed > len(words):
            raise ValueError("a stream ends before its last symbol")
        x[low] = x[low] << np.uint64(16) | words[word : word + needed]
        word += needed
        states[: len(x)] = x
        if model.escape is not None and (marks := np.flatnonzero(decoded == model.escape)).size:
            if escape + len(marks) > len(escapes):
                raise ValueError("a stream has too few escaped symbols")
            decoded[marks] = escapes[escape : escape + len(marks)]
            escape += len(marks)
        out[at : at + len(x)] = decoded
        if model.kind == NEIGHBOURS:
            activity += int(magnitudes(decoded, model.width, model.centre).sum()) - (activity >> 2)
    if word != len(words) or escape != len(escapes) or (states != LOW).any():
        raise ValueError("a stream does not end where its symbols do")
    if (out >> 1 >> (model.width - 1)).any():
        raise ValueError("a symbol is wider than its stream's")
    return out
