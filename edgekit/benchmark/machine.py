"""The machine that measures: what it is, and what else happened on it meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgekit.cpu import processor_features

CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """A description for reports; unknown facts are empty or None."""

    system: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_mb: int
    governor: str
    max_mhz: float | None
    on_battery: bool | None
    load_average: float | None  # processes that wanted to run during the last minute


def describe() -> Machine:
    """This machine, now."""
    name, features = processor_features()
    battery, frequency = _optional("sensors_battery"), _optional("cpu_freq")
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=name,
        cores=usable_cores(),
        features=features,
        memory_mb=psutil.virtual_memory().total >> 20,
        governor=_text(CPU / "cpu0/cpufreq/scaling_governor"),
        max_mhz=None if frequency is None else frequency.max or None,  # type: ignore[attr-defined]
        on_battery=None if battery is None else not battery.power_plugged,  # type: ignore[attr-defined]
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Disturbance:
    """What happened between two moments, in cores on average where not said otherwise."""

    others: float  # cores that other processes kept busy
    stolen: float  # share of the machine that the hypervisor gave to others
    throttled: int  # thermal or power events counted by the system


class Watch:
    """Counts from its creation what the rest of the machine did, apart from the processes named."""

    def __init__(self, own: Sequence[int]) -> None:
        """``own`` are the process ids that measure; this process belongs to them."""
        self._own = [psutil.Process(pid) for pid in (os.getpid(), *own)]
        self._began = self._now()

    def _now(self) -> tuple[float, float, float, float, int]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        stolen = getattr(times, "steal", 0.0)
        # Guest time is counted in user time already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = sum(t.user + t.system for t in (process.cpu_times() for process in self._own))
        return time.perf_counter(), total - idle - stolen, own, stolen, _throttle_events()

    def disturbance(self) -> Disturbance:
        """What happened since."""
        (start, *before), (now, *after) = self._began, self._now()
        busy, own, stolen, throttled = (b - a for a, b in zip(before, after, strict=True))
        seconds = max(now - start, 1e-9)
        cores = os.cpu_count() or 1
        return Disturbance(max(0.0, (busy - own) / seconds), max(0.0, stolen / seconds / cores), int(throttled))


def _throttle_events() -> int:
    """Thermal throttling counted by the kernel, and a Raspberry Pi's flags (any bit counts as an event)."""
    counters = CPU.glob("cpu*/thermal_throttle/*_throttle_count")
    flags = Path("/sys/devices/platform").glob("soc*/*firmware/get_throttled")
    return sum(_number(_text(path), 10) for path in counters) + sum(_number(_text(path), 16) for path in flags)


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0


def _optional(name: str) -> object | None:
    """What psutil says about something that not every system has."""
    try:
        return getattr(psutil, name)()  # type: ignore[no-any-return]
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
