"""Bytes of a sparse weight: a bit for each weight, and codes for those that are not zero.

One run of bytes, little-endian, for a weight [N, K] with K padded by zeros to a multiple of 128:

- uint32 [N + 1]: where each row begins in these bytes, and where the last one ends;
- the rows. A row is a bit for each weight, lowest bits first, set where it is stored, and then bytes with the codes of the
  stored ones. 8 bits: one after the other, a byte worth code - 128 each. 4 bits, worth code - 8: in the low halves of the
  bytes those of the first 64 weights of every block of 128, one after the other, and in the high halves those of the second
  64; there are as many bytes as the longer of the two needs, and what is not used is zero;
- 64 zeros, so that a kernel may read the codes of 64 weights at once wherever they end.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BundleError, UnsupportedError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]

GROUP = 64
BLOCK = 128
TAIL = 64
MOST_BYTES = 1 << 32


def mask_bytes(columns: int) -> int:
    """Bytes of a row's bits."""
    return -(-columns // BLOCK) * (BLOCK // 8)


def row_bytes(codes: Codes, bits: int) -> NDArray[np.int64]:
    """Bytes that each row of ``codes`` int8 [n, K] takes, int64 [n]."""
    return _code_bytes(_counts(_groups(codes) != 0), bits) + mask_bytes(codes.shape[1])


def total_bytes(rows: NDArray[np.int64]) -> int:
    """Bytes of a weight whose rows take so many each."""
    return 4 * (len(rows) + 1) + int(rows.sum()) + TAIL


def pack(parts: Iterable[Codes], rows: int, bits: int) -> Bytes:
    """Signed codes int8 [n, K], some rows at a time, as the bytes above. Raises UnsupportedError beyond 4 GiB."""
    packed, ends = [], [4 * (rows + 1)]
    for codes in parts:
        packed.append(_pack_rows(codes, bits))
        ends += (ends[-1] + np.cumsum(row_bytes(codes, bits))).tolist()
    if ends[-1] + TAIL >= MOST_BYTES:
        raise UnsupportedError(f"a sparse weight of {ends[-1] + TAIL} bytes, fewer than 2^32 are possible; use int4")
    header = np.array(ends, "<u4").view(np.uint8)
    return np.concatenate([header, *packed, np.zeros(TAIL, np.uint8)])


def _groups(codes: Codes) -> Codes:
    """[n, K] as [n, blocks, 2, 64], padded with zeros to whole blocks."""
    rows, columns = codes.shape
    padded = np.zeros((rows, 8 * mask_bytes(columns)), np.int8)
    padded[:, :columns] = codes
    return padded.reshape(rows, mask_bytes(columns) * 8 // BLOCK, 2, GROUP)


def _counts(stored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of each group are stored, int64 [n, blocks, 2]."""
    return np.asarray(stored.sum(axis=-1), np.int64)


def _code_bytes(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Bytes of each row's codes."""
    halves = counts.sum(axis=1)
    return np.asarray(halves.max(axis=-1) if bits == 4 else halves.sum(axis=-1))


def _places(counts: NDArray[np.int64], bits: int, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The byte of each stored weight, groups one after the other; ``starts`` int64 [n] is where a row's codes begin."""
    apart = counts if bits == 4 else counts.reshape(len(counts), 2 * counts.shape[1])
    first = starts[:, None, None] + np.cumsum(apart, axis=1).reshape(counts.shape) - counts
    flat = counts.ravel()
    ranks = np.arange(int(flat.sum())) - np.repeat(np.cumsum(flat) - flat, flat)
    return np.repeat(first.ravel(), flat) + ranks


def _shifts(stored: NDArray[np.bool_], bits: int) -> NDArray[np.uint8]:
    """How far up in its byte each stored code lies."""
    high = np.broadcast_to(np.array([0, 8 - bits], np.uint8)[:, None], stored.shape)
    return np.asarray(high[stored])


def _pack_rows(codes: Codes, bits: int) -> Bytes:
    groups = _groups(codes)
    stored = groups != 0
    counts, own = _counts(stored), mask_bytes(codes.shape[1])
    ends = np.cumsum(_code_bytes(counts, bits) + own)
    starts = np.concatenate([[0], ends])[:-1]
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    mask = np.packbits(stored.reshape(len(codes), 8 * own), axis=1, bitorder="little")
    out[(starts[:, None] + np.arange(own)).ravel()] = mask.ravel()
    values = (groups[stored].astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    # Two codes of 4 bits may meet in a byte: their bits are added.
    np.add.at(out, _places(counts, bits, starts + own), values << _shifts(stored, bits))
    return out


def row_places(data: Bytes, rows: int) -> NDArray[np.int64]:
    """Where the rows begin and the last ends, int64 [rows + 1]. Raises BundleError when they cannot be right."""
    header = 4 * (rows + 1)
    if data.ndim != 1 or data.size < header + TAIL:
        raise BundleError(
            f"sparse weight of shape {list(data.shape)} is too short for {rows} rows; copy the file again"
        )
    places: NDArray[np.int64] = data[:header].view("<u4").astype(np.int64)
    if places[0] != header or places[-1] != data.size - TAIL or (np.diff(places) < 0).any():
        raise BundleError("sparse weight's rows are not one after the other; the file is damaged, copy it again")
    return places


def unpack(data: Bytes, rows: int, columns: int, bits: int) -> Codes:
    """Signed codes int8 [rows, columns]. Raises BundleError when masks do not fit the codes behind them."""
    places, own = row_places(data, rows), mask_bytes(columns)
    if rows and (np.diff(places) < own).any():
        raise BundleError("sparse weight has a row without room for its mask; the file is damaged, copy it again")
    mask = data[places[:-1, None] + np.arange(own)]
    stored = np.unpackbits(mask, axis=1, bitorder="little").reshape(rows, own * 8 // BLOCK, 2, GROUP).astype(bool)
    counts = _counts(stored)
    if (_code_bytes(counts, bits) + own != np.diff(places)).any():
        raise BundleError("sparse weight has a mask that does not fit its codes; the file is damaged, copy it again")
    values = data[_places(counts, bits, places[:-1] + own)] >> _shifts(stored, bits) & ((1 << bits) - 1)
    codes = np.zeros(stored.shape, np.int8)
    codes[stored] = (values.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    return codes.reshape(rows, 8 * own)[:, :columns]


def cut(data: Bytes, start: int, stop: int) -> Bytes:
    """Rows ``start`` to ``stop`` as bytes of their own; how many there are, the first place tells."""
    rows = int(data[:4].view("<u4")[0]) // 4 - 1 if data.size >= 4 else 0
    places = row_places(data, rows)[start : stop + 1]
    if not 0 <= start <= stop <= rows:
        raise BundleError(f"sparse weight has {rows} rows, {start} to {stop} expected; export or copy it again")
    header = (places - places[0] + 4 * (stop - start + 1)).astype("<u4").view(np.uint8)
    return np.concatenate([header, data[places[0] : places[-1]], np.zeros(TAIL, np.uint8)])
