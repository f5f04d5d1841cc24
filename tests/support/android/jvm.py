"""Runs Kotlin programs on this machine's JVM with Android's own ONNX Runtime, its Java binding and the operators for Android.

The machine code is Android's for x86-64; its C library is replaced by a shim (tests/support/bionic), and the virtual machine is
HotSpot, not Android's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekit.lowbit.library import built_library
from tests.support.bionic import harness, shim
from tests.support.tooling import need, require
from tools.build_runner import MAIN, classes, libraries
from tools.kotlin import BRIEF

ABI = "x86_64"


def needed() -> None:
    """Ends the test unless all that this needs is there."""
    need("java", "npm")
    fault = harness.missing(ABI)
    require(not fault, fault)


def shim_libraries(abi: str) -> Path:
    """A directory with Android's system libraries (libc.so and so on) for a process on glibc, to be put first in LD_LIBRARY_PATH.

    ``abi`` is x86_64, or arm64-v8a for a 64-bit ARM JVM under QEMU.
    """
    return harness.prepare(abi).directory


def operators() -> Path:
    """The operator library for Android on x86-64."""
    return built_library(f"android-{ABI}")


def command(main: str, jars: Sequence[Path], *options: str) -> list[str]:
    """What starts the class ``main`` out of ``jars`` and the engine's libraries."""
    classpath = os.pathsep.join(map(str, (*jars, *libraries())))
    native = f"-Donnxruntime.native.path={shim.onnxruntime(ABI).parent}"
    return ["java", *BRIEF, native, *options, "-cp", classpath, main]


def runner_command() -> list[str]:
    """What starts the runner; its settings are one more argument."""
    return command(MAIN, classes())


def environment(**more: str) -> dict[str, str]:
    """The environment of such a program, with ``more`` variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    return {**kept, "LD_LIBRARY_PATH": str(shim_libraries(ABI)), "ORT_DISABLE_TELEMETRY": "1", **more}
