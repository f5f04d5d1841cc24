"""edgekit's operators against everything that ONNX Runtime's CPU offers for the same product, and the machine's limits.

    .venv/bin/python benchmarks/ops.py [--json] [--quick] [--shapes 2560x2560 ...] [--threads 1 2] [--impl ternary ...]

A cell is one shape, M, thread count and place of the weights. All implementations of a cell are in one process and take
turns, A B C and then C B A; a sample is 5 ms of work or more, a row the median and minimum over rounds. Every shape and
thread count has a process of its own. Our operators are compared with the numpy reference, bit for bit, before they are
timed. Cells during which other processes kept more than a quarter of a core busy are named on stderr.

Times are for one product and include what ONNX Runtime needs to call its kernels. For M up to 16, one run holds 20
products with the same weights and an input each (equal nodes would be merged), so that little of a run is Python; all
outputs go into one buffer. Above, one run is one product.

``cold`` rows (M = 1) run a model of 200 MB or more of different weights, mapped from a file at page boundaries as in a
bundle: each product reads its own from memory. In the others weights are where the caches have room: fp32 has none.
``read`` sums the mapped bytes of ``ternary``'s weights, with as many threads, and does nothing else. ``gb_per_s``
counts weights, scales and zero points as stored.

``--isa`` (or EDGEKIT_ISA) forces our kernels to an instruction set. ONNX Runtime's cannot be forced: 1.32 has no option
or environment variable for it (session.kernel_dispatch_policy is about latency and memory, and changes nothing here),
so a forced row is compared with its best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.operators.cells import READ, Row, Settings
from benchmarks.operators.limits import Limits
from benchmarks.operators.models import NAMES
from edgekit.benchmark.machine import describe
from edgekit.errors import EdgekitError
from edgekit.lowbit.library import load_library
from edgekit.runtime.session import onnxruntime

SHAPES = ("2560x2560", "6912x2560", "2560x6912")
MS = (1, 4, 8, 16, 64, 128)
PEERS = {
    "ternary": ("MatMulNBits-2",),
    "ternary-g128": ("MatMulNBits-2",),
    "int4": ("MatMulNBits-4-64",),
    "int8-64": ("MatMulNBits-8-64",),
    "int8": ("MatMulNBits-8", "DynamicQuantizeLinear+MatMulInteger", "QDQ-int8"),
}
"""What ONNX Runtime offers for weights of as many bits."""


def main() -> None:
    """Measures, prints, writes."""
    options = _options()
    if options.isa:
        os.environ["EDGEKIT_ISA"] = options.isa
    try:
        machine = _machine()
    except EdgekitError as error:
        sys.exit(str(error))
    rows: list[Row] = []
    for shape in options.shapes:
        rows += _shape(shape, options)
    result = {"machine": machine, "rows": [asdict(row) for row in rows]}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else "\n".join(table(rows, machine)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 ms: to see that it works")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxK", type=_shape_text)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--m", type=int, nargs="+", default=MS, help="rows of X; 1 adds the cold cell")
    parser.add_argument("--impl", nargs="+", default=[*NAMES, READ], choices=[*NAMES, READ], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=None, help="default 11, 3 with --quick")
    parser.add_argument("--isa", help="force our kernels to this instruction set")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: of one thread, on a busy machine"
    )
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu counts one thread's seconds: add --threads 1")
    options.rounds = options.rounds or (3 if options.quick else 11)
    return options


def _shape_text(text: str) -> str:
    n, _, k = text.partition("x")
    if not (n.isdigit() and k.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; expected NxK, for instance 6912x2560")
    return text


def _machine() -> dict[str, Any]:
    library = load_library()
    if library is None:
        sys.exit("EDGEKIT_OPS_LIBRARY=none leaves nothing to measure; unset it")
    with tempfile.TemporaryDirectory() as scratch:
        most = Limits(Path(scratch)).gmac_per_s()
    ours = {"version": library.version, "isa": library.isa, "supported": library.supported}
    versions = {"onnxruntime": onnxruntime().__version__, "library": ours}
    return {**asdict(describe()), **versions, "vpdpbusd_gmac_per_s": most}


def _shape(shape: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one shape, from one worker a thread count; the models are made once."""
    n, k = (int(number) for number in shape.split("x"))
    seconds = 0.001 if options.quick else 0.005
    with tempfile.TemporaryDirectory(prefix="edgekit-ops-") as scratch:
        for threads in options.threads:
            settings = Settings(
                n, k, threads, list(options.m), options.impl, options.rounds, seconds, scratch, options.clock
            )
            command = [sys.executable, "-m", "benchmarks.operators.cells", json.dumps(asdict(settings))]
            worker = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if worker.returncode:
                sys.exit(f"{shape}, threads = {threads}: the worker stopped with exit code {worker.returncode}")
            yield from (Row(**json.loads(line)) for line in worker.stdout.splitlines())


def table(rows: Sequence[Row], machine: dict[str, Any]) -> Iterator[str]:
    """For people: a block for each cell, with how many times as long as ``ternary`` each takes."""
    most = machine["vpdpbusd_gmac_per_s"]
    yield f"{machine['cpu']}, {machine['cores']} cores, ONNX Runtime {machine['onnxruntime']}" + (
        f"; one core multiplies at most {most} GMAC/s" if most else ""
    )
    for (n, k, m, threads, cold), members in _cells(rows).items():
        ours = members.get("ternary", next(iter(members.values()))).median_us
        yield f"\n{n}x{k}  M = {m}  {threads} thread{'s' * (threads > 1)}{'  from memory' if cold else ''}"
        for r in members.values():
            yield (
                f"  {r.impl:<36} {r.median_us:>10.1f} us (min {r.min_us:>9.1f}) {r.gb_per_s:>7.1f} GB/s "
                f"{r.gmac_per_s:>7.1f} GMAC/s  {r.median_us / ours:>6.2f}  {r.isa}"
            )
    yield ""
    for name, peers in PEERS.items():
        yield from _summary(name, peers, list(_cells(rows).values()))


def _cells(rows: Sequence[Row]) -> dict[tuple[int, int, int, int, bool], dict[str, Row]]:
    cells: dict[tuple[int, int, int, int, bool], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row.N, row.K, row.M, row.threads, row.cold), {})[row.impl] = row
    return cells


def _summary(name: str, peers: Sequence[str], cells: Sequence[dict[str, Row]]) -> Iterator[str]:
    """One line for one of ours against the fastest of its peers, and one for each cell that it loses."""
    ratios: list[float] = []
    for members in cells:
        stock = [members[peer] for peer in peers if peer in members]
        if name not in members or not stock:
            continue
        best, own = min(stock, key=lambda row: row.median_us), members[name]
        ratios.append(best.median_us / own.median_us)
        if ratios[-1] < 1:
            cold = ", from memory" if own.cold else ""
            cell = f"{own.N}x{own.K}, M = {own.M}, threads = {own.threads}{cold}"
            yield f"{cell}: {name} takes {own.median_us:.1f} us, {best.impl} {best.median_us:.1f} us"
    if ratios:
        known = "the fastest of " * (len(peers) > 1) + ", ".join(peers)
        yield f"{name}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as {known}, in {len(ratios)} cells"


if __name__ == "__main__":
    main()
