"""Chunks: a piece of a file as segments, each coded as suits what it holds (docs/pack.md section 4)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.coding.bits import Reader, number
from edgekit.coding.streams import decode_stream, encode_stream, join, split
from edgekit.coding.tables import Symbols, bits_needed

STORED, FILL, DEFLATE, SYMBOLS = range(4)
DIFFERENCE = 128
"""Added to a layout: symbols are the differences from a base version's."""
NOTICED = 0.999
"""Of two layouts the one that decodes faster is taken unless the other makes a segment smaller than this share."""
PROBE = 1 << 16
"""Bytes that are deflated to see whether all of them are worth it."""


@dataclass(frozen=True)
class Layout:
    """How bytes are cut into symbols: of ``width`` bits, or as the bytes of elements that are ``planes`` bytes long."""

    width: int
    planes: int = 1
    rotated: bool = False  # the sign goes last, so that an exponent fills its byte


BYTES, NIBBLES, PAIRS_OF_BITS, HALVES, FLOATS, WIDE = range(6)
LAYOUTS = (Layout(8), Layout(4), Layout(2), Layout(8, 2, True), Layout(8, 4, True), Layout(8, 8))


@dataclass(frozen=True)
class Piece:
    """Bytes uint8 [n] of one kind, what may suit them, and a base version's bytes in the same place."""

    data: Symbols
    layouts: tuple[int, ...] = (BYTES,)
    deflate: bool = True
    base: Symbols | None = None


def encode_chunk(pieces: Iterable[Piece]) -> bytes:
    """The segments of all pieces."""
    return b"".join(_segment(piece) for piece in pieces if len(piece.data))


def _segment(piece: Piece) -> bytes:
    data, size = piece.data, number(len(piece.data))
    if (data == data[0]).all():
        return bytes([FILL]) + size + bytes([data[0]])
    segment = bytes([STORED]) + size + data.tobytes()
    if piece.deflate and (packed := _deflated(data, len(segment))) is not None:
        segment = bytes([DEFLATE]) + size + number(len(packed)) + packed
    for layout in _promising(piece):
        coded = bytes([SYMBOLS]) + size + _symbols(data, layout, None)
        segment = coded if len(coded) < NOTICED * len(segment) else segment
    if piece.base is not None:
        for layout in piece.layouts:
            if len(data) % LAYOUTS[layout].planes == 0:
                segment = min(segment, bytes([SYMBOLS]) + size + _symbols(data, layout, piece.base), key=len)
    return segment


def _deflated(data: Symbols, limit: int) -> bytes | None:
    """Without zlib's frame; None where it would not be smaller than ``limit``."""
    if len(data) > 4 * PROBE and len(zlib.compress(data[:PROBE].data, 1)) > 0.9 * PROBE:
        return None
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = coder.compress(data.data) + coder.flush()
    return packed if len(packed) + 9 < limit else None


def _promising(piece: Piece) -> list[int]:
    """The layouts that may be the smallest, judged by counting symbols; the fastest to decode comes first."""
    fitting = [layout for layout in piece.layouts if len(piece.data) % LAYOUTS[layout].planes == 0]
    if len(fitting) < 2:
        return fitting
    costs = {layout: _estimate(piece.data, LAYOUTS[layout]) for layout in fitting}
    return [layout for layout in fitting if costs[layout] <= 1.03 * min(costs.values())]


def _estimate(data: Symbols, layout: Layout) -> float:
    return sum(bits_needed(np.bincount(plane, minlength=256)) for plane in cut(data, layout))


def _symbols(data: Symbols, layout: int, base: Symbols | None) -> bytes:
    form = LAYOUTS[layout]
    planes = cut(data, form)
    before: Sequence[Symbols | None] = [None] * len(planes) if base is None else cut(base, form)
    out = bytearray([layout | (0 if base is None else DIFFERENCE)])
    for plane, old in zip(planes, before, strict=True):
        if old is not None:
            plane = (plane - old) & np.uint8((1 << form.width) - 1)
        stream = encode_stream(np.ascontiguousarray(plane), form.width, old)
        out += number(len(stream)) + stream
    return bytes(out)


