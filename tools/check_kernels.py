"""Reads the built operator libraries and holds them to what apps rely on: ``python -m tools.check_kernels [--json]``.

Prints one row a library. Exits with 1 when a fact is not as expected, and says which.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lief

from tools.build_kernels import NATIVE, TARGETS

lief.logging.disable()  # it remarks on sections it does not know


@dataclass(frozen=True)
class Facts:
    """What a library is. None: its format has no such thing."""

    machine: str
    name: str  # SONAME, install name, or a DLL's name for itself: what other binaries ask for
    bytes: int
    exports: tuple[str, ...]
    needed: tuple[str, ...]
    page: int | None  # the largest page that every loaded segment can be mapped with
    text_relocations: bool | None
    executable_data: bool  # stack or data that may be run: writable and executable at once
    relro: bool | None  # tables of addresses become read-only
    bind_now: bool | None
    stripped: bool
    build_id: bool | None
    hard_float: bool | None  # 32-bit ARM: floats are passed in registers, which Android does not do
    signed: bool | None  # Apple's processors refuse code without a signature, even one of nobody


LIMITS = {"elf": 229376, "pe": 245760, "macho": 245760}
"""The most bytes that a library may have. A Mach-O segment fills whole pages of 16 KiB, and there are four."""

EXPORTS = ("EdgekitOpsVersion", "Java_dev_edgekit_Operators_version", "RegisterCustomOps")
_LINUX = Facts(
    machine="X86_64",
    name="libedgekit_ops.so",
    bytes=LIMITS["elf"],
    exports=EXPORTS,
    needed=(),
    page=16384,
    text_relocations=False,
    executable_data=False,
    relro=True,
    bind_now=True,
    stripped=True,
    build_id=True,
    hard_float=None,
    signed=None,
)
_ANDROID = replace(_LINUX, needed=("libc.so",))
_MACOS = replace(
    _LINUX,
    name="@rpath/libedgekit_ops.dylib",
    bytes=LIMITS["macho"],
    needed=("/usr/lib/libSystem.B.dylib",),
    page=None,
    text_relocations=None,
    relro=None,
    bind_now=None,
    build_id=None,
    signed=False,
)
EXPECTED: dict[str, Facts] = {
    "linux-x86_64": _LINUX,
    "linux-aarch64": replace(_LINUX, machine="AARCH64"),
    "android-arm64-v8a": replace(_ANDROID, machine="AARCH64"),
    "android-armeabi-v7a": replace(_ANDROID, machine="ARM", hard_float=False),
    "android-x86_64": _ANDROID,
    "macos-arm64": replace(_MACOS, machine="ARM64", signed=True),
    "macos-x86_64": replace(_MACOS, machine="X86_64"),
    "windows-x86_64": replace(
        _LINUX,
        machine="AMD64",
        name="edgekit_ops.dll",
        bytes=LIMITS["pe"],
        needed=("KERNEL32.dll",),
        page=None,
        text_relocations=None,
        relro=None,
        bind_now=None,
        build_id=None,
    ),
}

WHY = {
    "machine": "it would not load there",
    "name": "apps ask for it by this name",
    "bytes": "it travels in every app",
    "exports": "anything else can collide with the app's own symbols",
    "needed": "another library may be missing on a device",
    "page": "Android on 16 KiB pages refuses smaller ones",
    "text_relocations": "Android refuses them",
    "executable_data": "hardened systems refuse it",
    "relro": "its tables could be overwritten",
    "bind_now": "its tables could be overwritten",
    "stripped": "symbols are only weight",
    "build_id": "crash reports name a library by it",
    "hard_float": "armeabi-v7a passes floats in integer registers",
    "signed": "Apple's processors refuse unsigned code",
}

# Zig's Mach-O linker also exports these two, which Apple's defines in every library without exporting them. Names are
# looked up per library there, so nobody sees them.
_OF_THE_LINKER = {"__mh_dylib_header", "___dso_handle"}


def read(path: Path) -> Facts:
    """The facts of one library. Ends the program when it is not there or is none."""
    if not path.is_file():
        raise SystemExit(f"{path}: not there; run python -m tools.build_kernels")
    binary = lief.parse(str(path))
    if isinstance(binary, lief.ELF.Binary):
        return read_elf(binary, path.stat().st_size)
    if isinstance(binary, lief.MachO.Binary):
        return read_macho(binary, path.stat().st_size)
    if isinstance(binary, lief.PE.Binary):
        return read_pe(binary, path.stat().st_size)
    raise SystemExit(f"{path}: not an ELF, Mach-O or PE library: python -m tools.build_kernels --force")


def read_elf(binary: lief.ELF.Binary, size: int) -> Facts:
    """Facts of a .so."""
    segment, tag, flag = lief.ELF.Segment.TYPE, lief.ELF.DynamicEntry.TAG, lief.ELF.Segment.FLAGS
    entries = {entry.tag: entry for entry in binary.dynamic_entries}
    loads = [part for part in binary.segments if part.type == segment.LOAD]
    stack = [part for part in binary.segments if part.type == segment.GNU_STACK]
    both = [part for part in loads if part.has(flag.W) and part.has(flag.X)]
    flags = entries[tag.FLAGS].value if tag.FLAGS in entries else 0
    arm32 = binary.header.machine_type == lief.ELF.ARCH.ARM
    return Facts(
        machine=binary.header.machine_type.name,
        name=str(getattr(entries.get(tag.SONAME), "name", "")),
        bytes=size,
        exports=tuple(sorted(str(symbol.name) for symbol in binary.dynamic_symbols if symbol.exported)),
        needed=tuple(str(name) for name in binary.libraries),
        page=min(part.alignment for part in loads),
        text_relocations=tag.TEXTREL in entries or bool(flags & int(lief.ELF.DynamicEntryFlags.FLAG.TEXTREL)),
        executable_data=bool(both) or not stack or stack[0].has(flag.X),
        relro=any(part.type == segment.GNU_RELRO for part in binary.segments),
        bind_now=tag.BIND_NOW in entries or bool(flags & int(lief.ELF.DynamicEntryFlags.FLAG.BIND_NOW)),
        stripped=not any(section.type == lief.ELF.Section.TYPE.SYMTAB for section in binary.sections),
        build_id=any(note.type == lief.ELF.Note.TYPE.GNU_BUILD_ID for note in binary.notes),
        hard_float=bool(binary.header.processor_flag & 0x400) if arm32 else None,  # EF_ARM_ABI_FLOAT_HARD
        signed=None,
    )


def read_macho(binary: lief.MachO.Binary, size: int) -> Facts:
    """Facts of a .dylib."""
    exports = {str(symbol.name) for symbol in binary.exported_symbols} - _OF_THE_LINKER
    own = [command.name for command in binary.libraries if command.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    others = [command.name for command in binary.libraries if command.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    both = [part for part in binary.segments if part.init_protection & 6 == 6]  # write and execute
    return Facts(
        machine=binary.header.cpu_type.name,
        name=own[0] if own else "",
        bytes=size,
        exports=tuple(sorted(name.removeprefix("_") for name in exports)),
        needed=tuple(others),
        page=None,
        text_relocations=None,
        executable_data=bool(both),
        relro=None,
        bind_now=None,
        stripped=not any("7edgekit" in str(symbol.name) for symbol in binary.symbols),  # the namespace in C++ names
        build_id=None,
        hard_float=None,
        signed=binary.has_code_signature,
    )


def read_pe(binary: lief.PE.Binary, size: int) -> Facts:
    """Facts of a .dll."""
    table = binary.get_export()
    write_and_execute = 0x80000000 | 0x20000000
    both = [s for s in binary.sections if s.characteristics & write_and_execute == write_and_execute]
    nx = lief.PE.OptionalHeader.DLL_CHARACTERISTICS.NX_COMPAT in binary.optional_header.dll_characteristics_lists
    return Facts(
        machine=binary.header.machine.name,
        name=str(table.name) if table else "",
        bytes=size,
        exports=tuple(sorted(str(entry.name) for entry in table.entries)) if table else (),
        needed=tuple(str(entry.name) for entry in binary.imports),
        page=None,
        text_relocations=None,
        executable_data=bool(both) or not nx,
        relro=None,
        bind_now=None,
        stripped=not list(binary.symbols) and not list(binary.debug),
        build_id=None,
        hard_float=None,
        signed=None,
    )


def faults(path: Path, expected: Facts) -> list[str]:
    """One line for each fact of the library that is not as expected."""
    found = asdict(read(path))
    lines = []
    for key, wanted in asdict(expected).items():
        if key == "bytes":
            wrong = found[key] > wanted
        elif key == "page" and wanted is not None:
            wrong = found[key] < wanted
        else:
            wrong = found[key] != wanted
        if wrong:
            limit = "at most " if key == "bytes" else ""
            lines.append(f"{path}: {key} is {found[key]!r}, expected {limit}{wanted!r}: {WHY[key]}")
    return lines


def row(abi: str, facts: Facts) -> str:
    """A library as a line of the table."""
    marks = {True: "yes", False: "no", None: "-"}
    cells = [
        abi,
        facts.machine,
        f"{facts.bytes / 1024:.1f}",
        ", ".join(facts.needed) or "nothing",
        str(facts.page or "-"),
        marks[facts.relro],
        marks[facts.bind_now],
        marks[facts.text_relocations],
        marks[facts.executable_data],
        marks[facts.stripped],
        ", ".join(facts.exports),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Reads the command line; exits with 1 on a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    parser.add_argument("--libraries", type=Path, default=NATIVE, help="default: edgekit/lowbit/native")
    parser.add_argument("--abi", action="append", choices=sorted(TARGETS), metavar="NAME", help=", ".join(TARGETS))
    chosen = parser.parse_args()
    paths = {abi: chosen.libraries / abi / TARGETS[abi].file for abi in chosen.abi or TARGETS}
    wrong = [line for abi, path in paths.items() for line in faults(path, EXPECTED[abi])]
    facts = {abi: read(path) for abi, path in paths.items()}
    if chosen.json:
        print(json.dumps({"libraries": {abi: asdict(f) for abi, f in facts.items()}, "faults": wrong}, indent=2))
    else:
        print("| ABI | machine | KiB | needs | page | RELRO | BIND_NOW | TEXTREL | W+X | stripped | exports |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        print("\n".join(row(abi, f) for abi, f in facts.items()))
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
