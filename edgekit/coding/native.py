"""The coder of symbols in C++ (edgekit/kernels/coding), with the functions of ``portable``; none where not built."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from edgekit.coding.bits import number
from edgekit.coding.tables import CLASSES, MOST_TABLES, Counts, Model, Symbols
from edgekit.errors import RuntimeUnavailable
from edgekit.lowbit.library import NATIVE, host_abi

FILES = {"linux": "libedgekit_coding.so", "macos": "libedgekit_coding.dylib", "windows": "edgekit_coding.dll"}
"""What the library is called on each system that can run Python here."""


class Native:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, u32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
        self._count, self._encode = library.EdgekitSymbolsCount, library.EdgekitSymbolsEncode
        self._decode, workspace = library.EdgekitSymbolsDecode, library.EdgekitSymbolsWorkspace
        self._count.argtypes, self._count.restype = [pointer, size, u32, u32, pointer], None
        self._encode.argtypes, self._encode.restype = (
            [pointer, size, u32, pointer, u32, u32, u32, pointer, pointer, ctypes.c_int32, *[pointer] * 5], None
        )  # fmt: skip
        self._decode.argtypes = [pointer, size, u32, pointer, pointer, size, pointer]
        self._decode.restype = ctypes.c_char_p
        workspace.restype = size
        self._workspace = int(workspace())

    def count(self, symbols: Symbols, width: int, centre: int) -> Counts:
        """As ``reference.count``."""
        counts = np.zeros((CLASSES, 256), np.int64)
        self._count(symbols.ctypes.data, len(symbols), width, centre, counts.ctypes.data)
        return counts

    def encode(self, symbols: Symbols, model: Model, base: Symbols | None) -> bytes:
        """As ``reference.encode``."""
        frequencies = np.zeros((MOST_TABLES, 256), np.uint32)
        frequencies[: len(model.tables)] = model.tables
        of_class = model.table_of_class().astype(np.uint8)
        states, written = np.empty(model.lanes, np.uint32), np.empty(2, np.uintp)
        words, escapes = np.empty(len(symbols), np.uint16), np.empty(len(symbols), np.uint8)
        used = np.empty(-(-len(symbols) // model.lanes), np.uint8)
        self._encode(
            symbols.ctypes.data, len(symbols), model.width, None if base is None else base.ctypes.data, model.lanes,
            model.kind, model.centre, frequencies.ctypes.data, of_class.ctypes.data,
            -1 if model.escape is None else model.escape, states.ctypes.data, words.ctypes.data, escapes.ctypes.data,
            used.ctypes.data, written.ctypes.data,
        )  # fmt: skip
        word_count, escape_count = int(written[0]), int(written[1])
        body = words[len(words) - word_count :].astype("<u2").tobytes() + escapes[:escape_count].tobytes()
        return number(word_count) + number(escape_count) + states.astype("<u4").tobytes() + body

    def decode(self, data: memoryview, size: int, width: int, base: Symbols | None) -> Symbols:
        """As ``reference.decode``."""
        source = np.frombuffer(data, np.uint8)
        if base is not None and len(base) != size:
            raise TypeError(f"{len(base)} symbols of a base for {size}")
        out, workspace = np.empty(size, np.uint8), np.empty(self._workspace, np.uint32)
        fault = self._decode(
            source.ctypes.data, len(source), width, None if base is None else base.ctypes.data, out.ctypes.data, size,
            workspace.ctypes.data,
        )  # fmt: skip
        if fault is not None:
            raise ValueError(fault.decode("ascii"))
        return out


@cache
def load() -> Native | None:
    """The library for this machine, or None where there is none; packs are then coded in numpy, far slower."""
    try:
        abi = host_abi()
        path = NATIVE / abi / FILES[abi.partition("-")[0]]
        return Native(ctypes.CDLL(str(path)))
    except (RuntimeUnavailable, OSError, AttributeError):
        return None
