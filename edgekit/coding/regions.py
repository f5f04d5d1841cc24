"""What the bytes of a bundle's files are: tensors of a known type, padding between them, and everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.tensors import Stored
from edgekit.coding import segments

CHUNK = 1 << 20
"""Bytes that a chunk has at most; readers accept more (header.LARGEST_CHUNK)."""
ALIGNED = 8
"""A tensor is cut at multiples of this, so that no element is cut."""
SHORTEST = 1 << 16
"""A chunk with less room than this is closed before a tensor that does not fit."""

_CODES = (segments.BYTES, segments.NIBBLES, segments.PAIRS_OF_BITS)
LAYOUTS: dict[tuple[str, int], tuple[int, ...]] = {
    # numpy's kind and size of an element: what suits it. Codes of two and four bits come in bytes.
    ("u", 1): _CODES,
    ("i", 1): _CODES,
    ("f", 2): (segments.HALVES,),
    ("V", 2): (segments.HALVES,),  # bfloat16, as numpy sees it
    ("u", 2): (segments.HALVES,),
    ("f", 4): (segments.FLOATS,),
    ("f", 8): (segments.WIDE,),
    ("i", 8): (segments.WIDE,),
}
OTHER = (segments.BYTES, segments.FLOATS)
"""What is tried beside deflate for everything else; golden vectors are floats."""


@dataclass(frozen=True)
class Region:
    """Bytes of one kind in a file; ``base`` is where an older version has the same tensor, if it has."""

    offset: int
    length: int
    layouts: tuple[int, ...]
    base: int | None = None


Tensors = Mapping[str, Stored]


def regions(path: str, size: int, tensors: Tensors, old: Tensors | None, old_size: int | None) -> list[Region]:
    """The regions that fill a file of ``size`` bytes, in order.

    ``old`` and ``old_size`` are the base version's tensors and the size of its file of the same name, or None.
    """
    places = {
        (stored.offset, stored.length): (name, stored)
        for name, stored in tensors.items()
        if stored.file == path and stored.length
    }
    if not places:
        return [Region(0, size, OTHER, 0 if old_size == size else None)] if size else []
    parts: list[Region] = []
    for (offset, length), (name, stored) in sorted(places.items()):
        parts += _padding(parts, offset, old_size)
        kind = (stored.dtype.kind, stored.dtype.itemsize)
        parts.append(Region(offset, length, LAYOUTS.get(kind, (segments.BYTES,)), _base_of(name, stored, old)))
    return parts + _padding(parts, size, old_size)


def _padding(before: Sequence[Region], stop: int, old_size: int | None) -> list[Region]:
    """What lies between the last region and ``stop``; in the base version it is taken to follow the same tensor."""
    at = before[-1].offset + before[-1].length if before else 0
    if stop <= at:
        return []
    base = None
    if old_size is not None and before and before[-1].base is not None:
        base = before[-1].base + before[-1].length
        base = base if base + stop - at <= old_size else None
    return [Region(at, stop - at, (), base)]


def _base_of(name: str, stored: Stored, old: Tensors | None) -> int | None:
    """Where the base version has the tensor of this name, type and shape, in the same file."""
    before = old.get(name) if old else None
    if before is None or before.file != stored.file:
        return None
    same = before.dtype == stored.dtype and before.shape == stored.shape and before.length == stored.length
    return before.offset if same else None


def chunks(parts: Sequence[Region]) -> Iterator[list[Region]]:
    """The regions cut into chunks; all of a chunk with a base have it at the same distance."""
    waiting: list[Region] = []
    room = CHUNK
    for part in parts:
        at = 0
        while at < part.length:
            shift = None if part.base is None else part.base - part.offset
            remaining = part.length - at
            if waiting and ((remaining > room and room < SHORTEST) or _shift(waiting) != shift):
                yield waiting
                waiting, room = [], CHUNK
            taken = remaining if remaining <= room else room // ALIGNED * ALIGNED
            offset = part.offset + at
            waiting.append(Region(offset, taken, part.layouts, None if shift is None else offset + shift))
            at, room = at + taken, room - taken
            if room < ALIGNED:
                yield waiting
                waiting, room = [], CHUNK
    if waiting:
        yield waiting


def _shift(waiting: Sequence[Region]) -> int | None:
    return None if waiting[0].base is None else waiting[0].base - waiting[0].offset
