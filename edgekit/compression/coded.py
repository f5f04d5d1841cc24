"""What ``edgekit pack`` would make of weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.coding.streams import encode_stream


def coded_bits(codes: NDArray[np.int32]) -> int | None:
    """Bits that ``edgekit pack`` codes whole numbers with, its tables counted; None beyond 16 bits.

    Numbers that fit no byte are coded as two, high ones apart from low ones.
    """
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if low < -(1 << 15) or high >= 1 << 15:
        return None
    if low >= -128 and high < 128:
        return 8 * len(encode_stream((codes + 128).astype(np.uint8), 8))
    halves = np.ascontiguousarray((codes + (1 << 15)).astype("<u2")).view(np.uint8).reshape(-1, 2)
    return sum(8 * len(encode_stream(np.ascontiguousarray(halves[:, half]), 8)) for half in (0, 1))
