"""The native libraries for every system: ``python -m tools.build_kernels`` fills edgekit/lowbit/native.

There are two: the operators (edgekit_ops) and the decoder and encoder of packs (edgekit_coding).

The compiler is Zig's clang from PyPI, one package for all targets, with no SDK and no NDK. Only the standard library is
imported here: building edgekit's wheel runs this file where nothing else is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "edgekit" / "kernels"
NATIVE = ROOT / "edgekit" / "lowbit" / "native"
ZIG = "0.15.2"  # pyproject.toml pins the same in two places; a test compares them
AT_A_TIME = 2

ELF_LINK = (
    "-shared",
    "--strip-all",
    f"--version-script={KERNELS / 'link' / 'exports.map'}",
    "-soname=libedgekit_ops.so",
    "-z",
    "max-page-size=16384",  # for Android on 16 KiB pages; the others lose nothing
    "-z",
    "relro",
    "-z",
    "now",
    "-z",
    "defs",  # an undefined function is an error here, not when a phone loads the library
    "-z",
    "noexecstack",
    "--gc-sections",
    "--hash-style=gnu",
    "--build-id=sha1",
)
# For Zig's driver. Its runtime library would take seconds to compile, and nothing needs it.
MACHO_LINK = ("-shared", "-nostdlib", "-rtlib=none", "-s", "-Wl,-x", "-Wl,-install_name,@rpath/libedgekit_ops.dylib")
# With it here: Windows wants a stack frame of more than a page touched page by page, and ___chkstk_ms does that.
PE_LINK = ("-shared", "-nostdlib", "-s", "-lkernel32")


@dataclass(frozen=True)
class Target:
    """One library: what it is called, what clang must be told about the machine, how it is linked."""

    file: str
    machine: tuple[str, ...]
    link: tuple[str, ...]
    stub: str = ""  # a file of edgekit/kernels/link that the link needs
    zig: str = ""  # Zig's name of the system where its driver links; ELF is linked by lld itself
    sources: Path = KERNELS / "src"


# Processors are the oldest that each system supports; faster instructions are in functions chosen when the library
# loads. Outlined atomics would come from a runtime library.
_X86 = ("-march=x86-64",)
_ARM64 = ("-march=armv8-a", "-mno-outline-atomics")
_ARM32 = ("-march=armv7-a", "-mfpu=neon", "-mfloat-abi=softfp", "-mthumb")  # as Android's armeabi-v7a has it
_SO = "libedgekit_ops.so"
_DYLIB = "libedgekit_ops.dylib"
_BIONIC = "android_libc.c"
TARGETS: dict[str, Target] = {
    "linux-x86_64": Target(_SO, ("--target=x86_64-linux-gnu", *_X86), ELF_LINK),
    "linux-aarch64": Target(_SO, ("--target=aarch64-linux-gnu", *_ARM64), ELF_LINK),
    "android-arm64-v8a": Target(_SO, ("--target=aarch64-linux-android24", *_ARM64), ELF_LINK, _BIONIC),
    "android-armeabi-v7a": Target(_SO, ("--target=armv7a-linux-androideabi24", *_ARM32), ELF_LINK, _BIONIC),
    "android-x86_64": Target(_SO, ("--target=x86_64-linux-android24", *_X86), ELF_LINK, _BIONIC),
    "macos-arm64": Target(_DYLIB, ("--target=arm64-apple-macos11", *_ARM64), MACHO_LINK, zig="aarch64-macos.11.0"),
    "macos-x86_64": Target(_DYLIB, ("--target=x86_64-apple-macos11", *_X86), MACHO_LINK, zig="x86_64-macos.11.0"),
    "windows-x86_64": Target(
        "edgekit_ops.dll",
        ("--target=x86_64-w64-windows-gnu", *_X86),
        PE_LINK,
        "windows_entry.c",
        "x86_64-windows-gnu",
    ),
}


def _coding(target: Target) -> Target:
    """The library of packs for the same system: other sources, another name, nothing asked of the system."""
    link = tuple(
        flag.replace("edgekit_ops", "edgekit_coding").replace("exports.map", "coding.map") for flag in target.link
    )
    stub = "" if target.stub == _BIONIC else target.stub
    file = target.file.replace("edgekit_ops", "edgekit_coding")
    return replace(target, file=file, link=link, stub=stub, sources=KERNELS / "coding")


CODING: dict[str, Target] = {abi: _coding(target) for abi, target in TARGETS.items()}


def sources(folder: Path = KERNELS / "src") -> list[Path]:
    """Every .cpp of a library; one for another processor compiles to nothing."""
    own = sorted(folder.glob("*.cpp"))
    return own if folder == KERNELS / "src" else [*own, KERNELS / "src" / "memory.cpp"]


def inputs() -> list[Path]:
    """Every file that the libraries depend on, this one included; folders too, which change when a file goes."""
    folders = [KERNELS / "src", KERNELS / "coding", KERNELS / "link"]
    files = [path for folder in folders for path in folder.iterdir()]
    return [*folders, *files, KERNELS / "compile_flags.txt", Path(__file__).resolve()]


def commands(compiler: str, target: Target) -> tuple[list[str], list[str]]:
    """What compiles and what links for ``target``. Ends the program when ``compiler`` cannot."""
    if compiler == "zig":
        found = importlib.util.find_spec("ziglang")
        if found is None or found.origin is None:
            raise SystemExit(f"ziglang is not installed for {sys.executable}: pip install ziglang=={ZIG}")
        # Its clang as it is: `zig c++` rewrites flags (-O3 to -O2, a processor into a list of features).
        zig = [sys.executable, "-m", "ziglang"]
        resources = str(Path(found.origin).parent / "lib")
        compile_ = [*zig, "clang", *target.machine, "-nostdlibinc", "-resource-dir", resources]
        return compile_, [*zig, "c++", "-target", target.zig] if target.zig else [*zig, "ld.lld"]
    if target.zig:
        raise SystemExit(f"{compiler} cannot link {target.file} here: build it with --compiler zig")
    lld = compiler.replace("clang++", "ld.lld")
    for tool in (compiler, lld):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed: install clang and lld, or build with --compiler zig")
    return [compiler, *target.machine, "-nostdlibinc"], [lld]


def run(command: list[str], what: str, directory: Path, cache: Path) -> None:
    """Runs a compiler in ``directory``; ends the program with the compiler's own message when it fails."""
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "local"),
        "SOURCE_DATE_EPOCH": "0",  # a .dll carries its date; the same sources make the same bytes
    }
    done = subprocess.run(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{what}: the compiler failed (exit code {done.returncode}):\n{done.stdout}")


def compile_sources(target: Target, compiler: str, scratch: Path, cache: Path) -> list[str]:
    """The objects of one library, and for Android the libc.so to link against, all in ``scratch``."""
    compile_, link = commands(compiler, target)
    flags = (KERNELS / "compile_flags.txt").read_text().split()
    run(
        [*compile_, *flags, "-c", *map(str, sources(target.sources))],
        f"{target.file} for {target.machine[0]}",
        scratch,
        cache,
    )
    if target.stub:
        # Alone with its flags: these files are C.
        source = str(KERNELS / "link" / target.stub)
        run([*compile_, "-x", "c", "-O2", "-ffreestanding", "-fPIC", "-c", source], source, scratch, cache)
    objects = sorted(str(path) for path in scratch.glob("*.o"))
    if target.stub != _BIONIC:
        return objects
    stub, libc = str(scratch / _BIONIC.replace(".c", ".o")), str(scratch / "libc.so")
    run([*link, "-shared", "-soname=libc.so", stub, "-o", libc], libc, scratch, cache)
    return [*(path for path in objects if path != stub), libc]


def link_library(
    target: Target, compiler: str, objects: list[str], to: Path, cache: Path, more: Iterable[str] = ()
) -> None:
    """Links ``to``. ``more`` goes to the linker last, where it wins: tests plant faults with it."""
    link = commands(compiler, target)[1]
    run([*link, *objects, *target.link, *more, "-o", str(to)], f"{to} for {target.machine[0]}", to.parent, cache)


def build(abi: str, output: Path, compiler: str, cache: Path, targets: dict[str, Target] = TARGETS) -> Path:
    """Builds one library as ``output/abi/file``, atomically."""
    target = targets[abi]
    final = output / abi / target.file
    final.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".build-") as directory:
        scratch = Path(directory)
        part = scratch / target.file
        link_library(target, compiler, compile_sources(target, compiler, scratch, cache), part, cache)
        os.utime(part, (began, began))  # older than a source that was edited meanwhile
        part.replace(final)
    return final


