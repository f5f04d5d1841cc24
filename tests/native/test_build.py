"""The built libraries are what apps rely on, and the check of it notices when they are not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.lowbit.library import ABIS
from tests.support.tooling import need
from tools import build_kernels, check_kernels
from tools.build_kernels import KERNELS, NATIVE, ROOT, TARGETS

HOST_COMPILERS = ("g++", "clang++-19")
LINUX = "linux-x86_64"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The compiled sources for Linux on x86-64."""
    folder = tmp_path_factory.mktemp("objects")
    return build_kernels.compile_sources(TARGETS[LINUX], "zig", folder, folder / "cache")


def linked(objects: list[str], folder: Path, *more: str) -> Path:
    """A library made of them, with ``more`` for the linker."""
    path = folder / "libedgekit_ops.so"
    build_kernels.link_library(TARGETS[LINUX], "zig", objects, path, folder / "cache", more)
    return path


@pytest.mark.parametrize("abi", TARGETS)
def test_every_built_library_passes(abi: str) -> None:
    path = NATIVE / abi / TARGETS[abi].file
    if not path.is_file():
        pytest.fail(f"{path} is not there: run make kernels")
    assert check_kernels.faults(path, check_kernels.EXPECTED[abi]) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (
            ("-z", "max-page-size=4096"),
            "page is 4096, expected 16384: Android on 16 KiB pages refuses smaller ones",
        ),
        (("--strip-debug",), "stripped is False, expected True: symbols are only weight"),
        (("-z", "lazy"), "bind_now is False, expected True: its tables could be overwritten"),
        (("-z", "norelro"), "relro is False, expected True: its tables could be overwritten"),
        (("-z", "execstack"), "executable_data is True, expected False: hardened systems refuse it"),
        (("--build-id=none",), "build_id is False, expected True: crash reports name a library by it"),
        (
            ("-soname=libother.so",),
            "name is 'libother.so', expected 'libedgekit_ops.so': apps ask for it by this name",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_planted_fault_is_named(objects: list[str], tmp_path: Path, more: tuple[str, ...], fault: str) -> None:
    path = linked(objects, tmp_path, *more)
    found = check_kernels.faults(path, check_kernels.EXPECTED[LINUX])
    if more == ("--strip-debug",):  # its symbols may also be what makes it too large
        found = [one for one in found if ": bytes is " not in one]
    assert found == [f"{path}: {fault}"]


def test_what_is_linked_without_a_fault_passes(objects: list[str], tmp_path: Path) -> None:
    assert check_kernels.faults(linked(objects, tmp_path), check_kernels.EXPECTED[LINUX]) == []


def test_an_extra_export_and_a_needed_library_are_named(objects: list[str], tmp_path: Path) -> None:
    more, exports, path = (tmp_path / name for name in ("more.cpp", "exports.map", "libedgekit_ops.so"))
    more.write_text('extern "C" char* getenv(const char*);\nextern "C" char* leaked() { return getenv("HOME"); }\n')
    exports.write_text("{ global: RegisterCustomOps; EdgekitOpsVersion; Java_*; leaked; local: *; };\n")
    compile_, link = build_kernels.commands("zig", TARGETS[LINUX])
    stub = KERNELS / "link" / "android_libc.c"
    options = [flag for flag in TARGETS[LINUX].link if "version-script" not in flag]
    for command in (
        [*compile_, "-O2", "-fPIC", "-c", str(more), "-x", "c", str(stub)],
        [*link, "-shared", "-soname=libc.so.6", "android_libc.o", "-o", "libc.so"],
        [*link, *options, f"--version-script={exports}", *objects, "more.o", "libc.so", "-o", str(path)],
    ):
        build_kernels.run(command, "planted fault", tmp_path, tmp_path / "cache")
    assert check_kernels.faults(path, check_kernels.EXPECTED[LINUX]) == [
        f"{path}: exports is {(*check_kernels.EXPORTS, 'leaked')}, expected {check_kernels.EXPORTS}: "
        "anything else can collide with the app's own symbols",
        f"{path}: needed is ('libc.so.6',), expected (): another library may be missing on a device",
    ]


def test_a_library_of_another_machine_or_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "libedgekit_ops.so"
    path.write_bytes((NATIVE / "linux-aarch64" / "libedgekit_ops.so").read_bytes() + bytes(check_kernels.LIMITS["elf"]))
    size = path.stat().st_size
    assert check_kernels.faults(path, check_kernels.EXPECTED[LINUX]) == [
        f"{path}: machine is 'AARCH64', expected 'X86_64': it would not load there",
        f"{path}: bytes is {size}, expected at most {check_kernels.LIMITS['elf']}: it travels in every app",
    ]


def test_the_check_exits_with_1_on_a_fault_and_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.check_kernels", "--libraries", str(tmp_path), "--abi", LINUX]
    missing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    path = tmp_path / LINUX / "libedgekit_ops.so"
    assert missing.returncode == 1
    assert missing.stderr == f"{path}: not there; run python -m tools.build_kernels\n"
    path.parent.mkdir()
    shutil.copyfile(NATIVE / "android-x86_64" / "libedgekit_ops.so", path)
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr == (
        f"{path}: needed is ('libc.so',), expected (): another library may be missing on a device\n"
    )


def test_a_source_that_does_not_compile_is_shown_and_leaves_the_library_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int broken(\n")
    old = tmp_path / LINUX / "libedgekit_ops.so"
    old.parent.mkdir()
    old.write_text("the old one")
    monkeypatch.setattr(build_kernels, "sources", lambda folder: [broken])
    with pytest.raises(
        SystemExit, match=r"(?s)libedgekit_ops.so for --target=x86_64-linux-gnu.*broken\.cpp:1:12: error"
    ):
        build_kernels.build(LINUX, tmp_path, "zig", tmp_path / "cache")
    assert old.read_text() == "the old one"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("compiler", HOST_COMPILERS)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="checks an ELF library")
def test_cmake_builds_the_host_library(compiler: str, tmp_path: Path) -> None:
    need(compiler)
    cmake = str(Path(sys.executable).with_name("cmake"))  # the environment's own, whatever PATH says
    configure = [cmake, "-S", str(KERNELS), "-B", str(tmp_path), "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={compiler}"]
    configure.append(f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).with_name('ninja')}")
    for command in (configure, [cmake, "--build", str(tmp_path), "-j2"]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    facts = check_kernels.read(tmp_path / "libedgekit_ops.so")
    assert facts.exports == check_kernels.EXPORTS
    assert facts.needed == ()
    assert facts.page == 16384
    assert facts.relro and facts.bind_now and facts.stripped and not facts.text_relocations
    assert not facts.executable_data


def test_lists_of_platforms_and_versions_agree() -> None:
    assert {abi: target.file for abi, target in TARGETS.items()} == ABIS
    assert check_kernels.EXPECTED.keys() == TARGETS.keys()
    pin = f'"ziglang=={build_kernels.ZIG}"'
    assert (ROOT / "pyproject.toml").read_text().count(pin) == 2  # to build a wheel, and for the tests
    imported = re.findall(r"^(?:import|from) ([\w.]+)", (ROOT / "tools/build_kernels.py").read_text(), re.MULTILINE)
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
