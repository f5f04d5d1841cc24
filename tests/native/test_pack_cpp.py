"""The decoder of packs in C++ alone: on every processor the same, inside its memory under fuzzing, and broken on purpose."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from edgekit.coding import streams
from tests.native.test_cpp import ANY, COMMON, KERNELS, SANITIZED, ZIG, on_x86, run
from tests.support import cpp
from tests.support.tooling import need
from tools import build_kernels, check_kernels

SOURCES = KERNELS / "coding"
Case = tuple[int, np.ndarray, np.ndarray | None]


def cases() -> list[Case]:
    """Width, symbols and perhaps a base: streams of every kind, with lanes of every number and a rest."""
    random = np.random.default_rng(0)
    found: list[Case] = []
    for width, size, spread in ((2, 5000, 0.1), (4, 20_003, 1.5), (8, 20_011, 3.0), (8, 900, 2.0), (8, 30_000, 12.0)):
        loud = np.where(np.arange(size) < size // 2, 1.0, 5.0)
        values = np.clip(np.rint(random.laplace(size=size) * spread * loud), -(1 << width - 1), (1 << width - 1) - 1)
        symbols = (values.astype(np.int64) % (1 << width)).astype(np.uint8)
        base = random.integers(0, 1 << width, size).astype(np.uint8)
        found.append((width, symbols, None))
        found.append((width, np.where(base < 1 << (width - 1), 0, symbols).astype(np.uint8), base))
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What test_symbols.cpp reads."""
    path, kinds = tmp_path_factory.mktemp("records") / "records", set()
    with path.open("wb") as file:
        for width, symbols, base in cases():
            stream = streams.encode_stream(symbols, width, base)
            assert stream[0] == streams.CODED
            kinds.add(stream[1] >> 3)
            older = b"" if base is None else base.tobytes()
            file.write(struct.pack("<4I", width, len(symbols), len(older), len(stream) - 1))
            file.write(older + symbols.tobytes() + stream[1:])
    assert {kind & 3 for kind in kinds} == {0, 1, 2} and {kind >> 2 for kind in kinds} == {0, 1}
    return path


def build(compiler: tuple[str, ...], sources: Path, made: Path) -> Path:
    files = [*sources.glob("*.cpp"), KERNELS / "test" / "test_symbols.cpp"]
    return cpp.program((*compiler, *COMMON), sources, files, made)


def test_it_is_exact_and_stays_in_its_memory(records: Path, tmp_path: Path) -> None:
    need("clang++-19")
    compiler = ("clang++-19", *SANITIZED, "-fsanitize=address,undefined")
    done = run(str(build(compiler, SOURCES, tmp_path / "test")), str(records))
    assert (done.returncode, done.stdout) == (0, f"{len(cases())} exact\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("emulator", "target"),
    [
        ("qemu-aarch64-static", ("-target", "aarch64-linux-musl")),
        ("qemu-arm-static", ("-target", "arm-linux-musleabihf", "-mcpu=cortex_a9")),
    ],
)
def test_arm(emulator: str, target: tuple[str, ...], records: Path, tmp_path: Path) -> None:
    need(emulator)
    done = run(emulator, str(build((*ZIG, *target, "-static"), SOURCES, tmp_path / "test")), str(records))
    assert (done.returncode, done.stdout) == (0, f"{len(cases())} exact\n"), done.stdout + done.stderr


def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    need("clang++-19")
    files = [*SOURCES.glob("*.cpp"), KERNELS / "test" / "fuzz_symbols.cpp"]
    compiler = ("clang++-19", *COMMON, *SANITIZED, "-fsanitize=fuzzer,address,undefined")
    made = cpp.program(compiler, SOURCES, files, tmp_path / "fuzz")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, (width, symbols, base) in enumerate(cases()):
        part, older = symbols[:9000], None if base is None else base[:9000]
        head = bytes([width.bit_length() - 2, *struct.pack("<H", len(part) - 1), base is not None])
        (corpus / str(index)).write_bytes(head + streams.encode_stream(part, width, older)[1:])
    # Counted, not timed: a busy machine only takes longer.
    limits = (
        "-runs=5000",
        "-rss_limit_mb=4096",
        "-max_total_time=300",
        "-max_len=9000",
        "-len_control=0",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
    )
    done = run(str(made), *limits, str(corpus))
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stderr.split("Done ")[1].split(" runs")[0]) > 200


PLANTED = [
    ("symbols.h", "(exponent - 2) & 3", "(exponent - 2) & 1"),
    ("symbols.h", "(j + 1) / 2", "j / 2"),
    ("decode.cpp", "word & (0u - low)", "word"),
    pytest.param("steps_avx2.cpp", "_mm256_slli_epi32(x, 16)", "_mm256_slli_epi32(x, 15)", marks=on_x86),
    pytest.param("steps_avx2.cpp", "word += lanes >> lane & 1", "word = lane", marks=on_x86),
    ("encode.cpp", "x - quotient * c.frequency", "x - quotient"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), PLANTED)
def test_a_planted_fault_is_found(name: str, right: str, wrong: str, records: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "src")
    text = (tmp_path / "src" / name).read_text(encoding="utf-8")
    assert right in text, f"{name} no longer has {right!r}: plant another fault"
    (tmp_path / "src" / name).write_text(text.replace(right, wrong, 1), encoding="utf-8")
    done = run(str(build(ANY, tmp_path / "src", tmp_path / "test")), str(records))
    assert done.returncode != 0


@pytest.mark.parametrize("abi", build_kernels.CODING)
def test_every_built_library_passes(abi: str) -> None:
    target = build_kernels.CODING[abi]
    path = build_kernels.NATIVE / abi / target.file
    if not path.is_file():
        pytest.fail(f"{path} is not there: run make kernels")
    of_system = check_kernels.EXPECTED[abi]
    exports = tuple(f"EdgekitSymbols{name}" for name in ("Count", "Decode", "Encode", "Workspace"))
    needed = of_system.needed if abi.startswith("macos") else ()
    name = of_system.name.replace("edgekit_ops", "edgekit_coding")
    assert check_kernels.faults(path, dataclasses.replace(of_system, exports=exports, needed=needed, name=name)) == []