def is_current(abi: str, output: Path, targets: dict[str, Target] = TARGETS) -> bool:
    """Whether the library is newer than everything that it is made of."""
    final = output / abi / targets[abi].file
    return final.is_file() and final.stat().st_mtime > max(path.stat().st_mtime for path in inputs())


def build_and_report(abi: str, output: Path, compiler: str, cache: Path, force: bool) -> None:
    """Builds the libraries of one system unless they are current, and prints a line for each."""
    for targets in (TARGETS, CODING):
        start = time.perf_counter()
        current = not force and is_current(abi, output, targets)
        path = output / abi / targets[abi].file if current else build(abi, output, compiler, cache, targets)
        took = "up to date" if current else f"{time.perf_counter() - start:.1f} s"
        print(f"{abi:<20} {path.name:<24} {path.stat().st_size:>6} bytes  {took}", flush=True)


def build_all(abis: Iterable[str], output: Path, compiler: str, cache: Path, force: bool) -> None:
    """Builds ``abis``, two at a time; after a failure no more are begun."""
    if not sources():
        raise SystemExit(f"{KERNELS / 'src'}: no .cpp in it, expected the operator's sources: take a complete checkout")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        tasks = [pool.submit(build_and_report, abi, output, compiler, cache, force) for abi in abis]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.build_kernels", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--abi", action="append", choices=sorted(TARGETS), metavar="NAME", help=", ".join(TARGETS))
    which.add_argument("--all", action="store_true", help="every ABI (the default)")
    parser.add_argument("--output", type=Path, default=NATIVE, help="default: edgekit/lowbit/native")
    parser.add_argument("--compiler", default="zig", choices=("zig", "clang++-19"), help="default: zig")
    parser.add_argument("--force", action="store_true", help="also build what is newer than its sources")
    chosen = parser.parse_args()
    # Zig's cache is thrown away: it would save a second, and nothing is left behind in the home directory.
    with tempfile.TemporaryDirectory() as cache:
        build_all(chosen.abi or TARGETS, chosen.output.resolve(), chosen.compiler, Path(cache).resolve(), chosen.force)


if __name__ == "__main__":
    main()
