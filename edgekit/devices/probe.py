"""What a device is: one shell script that every Linux and Android has the commands for, read here.

A fact that the device does not tell is empty or None, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.cpu import features_of
from edgekit.devices.connection import Connection

SCRIPT = r"""
say() { echo "@@ $1"; }
say uname; uname -m; uname -r; uname -s
say cpuinfo; cat /proc/cpuinfo
say memory; head -n 1 /proc/meminfo
say model; cat /sys/firmware/devicetree/base/model 2>/dev/null | tr '\000' '\n'
say os; [ -r /etc/os-release ] && . /etc/os-release && echo "$PRETTY_NAME"
say page; getconf PAGESIZE
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  say "core ${c##*/cpu}"; cat "$c/cpufreq/cpuinfo_max_freq" 2>/dev/null
done
say governor; cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
say temperature; cat /sys/class/thermal/thermal_zone*/temp
say battery; cat /sys/class/power_supply/battery/capacity /sys/class/power_supply/battery/status || dumpsys battery
if command -v getprop >/dev/null; then
  say android; for p in ro.product.manufacturer ro.product.model ro.soc.model ro.build.version.release ro.build.version.sdk; do
    echo "$p=$(getprop $p)"; done
  say emulator; getprop ro.boot.qemu; getprop ro.kernel.qemu
fi
say executable; readlink /proc/1/exe; readlink /proc/$$/exe
true
"""
HOTTEST = 150.0
"""Degrees; sensors that say more count something else."""

BATTERY_STATUS = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}
"""Android's BatteryManager.BATTERY_STATUS_* in Linux's words."""


@dataclass(frozen=True)
class Core:
    """One core; ``max_mhz`` None where the device does not tell."""

    id: int
    max_mhz: float | None


@dataclass(frozen=True)
class Facts:
    """What a device says of itself."""

    target: str
    model: str
    soc: str
    system: str  # of the device: distribution or Android release
    kernel: str
    machine: str  # uname -m
    cores: tuple[Core, ...]
    features: tuple[str, ...]
    memory_mb: int | None
    page_size: int | None
    governor: str
    temperature: float | None  # the hottest zone, degrees Celsius
    battery: str  # "87 % Discharging", or nothing
    emulated: str  # why it is taken for an emulator, or nothing

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {**asdict(self), "cores": [asdict(core) for core in self.cores], "features": list(self.features)}

    def lines(self) -> Iterator[str]:
        """A few lines for people."""
        yield f"{self.target}: {self.model or 'unknown model'}{f' ({self.soc})' if self.soc else ''}, {self.system}"
        memory = "" if self.memory_mb is None else f", {self.memory_mb} MB"
        page = "" if self.page_size is None else f", pages of {self.page_size >> 10} KiB"
        yield f"  {self.machine}, {self._cores()}{memory}{page}, kernel {self.kernel}"
        yield f"  instruction sets: {', '.join(self.features) or 'unknown'}"
        warm = "" if self.temperature is None else f"{self.temperature:.0f} °C"
        state = [s for s in (self.governor and f"governor {self.governor}", warm, self.battery) if s]
        if state:
            yield f"  {', '.join(state)}"
        if self.emulated:
            yield f"  EMULATED ({self.emulated}): results count, times do not"

    def _cores(self) -> str:
        speeds = sorted({core.max_mhz for core in self.cores if core.max_mhz is not None}, reverse=True)
        if not speeds:
            return f"{len(self.cores)} cores"
        each = (f"{sum(c.max_mhz == s for c in self.cores)} × {s / 1000:.1f} GHz" for s in speeds)
        return f"{len(self.cores)} cores ({', '.join(each)})"


def probe(connection: Connection) -> Facts:
    """Asks a device. Raises RuntimeUnavailable when it is out of reach."""
    return parse(connection.name, connection.text(SCRIPT))


def parse(target: str, text: str) -> Facts:
    """The facts in the output of ``SCRIPT``."""
    sections = _sections(text)

    def lines(name: str) -> list[str]:
        return [line.strip() for line in sections.get(name, "").splitlines() if line.strip()]

    def first(name: str) -> str:
        return (lines(name) or [""])[0]

    machine, kernel, *_ = [*lines("uname"), "", ""]
    android = dict(line.partition("=")[::2] for line in lines("android"))
    maker, phone = android.get("ro.product.manufacturer", ""), android.get("ro.product.model", "")
    numbers = sorted(int(name.removeprefix("core ")) for name in sections if name.startswith("core "))
    cores = tuple(Core(number, _number(first(f"core {number}"), 1e-3)) for number in numbers)
    name, features = features_of(sections.get("cpuinfo", ""))
    release = android.get("ro.build.version.release") or android.get("ro.build.version.sdk", "")
    temperatures = [t for line in lines("temperature") if (t := _number(line, 1e-3)) is not None and 0 < t < HOTTEST]
    return Facts(
        target=target,
        model=f"{maker} {phone}".strip() or first("model") or name,
        soc=android.get("ro.soc.model", ""),
        system=f"Android {release}" if android else first("os"),
        kernel=kernel,
        machine=machine,
        cores=cores,
        features=features,
        memory_mb=_memory(first("memory")),
        page_size=int(first("page")) if first("page").isdigit() else None,
        governor=first("governor"),
        temperature=max(temperatures, default=None),
        battery=_battery(lines("battery")),
        emulated=_emulated(machine, kernel, lines("emulator"), lines("executable")),
    )


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^@@ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _emulated(machine: str, kernel: str, flags: list[str], executables: list[str]) -> str:
    """Why a device is no hardware: an emulator's flag, a process that an emulator runs, another processor's kernel."""
    if "1" in flags:
        return "an emulator's system property is set"
    if any("qemu" in path for path in executables):
        return "its processes are run by qemu"
    if machine == "aarch64" and re.search(r"amd64|x86", kernel):
        return f"kernel {kernel} is another processor's"
    return ""


def _battery(lines: list[str]) -> str:
    """From Linux's files, or from what Android's battery service says where the shell may not read those."""
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    if "level" in said:
        return f"{said['level']} % {BATTERY_STATUS.get(said.get('status', ''), '')}".strip()
    plain = [line for line in lines if ":" not in line]
    return f"{plain[0]} % {' '.join(plain[1:])}".strip() if plain else ""


def _memory(line: str) -> int | None:
    size = re.search(r"(\d+) kB", line)
    return int(size[1]) >> 10 if size else None


def _number(text: str, scale: float) -> float | None:
    return float(text) * scale if re.fullmatch(r"\d{1,12}", text) else None
