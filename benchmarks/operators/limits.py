"""What the machine can do at most, measured with ``streams.c``: read memory once, and multiply bytes in registers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

LINE = 512  # bytes that one step of read_repeatedly takes


class Limits:
    """``streams.c``, compiled for this processor into ``directory``."""

    def __init__(self, directory: Path) -> None:
        made = directory / "streams.so"
        if not made.exists():
            source = Path(__file__).with_name("streams.c")
            command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-shared", "-fPIC", str(source)]
            subprocess.run([*command, "-o", str(made)], check=True, stdout=sys.stderr)
        self._library = ctypes.CDLL(str(made))
        self._library.read_repeatedly.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._library.multiply_in_registers.argtypes = [ctypes.c_size_t]

    def reader(self, file: Path, threads: int) -> Callable[[int], None]:
        """A function that reads all of ``file``, mapped, so many times; each thread reads its share of it.

        Threads meet at the end only, so this is what memory gives, without what sharing one product out costs.
        """
        memory = np.memmap(file, np.uint8, "r")
        share = memory.nbytes // threads // LINE * LINE
        starts = [memory.ctypes.data + i * share for i in range(threads)]
        pool = ThreadPoolExecutor(threads)

        def read(times: int) -> None:
            assert memory.nbytes  # the map lives as long as this function
            if threads == 1:
                self._library.read_repeatedly(starts[0], share, times)
            else:
                list(pool.map(lambda start: self._library.read_repeatedly(start, share, times), starts))

        return read

    def gmac_per_s(self) -> float | None:
        """The most products of bytes that one core does, in 1e9 a second; None where it has no 512-bit vpdpbusd."""
        steps = 1_000_000
        if self._library.multiply_in_registers(steps) == 0:
            return None
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            self._library.multiply_in_registers(steps)
            seconds.append(time.perf_counter() - began)
        return round(steps * 12 * 64 / min(seconds) / 1e9, 1)
