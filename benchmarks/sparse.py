"""SparseMatMul over the share of zeros, against the dense products of ONNX Runtime and of edgekit; where it breaks even.

    .venv/bin/python benchmarks/sparse.py [--json] [--quick] [--shapes 2560x2560 ...] [--zeros 50 80 ...] [--isa avx2]

It measures as ``ops.py`` does, with its products and its care: all implementations of a cell in one process, taking turns,
a row the median, minimum and spread (half the distance of the quartiles) over rounds. A cell is one shape, one share of
zeros, M, thread count and place of the weights. ``memory`` cells run 200 MB or more of different weights mapped from a
file, as a model that no cache holds does; in ``cache`` cells 20 products share one weight. ``--isa`` forces our kernels
alone. ``--clock cpu`` counts the seconds that the one thread ran instead of those that passed: for a machine whose cores
others use at the same time (their use of caches and memory is still in the numbers).

The JSON goes to ``--output`` (build/sparse.json unless given) and a plot beside it; with ``--json`` to stdout too. Bits
per weight count everything that is stored. ``break_even`` is the least share of zeros from which a sparse format is
faster than a dense one from there on, read off between the measured shares.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.operators.cells import Row, Settings
from edgekit.benchmark.machine import describe
from edgekit.errors import EdgekitError
from edgekit.lowbit.library import load_library
from edgekit.runtime.session import onnxruntime

STOCK_INT8 = "DynamicQuantizeLinear+MatMulInteger"
PEERS = (STOCK_INT8, "MatMulNBits-4", "MatMulNBits-8", "int8", "ternary")
SPARSE = ("sparse-int4", "sparse-int4-a128", "sparse-int8", "sparse-int8-a128")
"""a128: activations are rounded in blocks of 128, as MatMulNBits does and exported layers do; otherwise per token."""
ZEROS = (0, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class Line:
    """One implementation in one cell."""

    impl: str
    zeros: int  # per cent in the sparse weights of the cell
    shape: str
    M: int
    threads: int
    weights: str  # "memory" or "cache"
    isa: str
    median_us: float
    min_us: float
    spread_us: float
    gb_per_s: float
    bits_per_weight: float


def main() -> None:
    """Measures, prints, writes."""
    options = _options()
    if options.isa:
        os.environ["EDGEKIT_ISA"] = options.isa
    try:
        library = load_library()
    except EdgekitError as error:
        sys.exit(str(error))
    if library is None:
        sys.exit("EDGEKIT_OPS_LIBRARY=none leaves nothing to measure; unset it")
    ours = {"version": library.version, "isa": library.isa, "supported": library.supported}
    machine = {**asdict(describe()), "onnxruntime": onnxruntime().__version__, "library": ours, "clock": options.clock}
    lines = [line for shape in options.shapes for line in _shape(shape, options)]
    even = [found for cell in _curves(lines) for found in break_even(*cell)]
    rows = [asdict(line) for line in lines]
    document = {"machine": machine, "rows": rows, "break_even": even}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    from benchmarks.operators.sparse_plot import draw

    draw(rows, options.output.with_suffix(".png"))
    print(json.dumps(document) if options.json else "\n".join(table(lines, even)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the document on stdout")
    parser.add_argument("--output", type=Path, default=Path("build/sparse.json"), metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 ms: to see that it works")
    parser.add_argument("--shapes", nargs="+", default=("2560x2560", "6912x2560"), metavar="NxK")
    parser.add_argument("--zeros", type=int, nargs="+", default=ZEROS, metavar="PERCENT")
    parser.add_argument("--m", type=int, nargs="+", default=(1,), help="rows of X; 1 has a cell from memory too")
    parser.add_argument("--threads", type=int, nargs="+", default=(1,))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the one thread")
    parser.add_argument("--isa", help="force our kernels to this instruction set")
    options = parser.parse_args()
    if options.clock == "cpu" and list(options.threads) != [1]:
        parser.error("--clock cpu counts one thread: leave --threads at 1")
    return options


def _shape(shape: str, options: argparse.Namespace) -> Iterator[Line]:
    """Every cell of one shape; the dense models are made once, each share of zeros has a process of its own."""
    n, k = (int(number) for number in shape.split("x"))
    rounds, seconds = (3, 0.001) if options.quick else (options.rounds, 0.005)
    with tempfile.TemporaryDirectory(prefix="edgekit-sparse-") as scratch:
        for threads in options.threads:
            for zeros in options.zeros:
                sparse = [f"{name}-{zeros}" for name in SPARSE]
                settings = Settings(
                    n, k, threads, list(options.m), [*sparse, *PEERS], rounds, seconds, scratch, options.clock
                )
                command = [sys.executable, "-m", "benchmarks.operators.cells", json.dumps(asdict(settings))]
                worker = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if worker.returncode:
                    sys.exit(f"{shape}, {zeros} % zeros: the worker stopped with exit code {worker.returncode}")
                for row in (Row(**json.loads(text)) for text in worker.stdout.splitlines()):
                    yield _line(row, zeros)
                for made in Path(scratch).glob("sparse-*"):
                    made.unlink()


def _line(row: Row, zeros: int) -> Line:
    name = row.impl.rpartition("-")[0] if row.impl.startswith("sparse-") else row.impl
    bits = round(8e3 * row.gb_per_s * row.median_us / (row.N * row.K), 3)
    return Line(
        name, zeros, f"{row.N}x{row.K}", row.M, row.threads, "memory" if row.cold else "cache", row.isa,
        row.median_us, row.min_us, row.spread_us, row.gb_per_s, bits,
    )  # fmt: skip


def _curves(lines: Sequence[Line]) -> Iterator[tuple[Line, list[Line]]]:
    """The lines of each shape, M, thread count and place together, with one of them to name the cell."""
    cells: dict[tuple[str, int, int, str], list[Line]] = {}
    for line in lines:
        cells.setdefault((line.shape, line.M, line.threads, line.weights), []).append(line)
    return ((found[0], found) for found in cells.values())


def break_even(cell: Line, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """For each sparse format and each dense peer: the share of zeros from which sparse stays faster; None if nowhere."""
    for name in SPARSE:
        for peer in PEERS:
            ratios = sorted(
                (mine.zeros, theirs.median_us / mine.median_us)
                for mine in lines
                for theirs in lines
                if (mine.impl, theirs.impl) == (name, peer) and mine.zeros == theirs.zeros
            )
            yield {
                "impl": name, "against": peer, "shape": cell.shape, "M": cell.M, "threads": cell.threads,
                "weights": cell.weights, "zeros": crossing(ratios),
            }  # fmt: skip


def crossing(ratios: Sequence[tuple[int, float]]) -> float | None:
    """Where a rising line of (per cent of zeros, how many times as fast) passes 1 for the last time."""
    if not ratios or ratios[-1][1] < 1:
        return None
    found = float(ratios[0][0])
    for (low, before), (high, after) in itertools.pairwise(ratios):
        if before < 1 <= after:
            found = low + (high - low) * (1 - before) / (after - before)
    return round(found, 1)


def table(lines: Sequence[Line], even: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For people: for each share of zeros, microseconds, bits, and how many times as long the dense ones take."""
    for cell, found in _curves(lines):
        yield f"\n{cell.shape}  M = {cell.M}  {cell.threads} threads, weights in {cell.weights}"
        for name in SPARSE:
            for mine in (line for line in found if line.impl == name):
                peers = {line.impl: line for line in found if line.zeros == mine.zeros}
                times = "  ".join(f"{p} x{peers[p].median_us / mine.median_us:.2f}" for p in PEERS if p in peers)
                yield (
                    f"  {name} {mine.zeros:>3} % zeros {mine.median_us:>8.1f} ± {mine.spread_us:.1f} us "
                    f"{mine.bits_per_weight:>6.3f} bits {mine.gb_per_s:>5.1f} GB/s  {times}  {mine.isa}"
                )
    yield ""
    for found_even in even:
        where = "nowhere" if found_even["zeros"] is None else f"from {found_even['zeros']} % zeros"
        yield "{shape} M = {M} {threads} threads {weights}: {impl} faster than {against} ".format(**found_even) + where


if __name__ == "__main__":
    main()
