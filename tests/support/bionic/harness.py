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
from tests.support.bionic import shim
from tools import arm_rootfs
from tools.fetch_ort_android import BUILD, TARGET
from tools.made import made

QEMU = "qemu-aarch64-static"
GLIBC_ARM64 = Path("/usr/aarch64-linux-gnu/lib")
INSTALL = f"apt-get install {' '.join(arm_rootfs.DEBIAN_PACKAGES)}"
TIMEOUT_S = 1800


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
        return f"{QEMU} is not installed; as root: {INSTALL}"
    if not GLIBC_ARM64.is_dir():
        return f"{GLIBC_ARM64} is not there; as root: {INSTALL}"
    return ""


@dataclass(frozen=True)
class Harness:
    """A built runner for one ABI."""

    abi: str
    directory: Path

    def run(self, model_dir: Path, isa: str = "", cpu: str = "max", threads: int = 1) -> str:
        """Runs ``model_dir/model.onnx`` and returns what the operator library says it is.

        Inputs are read from NAME.bin beside it, outputs written to NAME.out. ``isa`` forces an instruction set; ``cpu``
        is one of ``arm_rootfs.FEATURES`` and counts for ARM only. Raises ReplayError when the process ends with anything but success.
        """
        variables = {
            "LD_LIBRARY_PATH": f"{self.directory}:{shim.onnxruntime(self.abi).parent}",
            "ORT_DISABLE_TELEMETRY": "1",
            **({"EDGEKIT_ISA": isa} if isa else {}),
        }
        library = built_library(f"android-{self.abi}")
        program = [str(self.directory / "replay"), str(model_dir / "model.onnx"), str(library), str(threads)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
        if self.abi == "arm64-v8a":
            # -E, not the environment: QEMU itself must not look for libraries there.
            settings = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
            program = [QEMU, "-cpu", cpu, "-L", str(self.directory / cpu), *settings, *program]
        else:
            kept |= variables
        done = subprocess.run(program, env=kept, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise ReplayError(f"{done.stderr.strip()} (exit code {done.returncode})")
        return done.stdout.strip()


@cache
def prepare(abi: str) -> Harness:
    """The shim and the runner for ``abi`` (x86_64 or arm64-v8a) in build/android-ABI, built unless they are there."""
    sources = [*sorted(shim.HERE.glob("*.c")), shim.HERE / "shim.py", Path(__file__)]
    recipe = [source.read_text(encoding="utf-8") for source in (*sources, Path(arm_rootfs.__file__))]
    recipe.append((TARGET / "aar.sha256").read_text(encoding="utf-8"))

    def fill(directory: Path) -> None:
        shim.build(abi, directory)
        headers = f"-I{TARGET / 'headers'}"
        shim.compile_(abi, [shim.HERE / "replay.c"], directory / "replay", headers)
        if abi == "arm64-v8a":
            for cpu in arm_rootfs.FEATURES:
                arm_rootfs.describe(directory / cpu, cpu)
                (directory / cpu / "lib").symlink_to(GLIBC_ARM64)

    return Harness(abi, made(BUILD / f"android-{abi}", "\n".join(recipe), fill))
