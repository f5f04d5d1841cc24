"""Memory of the own process: its peak, and how it divides into private memory and mapped files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """MiB; None where the system does not tell. Mapped file pages can be dropped and read again, private ones not."""

    peak: float
    private: float | None
    file: float | None


def now() -> Memory:
    """This process, now; ``peak`` since it started."""
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
        peak, private, file = (_kib(fields.get(key)) for key in ("VmHWM", "RssAnon", "RssFile"))
        if peak is not None:
            return Memory(peak, private, file)
    return Memory(_peak_bytes() / 2**20, None, None)


def _kib(field: str | None) -> float | None:
    return None if field is None else int(field.split()[0]) / 1024


def _peak_bytes() -> int:
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
