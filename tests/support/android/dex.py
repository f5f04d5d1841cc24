"""Which classes a dex file defines."""

from __future__ import annotations

import struct


def classes(dex: bytes) -> set[str]:
    """Names such as dev.edgekit.EdgeKit. Raises AssertionError for what is no dex file."""
    assert dex[:4] == b"dex\n", f"starts with {dex[:4]!r}"
    assert struct.unpack_from("<I", dex, 32)[0] == len(dex)
    strings_at = struct.unpack_from("<I", dex, 60)[0]
    types_at = struct.unpack_from("<I", dex, 68)[0]
    count, classes_at = struct.unpack_from("<II", dex, 96)

    def name(class_index: int) -> str:
        (type_index,) = struct.unpack_from("<I", dex, classes_at + 32 * class_index)
        (string_index,) = struct.unpack_from("<I", dex, types_at + 4 * type_index)
        (at,) = struct.unpack_from("<I", dex, strings_at + 4 * string_index)
        while dex[at] >= 128:  # the length, seven bits a byte
            at += 1
        text = dex[at + 1 : dex.index(b"\0", at + 1)].decode()
        return text[1:-1].replace("/", ".")  # Ldev/edgekit/EdgeKit;

    return {name(index) for index in range(count)}
