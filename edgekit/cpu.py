"""The processor's name and instruction sets, as far as the system tells."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

ISA = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "sve")
CPUINFO = Path("/proc/cpuinfo")
# Names of `sysctl hw.optional` on macOS; "1" where the processor has it.
SYSCTL = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
}
# IsProcessorFeaturePresent of Windows (winnt.h).
WINDOWS = {40: "avx2", 41: "avx512f", 19: "neon", 43: "asimddp"}


def processor_features() -> tuple[str, tuple[str, ...]]:
    """Name of the processor and those of ``ISA`` that it has; none when the system does not say."""
    try:
        return features_of(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        pass
    if sys.platform == "darwin":
        return _from_sysctl(_output("sysctl", "machdep.cpu.brand_string", "hw.optional"))
    if sys.platform == "win32":
        return platform.processor() or platform.machine(), _from_windows()
    return platform.processor() or platform.machine(), ()


def features_of(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets in the text of a /proc/cpuinfo."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return name[1] if name else platform.machine(), tuple(isa for isa in ISA if isa in have)


def _from_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    have = {isa for key, isa in SYSCTL.items() if values.get(key) == "1"}
    return values.get("machdep.cpu.brand_string", platform.machine()), tuple(isa for isa in ISA if isa in have)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _from_windows() -> tuple[str, ...]:
    import ctypes

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - exists on Windows only
    have = {isa for number, isa in WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)}
    return tuple(isa for isa in ISA if isa in have)
