"""Android's C library for a Linux machine, so that Android's ONNX Runtime runs there as it was shipped.

Libraries for Android ask for ``libc.so``, ``libm.so``, ``libdl.so``, ``liblog.so`` and ``libandroid.so``, and for
functions of version ``LIBC``. Those built here hand most calls to glibc and translate the ones that bionic defines
otherwise (libc.c). This shows how our code and ONNX Runtime's work together in the code for Android; it does not
show bionic's own mathematics, its linker's rules, or a phone's scheduling.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lief

from tools.fetch_ort_android import BUILD, TARGET

HERE = Path(__file__).resolve().parent
MACHINES = {"x86_64": "x86_64-linux-gnu.2.34", "arm64-v8a": "aarch64-linux-gnu.2.34"}
"""Zig's names; since 2.34 glibc's threads and dlopen are in libc.so.6."""

RENAMED = {
    "__errno": "__errno_location",
    "__gnu_strerror_r": "strerror_r",
    "strerror_r": "__xpg_strerror_r",
    "__strlen_chk": "strlen",  # the size comes after strlen's own argument, which does not look at it
    "__strchr_chk": "strchr",
}
# bionic's long double has 128 bits on x86-64, glibc's 80; on ARM both have 128.
RENAMED_X86_64 = {"llroundl": "llroundf128", "strtold_l": "strtof128_l"}


def onnxruntime(abi: str) -> Path:
    """Android's ONNX Runtime for ``abi``, which tools/fetch_ort_android.py brings."""
    return TARGET / "jni" / abi / "libonnxruntime.so"


def compile_(abi: str, sources: list[Path], to: Path, *flags: str) -> None:
    """Compiles and links C for glibc. Ends the program with the compiler's own message when it fails."""
    cache = BUILD / "cache" / "zig"
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "ziglang", "cc", "-target", MACHINES[abi], "-std=gnu11", "-O2", "-Wall", "-Wextra"]
    command += [*flags, *map(str, sources), "-o", str(to)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{to}: the compiler failed (exit code {done.returncode}):\n{done.stdout}")


def asked_for(library: Path) -> list[str]:
    """Names that a library asks of bionic, those of version LIBC."""
    binary = lief.ELF.parse(library)
    assert binary is not None, f"{library} is no ELF file"
    versions = ((str(symbol.name), symbol.symbol_version) for symbol in binary.imported_symbols)
    return sorted(
        name
        for name, version in versions
        if version is not None
        and version.symbol_version_auxiliary is not None
        and version.symbol_version_auxiliary.name == "LIBC"
    )


def forwards(abi: str) -> str:
    """The C list of functions that jump to glibc: every one that is asked for and not written out."""
    source = (HERE / "libc.c").read_text()
    written = set(re.findall(r"^(?:BIONIC\([^,]+, |VERSIONED\()(\w+)", source, re.MULTILINE))
    renamed = {**RENAMED, **(RENAMED_X86_64 if abi == "x86_64" else {})}
    libraries = (onnxruntime(abi), onnxruntime(abi).with_name("libonnxruntime4j_jni.so"))
    names = sorted({name for library in libraries for name in asked_for(library)} - written)
    return "".join(f"FORWARD({i}, {name}, {renamed.get(name, name)})\n" for i, name in enumerate(names))


def build(abi: str, directory: Path) -> None:
    """Android's system libraries as ``directory/lib*.so``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "forwards.h").write_text(forwards(abi))
    (directory / "version.map").write_text("LIBC { global: *; };\n")
    (directory / "empty.c").write_text("const char bionic_placeholder = 0;\n")
    shared = ["-shared", "-fPIC", "-Wl,--no-undefined"]
    versioned = f"-Wl,--version-script={directory / 'version.map'}"
    for name, source, flags in (
        ("libc.so", HERE / "libc.c", [f"-I{directory}", versioned]),
        ("libm.so", directory / "empty.c", [versioned]),
        ("libdl.so", directory / "empty.c", [versioned]),
        ("libandroid.so", directory / "empty.c", []),
        ("liblog.so", HERE / "liblog.c", []),
    ):
        compile_(abi, [source], directory / name, *shared, f"-Wl,-soname,{name}", *flags)
