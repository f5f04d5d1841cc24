"""Instructions that whole products execute on ARM, counted exactly under qemu: no stopwatch, and the same on every machine.

    python -m benchmarks.operators.arm_counts [--json] [--write]

Needs qemu-aarch64-static and ziglang. ``edgekit/kernels/test/repeat_operator.cpp`` computes a product of ``K`` x ``N`` once and
twice in an emulator that reports every instruction; the difference is one call of the operator: rounding of activations, the
product, scales. Given for 128 weights and one token. ``--write`` replaces docs/measured/kernels-arm-counts.csv, with which
tests/native/test_arm_counts.py compares.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support import cpp

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "edgekit" / "kernels"
TABLE = ROOT / "docs" / "measured" / "kernels-arm-counts.csv"
K, N = 512, 128  # as in repeat_operator.cpp
FORMATS = ("ternary", "ternary-128", "int8", "int4-64", "int4-32", "int4-fp16-32", "int8-64")
CORES = {"cortex-a72": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
TOKENS = (1, 16)
NOT_HOSTED = {"-ffreestanding", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Werror"}
"""Flags of the library that a program with a C++ library cannot have."""


@dataclass(frozen=True)
class Row:
    """``instructions`` are for 128 weights and one token."""

    format: str
    core: str
    isa: str
    tokens: int
    instructions: float

    @property
    def of(self) -> tuple[str, str, str, int]:
        """What was counted."""
        return self.format, self.core, self.isa, self.tokens


def main() -> None:
    """Builds, counts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--write", action="store_true", help=f"replace {TABLE.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        counted = list(rows(build(Path(scratch) / "repeat_operator")))
    if options.write:
        write(counted)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in counted]}))
        return
    for row in counted:
        print(
            f"{row.format:<12} {row.core:<11} {row.isa:<13} M = {row.tokens:<3} {row.instructions:>6.1f} instructions"
        )


def build(program: Path) -> Path:
    """repeat_operator for arm64, compiled as the library is."""
    flags = (KERNELS / "compile_flags.txt").read_text(encoding="utf-8").split()
    compiler = (sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static")
    kept = [flag for flag in flags if flag not in NOT_HOSTED]
    sources = [path for path in sorted((KERNELS / "src").glob("*.cpp")) if path.name != "memory.cpp"]
    sources.append(KERNELS / "test" / "repeat_operator.cpp")
    return cpp.program((*compiler, "-fno-sanitize=undefined", *kept), KERNELS / "src", sources, program)


def rows(program: Path) -> Iterator[Row]:
    """One row for each format, core and number of tokens."""
    for name in FORMATS:
        for core, isa in CORES.items():
            for tokens in TOKENS:
                once, twice = (_executed(program, core, [name, isa, str(tokens), times]) for times in ("1", "2"))
                yield Row(name, core, isa, tokens, round((twice - once) * 128 / (K * N * tokens), 2))


def write(counted: list[Row]) -> None:
    """The table in docs/measured."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(asdict(counted[0])), lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in counted)


def read() -> list[Row]:
    """The table in docs/measured."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [
            Row(line["format"], line["core"], line["isa"], int(line["tokens"]), float(line["instructions"]))
            for line in csv.DictReader(file)
        ]


def _executed(program: Path, core: str, arguments: list[str]) -> int:
    """Instructions of a whole run: qemu translates them one by one and names each that it executes."""
    # Older and newer qemu have different names for one instruction a block.
    environment = {**os.environ, "QEMU_SINGLESTEP": "1", "QEMU_ONE_INSN_PER_TB": "1"}
    command = ["qemu-aarch64-static", "-cpu", core, "-d", "exec,nochain", "-D", "/dev/stderr", str(program), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        counted = 0
        while block := process.stderr.read(1 << 20):
            counted += block.count(b"[")  # one in each report
        said = process.stdout.read().decode()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {said or process.returncode}")
    return counted


if __name__ == "__main__":
    main()
