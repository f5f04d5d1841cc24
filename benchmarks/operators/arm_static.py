"""ARM without an ARM: the inner loops of the NEON kernels, counted and put through llvm-mca. Static analysis, no stopwatch.

    python -m benchmarks.operators.arm_static [--json]

Needs clang++-19 and llvm-mca-19. Each loop is cut out of the compiler's own assembly; instructions and cycles are for 128
weights and one token. llvm-mca assumes that all data is in the first cache: a limit from below. ``int8 dot`` is the plain
loop over 8-bit weights, four times the bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "edgekit" / "kernels"
CORES = ("cortex-a72", "cortex-a76", "cortex-x2")
ITERATIONS = 100


@dataclass(frozen=True)
class Loop:
    """An inner loop: where it is, how it multiplies, how many products that makes, and the weights and tokens of one round.

    A loop is known by its number of products, and by whether it moves codes down (``shifts``).
    """

    name: str
    file: str
    function: str
    multiply: str
    products: int  # of one multiplication
    shifts: bool
    weights: int
    tokens: int
    cores: tuple[str, ...]


LOOPS = (
    Loop("ternary, M = 1, NEON", "kernels_neon.cpp", "gemv", "sml|smull", 8, True, 512, 1, CORES),
    Loop("int8 dot, M = 1, NEON", "kernels_neon.cpp", "gemv", "sml|smull", 8, False, 64, 1, CORES),
    Loop("ternary, M = 1, dot product", "kernels_neon_dotprod.cpp", "gemv", "sdot", 16, True, 512, 1, CORES[1:]),
    Loop("int8 dot, M = 1, dot product", "kernels_neon_dotprod.cpp", "gemv", "sdot", 16, False, 64, 1, CORES[1:]),
    Loop("8 tokens, dot product", "kernels_neon_dotprod.cpp", "tile", "sdot", 16, False, 128, 8, CORES[1:]),
    Loop("8 tokens, i8mm", "kernels_neon_i8mm.cpp", "tile", "smmla", 32, False, 64, 8, CORES[2:]),
)


@dataclass(frozen=True)
class Row:
    """Per 128 weights and token."""

    loop: str
    core: str
    instructions: float
    cycles: float


def main() -> None:
    """Compiles, cuts out, analyses, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    rows = [row for loop in LOOPS for row in analyse(loop)]
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        print(
            f"{row.loop:<30} {row.core:<12} {row.instructions:>6.1f} instructions  {row.cycles:>6.1f} cycles (static analysis)"
        )


def analyse(loop: Loop) -> list[Row]:
    """One row for each core."""
    body = inner_loop(loop)
    share = loop.weights * loop.tokens / 128
    rows = []
    for core in loop.cores:
        command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
        command.append("-mattr=+dotprod,+i8mm")
        done = subprocess.run(command, input="\n".join(body), capture_output=True, text=True, check=True)
        cycles = int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1]) / ITERATIONS  # type: ignore[index]
        rows.append(Row(loop.name, core, round(len(body) / share, 2), round(cycles / share, 2)))
    return rows


def inner_loop(loop: Loop) -> list[str]:
    """Instructions of the loop, as the compiler made them."""
    flags = (KERNELS / "compile_flags.txt").read_text(encoding="utf-8").split()
    source = str(KERNELS / "src" / loop.file)
    command = ["clang++-19", "--target=aarch64-linux-gnu", *flags, "-S", source, "-o", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: list[list[str]] = []
    for part in re.split(r"\n(?=_Z\w+:)", text):
        if loop.function in part.split(":", 1)[0]:
            found += loops(part)
    wanted = loop.weights * loop.tokens // loop.products
    for body in found:
        multiplications = sum(re.match(loop.multiply, line) is not None for line in body)
        if multiplications == wanted and any(line.startswith("ushr") for line in body) == loop.shifts:
            return body
    raise SystemExit(f"{loop.file}: no loop of {wanted} {loop.multiply} in {loop.function}: has the kernel changed?")


def loops(function: str) -> list[list[str]]:
    """Bodies of loops: from a label to a branch back to it."""
    lines = [line.strip() for line in function.splitlines()]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    found = []
    for i, line in enumerate(lines):
        branch = re.match(r"(?:b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)", line)
        if branch and labels.get(branch[1], i) < i:
            body = [x for x in lines[labels[branch[1]] + 1 : i + 1] if x and not x.startswith((".", "//", "#"))]
            found.append([x.split("//")[0] for x in body])
    return found


if __name__ == "__main__":
    main()
