"""Bytes of a sparse weight: a bit for each weight, and codes for those that are not zero.

One run of bytes, little-endian, for a weight [N, K] with K padded by zeros to a multiple of 128:

- uint32 [N + 1]: where each row begins in these bytes, and where the last one ends;
- the rows. A row is a bit for each weight, lowest bits first, set where it is stored, and then the codes of the stored ones,
  of one group of 64 weights after the other: a byte worth code - 128 each, or 4 bits worth code - 8, low nibble first, every
  group from a byte of its own;
- 64 zeros, so that a kernel may read a group's codes at once wherever they end.
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
    stored = (_groups(codes) != 0).sum(axis=-1, dtype=np.int64)
    return np.asarray(((stored * bits + 7) // 8).sum(axis=-1) + mask_bytes(codes.shape[1]))


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
    """[n, K] as [n, groups, 64], padded with zeros to whole blocks."""
    rows, columns = codes.shape
    padded = np.zeros((rows, 8 * mask_bytes(columns)), np.int8)
    padded[:, :columns] = codes
    return padded.reshape(rows, 8 * mask_bytes(columns) // GROUP, GROUP)


def _pack_rows(codes: Codes, bits: int) -> Bytes:
    groups = _groups(codes)
    stored = groups != 0
    counts = stored.sum(axis=-1, dtype=np.int64)
    sizes, own = (counts * bits + 7) // 8, mask_bytes(codes.shape[1])
    starts = np.concatenate([[0], np.cumsum(sizes.sum(axis=1) + own)])
    out = np.zeros((starts[-1], 8 // bits), np.uint8)  # a byte's codes side by side
    mask = np.packbits(stored.reshape(len(codes), 8 * own), axis=1, bitorder="little")
    at = (starts[:-1, None] + np.arange(own)).ravel()
    first = starts[:-1, None] + own + np.cumsum(sizes, axis=1) - sizes
    place = np.repeat(first.ravel() * (8 // bits), counts.ravel()) + _ranks(counts)
    out.reshape(-1)[place] = (groups[stored].astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    found = out[:, 0] if bits == 8 else out[:, 0] | out[:, 1] << 4
    found[at] = mask.ravel()
    return np.ascontiguousarray(found)


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... for the stored weights of each group."""
    flat = counts.ravel()
    return np.arange(int(flat.sum())) - np.repeat(np.cumsum(flat) - flat, flat)


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
    stored = np.unpackbits(mask, axis=1, bitorder="little").reshape(rows, -1, GROUP).astype(bool)
    counts = stored.sum(axis=-1, dtype=np.int64)
    sizes = (counts * bits + 7) // 8
    if (sizes.sum(axis=1) + own != np.diff(places)).any():
        raise BundleError("sparse weight has a mask that does not fit its codes; the file is damaged, copy it again")
    first = places[:-1, None] + own + np.cumsum(sizes, axis=1) - sizes
    place = np.repeat(first.ravel() * (8 // bits), counts.ravel()) + _ranks(counts)
    values = data[place] if bits == 8 else data[place >> 1] >> (place % 2 * 4).astype(np.uint8) & 15
    codes = np.zeros(stored.shape, np.int8)
    codes[stored] = (values.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    return codes.reshape(rows, -1)[:, :columns]


def cut(data: Bytes, start: int, stop: int) -> Bytes:
    """Rows ``start`` to ``stop`` as bytes of their own; how many there are, the first place tells."""
    rows = int(data[:4].view("<u4")[0]) // 4 - 1 if data.size >= 4 else 0
    places = row_places(data, rows)[start : stop + 1]
    if not 0 <= start <= stop <= rows:
        raise BundleError(f"sparse weight has {rows} rows, {start} to {stop} expected; export or copy it again")
    header = (places - places[0] + 4 * (stop - start + 1)).astype("<u4").view(np.uint8)
    return np.concatenate([header, data[places[0] : places[-1]], np.zeros(TAIL, np.uint8)])
