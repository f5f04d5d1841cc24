"""What a device does besides measuring, and its state before and after: one shell script, read here."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.benchmark.machine import Disturbance
from edgekit.devices import Connection
from edgekit.devices.probe import HOTTEST

SCRIPT = r"""
echo "@@ $(getconf CLK_TCK 2>/dev/null || echo 100)"
head -n 1 /proc/stat
for p in {pids}; do cat /proc/$p/stat; done
echo @@
cat /sys/class/thermal/thermal_zone*/temp
echo @@
cat /sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count
cat /sys/devices/platform/soc*/*firmware/get_throttled
echo @@
cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor | sort -u
echo @@
for f in capacity charge_counter charge_now energy_now; do
  v=$(cat /sys/class/power_supply/[bB][aA][tT]*/$f 2>/dev/null | head -n 1); [ -n "$v" ] && echo "$f $v"
done
dumpsys battery 2>/dev/null | sed -n 's/^ *level: /capacity /p; s/^ *Charge counter: /charge_counter /p'
v=$(cat /sys/class/powercap/intel-rapl:0/energy_uj 2>/dev/null); [ -n "$v" ] && echo "energy_uj $v"
true
"""


@dataclass(frozen=True)
class State:
    """A device at one moment; None and empty where it does not tell."""

    clock: float  # seconds
    busy: float  # seconds of all cores together since it started
    own: float  # of them, the runners'
    stolen: float  # taken by a hypervisor
    temperature: float | None  # degrees Celsius, the hottest zone
    throttle_events: int
    throttle_flags: int  # reasons that hold now
    governor: str
    counters: dict[str, int]  # battery and energy, in the units of Linux's files (percent, µAh, µWh, µJ)

    @property
    def battery(self) -> int | None:
        """Percent."""
        return self.counters.get("capacity")

    @property
    def charge_uah(self) -> int | None:
        """Charge that is left, microampere hours."""
        return self.counters.get("charge_counter", self.counters.get("charge_now"))


def energy_joules(before: State, after: State) -> float | None:
    """What a counter of energy says was used; None without one, and where it began anew or the device was charged."""
    if "energy_uj" in before.counters and "energy_uj" in after.counters:
        used = (after.counters["energy_uj"] - before.counters["energy_uj"]) / 1e6
    elif "energy_now" in before.counters and "energy_now" in after.counters:
        used = (before.counters["energy_now"] - after.counters["energy_now"]) * 3600 / 1e6
    else:
        return None
    return used if used >= 0 else None


class DeviceWatch:
    """Counts what a device did besides the runners from its creation on."""

    def __init__(self, connection: Connection, pids: Sequence[int], cores: int) -> None:
        """``pids`` are the runners' process ids there. Raises RuntimeUnavailable when the device is out of reach."""
        self._cores = cores
        self._connection, self._script = connection, SCRIPT.replace("{pids}", " ".join(map(str, pids)))
        self.before = self.after = self._now()

    def disturbance(self) -> Disturbance:
        """What happened since, and ``after``. Raises RuntimeUnavailable when the device is out of reach."""
        self.after = now = self._now()
        began = self.before
        seconds = max(now.clock - began.clock, 1e-9)
        others = (now.busy - began.busy - (now.own - began.own)) / seconds
        stolen = (now.stolen - began.stolen) / seconds / self._cores
        events = now.throttle_events - began.throttle_events + now.throttle_flags
        return Disturbance(max(0.0, others), max(0.0, stolen), events)

    def _now(self) -> State:
        clock = time.monotonic()
        return parse(self._connection.text(self._script), clock)


def parse(text: str, clock: float) -> State:
    """The state in the output of ``SCRIPT``."""
    head, temperatures, events, governors, counters = [*text.split("@@", 5), "", "", "", "", ""][1:6]
    ticks, *lines = head.strip().splitlines() or ["100"]
    hertz = float(ticks) if ticks.strip().isdigit() else 100.0
    total = [int(value) for value in lines[0].split()[1:9]] if lines and lines[0].startswith("cpu") else [0] * 8
    total += [0] * (8 - len(total))
    own = sum(int(f[11]) + int(f[12]) for f in (line.rpartition(")")[2].split() for line in lines[1:]) if len(f) > 12)
    zones = [int(line) / 1000 for line in temperatures.split() if re.fullmatch(r"\d{4,6}", line)]
    flags = [int(e, 16) for e in events.split() if re.fullmatch(r"0x[0-9a-fA-F]+", e)]
    counted: dict[str, int] = {}
    for name, value in re.findall(r"^(\w+) (\d{1,18})$", counters, flags=re.MULTILINE):
        counted.setdefault(name, int(value))
    return State(
        clock=clock,
        busy=(sum(total) - total[3] - total[4] - total[7]) / hertz,
        own=own / hertz,
        stolen=total[7] / hertz,
        temperature=max((z for z in zones if z < HOTTEST), default=None),
        throttle_events=sum(int(e) for e in events.split() if e.isdigit()),
        throttle_flags=sum(1 for flag in flags if flag & 0xF),
        governor=", ".join(governors.split()),
        counters=counted,
    )
