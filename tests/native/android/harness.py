"""Runs a model on Android's ONNX Runtime with Android's operator library, on this Linux machine.

x86-64 runs as it is, 64-bit ARM under QEMU. Times of the latter say nothing about a phone.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit.lowbit.library import built_library
from tests.native.android import bionic_shim
from tools.fetch_ort_android import BUILD, TARGET

QEMU = "qemu-aarch64-static"
GLIBC_ARM64 = Path("/usr/aarch64-linux-gnu/lib")
CORES = 4
TIMEOUT_S = 300

_PI4 = "fp asimd evtstrm crc32 cpuid"
_PI5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUS = {
    # QEMU's name: (part, features), as /proc/cpuinfo has them
    "cortex-a72": ("0xd08", _PI4),
    "cortex-a76": ("0xd0b", _PI5),
    "max": ("0xd47", f"{_PI5} i8mm bf16"),
}


class ReplayError(Exception):
    """The model did not run; the message is what the process printed to stderr."""


def missing(abi: str) -> str:
    """What running ``abi`` needs and is not there, with what installs it; empty when nothing is missing."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "it needs Linux on x86-64"
    if not TARGET.is_dir():
        return "no build/ort-android: python -m tools.fetch_ort_android, which needs npm (apt-get install npm)"
    if abi != "arm64-v8a":
        return ""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed: apt-get install qemu-user-static"
    if not GLIBC_ARM64.is_dir():
        return f"{GLIBC_ARM64} is not there: apt-get install libc6-arm64-cross"
    return ""


@dataclass(frozen=True)
class Harness:
    """A built runner for one ABI."""

    abi: str
    directory: Path

    def run(self, model_dir: Path, isa: str = "", cpu: str = "max", threads: int = 1) -> str:
        """Runs ``model_dir/model.onnx`` and returns what the operator library says it is.

        Inputs are read from NAME.bin beside it, outputs written to NAME.out. ``isa`` forces an instruction set; ``cpu``
        is one of ``CPUS`` and counts for ARM only. Raises ReplayError when the process ends with anything but success.
        """
        variables = {
            "LD_LIBRARY_PATH": f"{self.directory}:{bionic_shim.onnxruntime(self.abi).parent}",
            "ORT_DISABLE_TELEMETRY": "1",
            **({"EDGEKIT_ISA": isa} if isa else {}),
        }
        library = built_library(f"android-{self.abi}")
        program = [str(self.directory / "replay"), str(model_dir / "model.onnx"), str(library), str(threads)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
        if self.abi == "arm64-v8a":
            # -E, not the environment: QEMU itself must not look for libraries there.
            settings = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
            program = [QEMU, "-cpu", cpu, "-L", str(_root(self.directory, cpu)), *settings, *program]
        else:
            kept |= variables
        done = subprocess.run(program, env=kept, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise ReplayError(f"{done.stderr.strip()} (exit code {done.returncode})")
        return done.stdout.strip()


def _root(directory: Path, cpu: str) -> Path:
    """What the emulated process sees as ``/`` where a file is in it: an ARM machine's glibc and processor files.

    ONNX Runtime's cpuinfo crashes when a 64-bit ARM process finds the files of an x86 machine.
    """
    root = directory / cpu
    cpus = root / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text(f"0-{CORES - 1}\n")
    part, features = CPUS[cpu]
    text = ""
    for core in range(CORES):
        _describe_core(cpus / f"cpu{core}", core)
        facts = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        text += f"processor\t: {core}\n{facts}CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(text)
    if not (root / "lib").is_symlink():
        (root / "lib").symlink_to(GLIBC_ARM64)
    return root


def _describe_core(folder: Path, core: int) -> None:
    for name, value in (
        ("cpufreq/cpuinfo_max_freq", "1800000"),
        ("cpufreq/cpuinfo_min_freq", "600000"),
        ("topology/physical_package_id", "0"),
        ("topology/core_id", str(core)),
        ("topology/core_siblings_list", f"0-{CORES - 1}"),
        ("topology/thread_siblings_list", str(core)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@cache
def prepare(abi: str) -> Harness:
    """Builds the shim and the runner for ``abi`` (x86_64 or arm64-v8a) into build/android-ABI."""
    directory = BUILD / f"android-{abi}"
    bionic_shim.build(abi, directory)
    headers = f"-I{TARGET / 'headers'}"
    bionic_shim.compile_(abi, [bionic_shim.HERE / "replay.c"], directory / "replay", headers)
    return Harness(abi, directory)