def cut(data: Symbols, layout: Layout) -> list[Symbols]:
    """Bytes [n] as symbols: for elements of several bytes one array for each byte, the lowest first."""
    if layout.planes == 1:
        return [np.ascontiguousarray(split(data, layout.width))]
    if layout.rotated:
        elements = data.view(f"<u{layout.planes}")
        data = (elements << 1 | elements >> (8 * layout.planes - 1)).astype(f"<u{layout.planes}").view(np.uint8)
    return [np.ascontiguousarray(data[plane :: layout.planes]) for plane in range(layout.planes)]


def paste(planes: Sequence[Symbols], layout: Layout) -> Symbols:
    """The reverse of :func:`cut`."""
    if layout.planes == 1:
        return join(planes[0], layout.width)
    data = np.stack(planes, axis=-1).reshape(-1)
    if layout.rotated:
        elements = data.view(f"<u{layout.planes}")
        data = (elements >> 1 | elements << (8 * layout.planes - 1)).astype(f"<u{layout.planes}").view(np.uint8)
    return data


def decode_chunk(packed: memoryview, size: int, base: Symbols | None) -> Symbols:
    """The ``size`` bytes of a chunk, uint8. ``base`` uint8 [size] are a base version's. Raises ValueError."""
    source, out, at = Reader(packed), np.empty(size, np.uint8), 0
    while at < size:
        method, count = source.byte(), source.number(size - at)
        if not count:
            raise ValueError("a segment of no bytes")
        out[at : at + count] = _decode_segment(source, method, count, None if base is None else base[at : at + count])
        at += count
    if source.left:
        raise ValueError(f"{source.left:,} bytes after the last segment")
    return out


def _decode_segment(source: Reader, method: int, count: int, base: Symbols | None) -> Symbols | int:
    if method == STORED:
        return np.frombuffer(source.take(count), np.uint8)
    if method == FILL:
        return source.byte()
    if method == DEFLATE:
        return _inflated(source.take(source.number(source.left)), count)
    if method == SYMBOLS:
        return _decode_symbols(source, count, base)
    raise ValueError(f"a segment of unknown method {method}")


def _inflated(packed: memoryview, count: int) -> Symbols:
    coder = zlib.decompressobj(-15)
    try:
        data = coder.decompress(packed, count) if len(packed) else b""
        # The end mark may stand behind the last byte.
        rest = coder.decompress(coder.unconsumed_tail, 1) if not coder.eof and len(data) == count else b""
    except zlib.error as error:
        raise ValueError(f"deflated data is damaged ({error})") from None
    if len(data) != count or rest or not coder.eof or coder.unused_data:
        raise ValueError("deflated data is not as long as it should be")
    return np.frombuffer(data, np.uint8)


def _decode_symbols(source: Reader, count: int, base: Symbols | None) -> Symbols:
    code = source.byte()
    index, difference = code & 127, code >= DIFFERENCE
    if index >= len(LAYOUTS) or count % LAYOUTS[index].planes:
        raise ValueError(f"a segment of unknown layout {index} or broken size")
    if difference and base is None:
        raise ValueError("a segment refers to a base version, and there is none")
    layout = LAYOUTS[index]
    before: Sequence[Symbols | None] = [None] * layout.planes
    if difference and base is not None:
        before = cut(np.ascontiguousarray(base), layout)
    planes = []
    for old in before:
        stream = source.take(source.number(source.left))
        size = count * 8 // layout.width // layout.planes
        plane = decode_stream(stream, size, layout.width, old)
        if old is not None:
            plane = (plane + old) & np.uint8((1 << layout.width) - 1)
        planes.append(plane)
    return paste(planes, layout)
