"""The native operator library: which file, what it is, and how a session gets it.

``EDGEKIT_OPS_LIBRARY`` names another file than the one that came with edgekit, or is ``none`` to run the function bodies
in the model instead; ``EDGEKIT_ISA`` forces an instruction set.
A bundle's own copy (``ops/``) is for apps and is never loaded here: a bundle is data, not code.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import RuntimeUnavailable

ABIS: dict[str, str] = {
    # name: file
    "linux-x86_64": "libedgekit_ops.so",
    "linux-aarch64": "libedgekit_ops.so",
    "android-arm64-v8a": "libedgekit_ops.so",
    "android-armeabi-v7a": "libedgekit_ops.so",
    "android-x86_64": "libedgekit_ops.so",
    "macos-arm64": "libedgekit_ops.dylib",
    "macos-x86_64": "libedgekit_ops.dylib",
    "windows-x86_64": "edgekit_ops.dll",
}
"""Every system and processor that the library is built for, and what the file is called there."""
SHIPPED = ("linux-x86_64", "linux-aarch64", "android-arm64-v8a", "android-armeabi-v7a", "android-x86_64")
"""Those that a bundle carries unless others are asked for."""
CHOICE = "EDGEKIT_OPS_LIBRARY"
NATIVE = Path(__file__).parent / "native"
WITHOUT = f"{CHOICE}=none runs the model without it, slower and rounded differently"
_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_PROCESSORS = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Library:
    """A loaded operator library."""

    path: Path
    version: str
    isa: str  # the instruction set that kernels of new sessions use
    supported: tuple[str, ...]  # those that this processor has, best first
    nodes: int  # nodes that it has run or will run, counted since the process loaded it


def host_abi() -> str:
    """The name in ``ABIS`` of this machine. Raises RuntimeUnavailable where the library is not built for it."""
    machine = platform.machine().lower()
    name = f"{_SYSTEMS.get(sys.platform, sys.platform)}-{_PROCESSORS.get(machine, machine)}"
    name = "macos-arm64" if name == "macos-aarch64" else name
    if name not in ABIS:
        raise RuntimeUnavailable(f"the operator library is not built for {name}, but for {', '.join(ABIS)}; {WITHOUT}")
    return name


def built_library(abi: str) -> Path:
    """The library for ``abi`` that came with edgekit. Raises RuntimeUnavailable when it is not there."""
    path = NATIVE / abi / ABIS[abi]
    if not path.is_file():
        raise RuntimeUnavailable(
            f"{path}: no operator library for {abi}; installing edgekit builds it, in a checkout `make kernels` does; {WITHOUT}"
        )
    return path


def load_library(needed: bool = True) -> Library | None:
    """Loads the library and asks what it is; None when ``EDGEKIT_OPS_LIBRARY`` is ``none``, or where there is none for this
    machine and it is not ``needed``.

    Raises RuntimeUnavailable when the file is missing or is no operator library, or when ``EDGEKIT_ISA`` names an
    instruction set that this processor does not have.
    """
    chosen = os.environ.get(CHOICE)
    if chosen == "none":
        return None
    try:
        path = Path(chosen).resolve() if chosen else built_library(host_abi())
    except RuntimeUnavailable:
        if needed:
            raise
        return None
    try:
        version = ctypes.CDLL(str(path)).EdgekitOpsVersion
    except (OSError, AttributeError) as error:
        raise RuntimeUnavailable(f"{path}: cannot be loaded as edgekit's operator library: {error}") from error
    version.restype = ctypes.c_char_p
    facts, _, nodes = version().decode("ascii").partition("; ")
    number, isa, *supported = facts.split()
    if isa == "none":
        raise RuntimeUnavailable(
            f"EDGEKIT_ISA={os.environ.get('EDGEKIT_ISA')}: this processor cannot run it; it has {' '.join(supported)}. "
            "Unset EDGEKIT_ISA to let the library choose"
        )
    return Library(path, number, isa, tuple(supported), int(nodes))


def register_library(options: Any, needed: bool = True) -> Library | None:
    """Adds the operators of domain ``ai.edgekit`` to an ``onnxruntime.SessionOptions``; raises as :func:`load_library`."""
    library = load_library(needed)
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    return library
