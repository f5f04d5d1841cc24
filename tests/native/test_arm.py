"""The Linux arm64 library in the real aarch64 ONNX Runtime, on emulated processors: the golden vectors, bit for bit.

Emulation shows what is computed and which instructions are used, never how fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.lowbit.library import built_library
from tests.support import golden_operators as golden
from tests.support.tooling import ROOT, need, require
from tools import arm_rootfs
from tools.make_vectors import write

BEST = {"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
FORCED = [
    ("cortex-a72", "scalar"), ("cortex-a72", "neon"),
    ("cortex-a76", "scalar"), ("cortex-a76", "neon"), ("cortex-a76", "neon_dotprod"),
    ("max", "scalar"), ("max", "neon"), ("max", "neon_dotprod"), ("max", "neon_i8mm"),
]  # fmt: skip
HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4 "
    "asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)  # Linux' names of the bits, lowest first
HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 dgh "
    "rng bti mte ecv afp rpres mte3 sme"
)
AUXILIARY = "import ctypes; get = ctypes.CDLL(None).getauxval; get.restype = ctypes.c_ulong; print(get(16), get(26))"


@pytest.fixture(scope="module")
def root() -> None:
    need("qemu-aarch64-static", "mmdebstrap")
    try:
        arm_rootfs.make()
    except SystemExit as fault:  # no network, most likely
        require(False, str(fault))


@pytest.fixture(scope="module")
def model(root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("golden")
    golden.write_model(directory)
    return directory


def replay(model: Path, cpu: str, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    script = ROOT / "tests" / "support" / "replay_golden.py"
    arguments = [str(script), str(model), str(built_library("linux-aarch64")), str(threads)]
    done = arm_rootfs.run(cpu, arguments, environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("cpu", BEST)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_best_instruction_set_is_chosen_and_exact(model: Path, cpu: str, threads: int) -> None:
    found = replay(model, cpu, threads, {})
    assert found["version"].split()[1] == BEST[cpu]
    assert found["differing"] == []
    assert found["version"].endswith(f"; {len(golden.golden())}")  # the operators ran, as many as there are nodes


@pytest.mark.parametrize(("cpu", "isa"), FORCED)
def test_a_forced_instruction_set_is_exact(model: Path, cpu: str, isa: str) -> None:
    found = replay(model, cpu, 1, {"EDGEKIT_ISA": isa})
    assert found["version"].split()[1] == isa
    assert found["differing"] == []


@pytest.mark.parametrize(("cpu", "isa"), [("cortex-a72", "neon_dotprod"), ("cortex-a76", "neon_i8mm")])
def test_what_the_processor_lacks_is_refused_not_a_crash(model: Path, cpu: str, isa: str) -> None:
    script = ROOT / "tests" / "support" / "replay_golden.py"
    arguments = [str(script), str(model), str(built_library("linux-aarch64")), "1"]
    done = arm_rootfs.run(cpu, arguments, {"EDGEKIT_ISA": isa})
    assert done.returncode == 1
    assert f"EDGEKIT_ISA={isa}: this processor cannot run it; it has neon" in done.stderr


@pytest.mark.parametrize("cpu", BEST)
def test_the_processor_is_described_as_it_is(root: None, cpu: str) -> None:
    """ONNX Runtime reads Features, our library HWCAP: both must say the same of one processor."""
    done = arm_rootfs.run(cpu, ["-c", AUXILIARY], {})
    words = zip((HWCAP, HWCAP2), map(int, done.stdout.split()), strict=True)
    found = {name for names, word in words for bit, name in enumerate(names.split()) if word >> bit & 1}
    described = set(arm_rootfs.FEATURES[cpu].split())
    assert described - found == set()
    if cpu != "max":  # a newer qemu adds to it
        assert found - described == set()


def test_vectors_are_what_the_reference_says(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("index.json", "vectors.bin"):
        assert (tmp_path / name).read_bytes() == (golden.VECTORS / name).read_bytes(), (
            "run python -m tools.make_vectors"
        )
