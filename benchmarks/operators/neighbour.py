"""Ternary layers beside a busy neighbour: do two threads, one of which shares its core, fall behind one thread?

    .venv/bin/python benchmarks/operators/neighbour.py [--json] [--layers 40] [--size 2560] [--rounds 9] [--output FILE.json]

A run is like decoding: M = 1, a model of --layers products whose weights together exceed the cache. The neighbour is a
process that keeps the last core busy and is stopped in the quiet half of every round. One sample is 0.25 s of runs,
longer than the scheduler's slices, and gives the mean of a product: waiting for the neighbour's slice to end is part of
it. A row is the median over rounds; ``worst_us`` is the slowest round; ``to_one_alone`` says how many times as long it
is as the same implementation at one thread without a neighbour. Implementations and thread counts take turns, with
edgekit's settings of ONNX Runtime. ``others_cores`` is what processes that have nothing to do with this kept busy: a
stranger makes the quiet half a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.operators.models import product, write_products
from benchmarks.operators.sessions import bound_run, open_session
from edgekit.benchmark.machine import Watch, describe, usable_cores
from edgekit.lowbit.library import load_library
from edgekit.runtime.session import onnxruntime

IMPLS = ("ternary", "MatMulNBits-2")
Key = tuple[str, int, bool]  # implementation, threads, neighbour


@dataclass(frozen=True)
class Row:
    """Microseconds of one product."""

    impl: str
    threads: int
    neighbour: bool
    median_us: float
    worst_us: float
    to_one_alone: float


def main() -> None:
    """Measures and prints."""
    options = _options()
    if usable_cores() < max(options.threads):
        sys.exit(f"{usable_cores()} cores usable, {max(options.threads)} threads asked for: give --threads fewer")
    with tempfile.TemporaryDirectory(prefix="edgekit-ops-") as scratch:
        runs = {(impl, threads): run for impl in IMPLS for threads, run in _runs(impl, options, Path(scratch))}
        times, others = _rounds(runs, options)
    rows = _rows(times)
    library = load_library()
    ours = {"isa": library.isa, "version": library.version} if library is not None else None
    result = {
        "machine": {**asdict(describe()), "onnxruntime": onnxruntime().__version__, "library": ours},
        "model": {"layers": options.layers, "size": options.size},
        "others_cores": round(others, 2),
        "rows": [asdict(row) for row in rows],
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else "\n".join(table(rows, others)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the JSON here too")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--size", type=int, default=2560, help="N and K of every layer")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="1 must be among them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a sample")
    options = parser.parse_args()
    if 1 not in options.threads:
        parser.error("--threads: 1 is what the others are compared with; expected it among them")
    return options


def _runs(impl: str, options: argparse.Namespace, scratch: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """A function for each thread count that runs all layers once."""
    one = product(impl, options.size, options.size)
    path = scratch / f"{impl}.onnx"
    write_products(one, options.size, options.size, options.layers, True, path)
    x = np.random.default_rng(1).standard_normal((1, options.size)).astype(np.float32)
    for threads in options.threads:
        yield threads, bound_run(open_session(path, threads, one.weight is not None), x, options.size)


def _rounds(
    runs: dict[tuple[str, int], Callable[[], None]], options: argparse.Namespace
) -> tuple[dict[Key, list[float]], float]:
    """Seconds of one product, in every round without and with the neighbour; cores that strangers kept busy."""
    times: dict[Key, list[float]] = {}
    with _neighbour() as (pid, wake):
        watch = Watch([pid])
        for turn in range(options.rounds):
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for busy in (False, True):
                wake(busy)
                for (impl, threads), run in list(runs.items())[:: 1 if turn % 2 == 0 else -1]:
                    run()  # what the one before left in the caches is not its fault
                    seconds = _mean_seconds(run, options.seconds) / options.layers
                    times.setdefault((impl, threads, busy), []).append(seconds)
        return times, watch.disturbance().others


def _mean_seconds(run: Callable[[], None], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        run()
        count += 1
    return passed / count


@contextmanager
def _neighbour() -> Iterator[tuple[int, Callable[[bool], None]]]:
    """Id of a process that spins on the last core when it is told to, and how to tell it; it sleeps at first."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})

        def wake(busy: bool) -> None:
            process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
            time.sleep(0.02)

        wake(False)
        yield process.pid, wake
    finally:
        process.kill()
        process.wait()


def _rows(times: dict[Key, list[float]]) -> list[Row]:
    alone = {impl: median(times[impl, 1, False]) for impl in IMPLS}
    return [
        Row(
            impl, threads, busy, round(median(seconds) * 1e6, 2), round(max(seconds) * 1e6, 2),
            round(median(seconds) / alone[impl], 3),
        )
        for (impl, threads, busy), seconds in sorted(times.items(), key=lambda item: (IMPLS.index(item[0][0]), item[0]))
    ]  # fmt: skip


def table(rows: Sequence[Row], others: float) -> Iterator[str]:
    """For people."""
    yield f"other processes kept {others:.2f} cores busy on average{': not quiet enough' * (others > 0.25)}"
    yield f"{'impl':<14} {'threads':>7} {'neighbour':>9} {'us':>8} {'worst':>8} {'to one alone':>13}"
    for r in rows:
        yield (
            f"{r.impl:<14} {r.threads:>7} {'busy' if r.neighbour else '-':>9} {r.median_us:>8.1f} {r.worst_us:>8.1f} "
            f"{r.to_one_alone:>13.2f}"
        )


if __name__ == "__main__":
    main()
