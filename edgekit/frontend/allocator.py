"""What the C library keeps of freed memory."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Collects garbage and returns all freed memory to the system."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Returns freed memory to the system: Linux's C library keeps it otherwise, gigabytes after a large checkpoint."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
