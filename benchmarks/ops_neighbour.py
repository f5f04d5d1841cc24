"""Two threads beside a busy neighbour: a chain of ternary products as in decoding, with a process that keeps a core busy.

    python -m benchmarks.ops_neighbour [--json]

Microseconds for one of 30 layers of 2560 x 2560 in one run; quiet and disturbed rounds take turns. An engine whose threads
wait for each other by spinning collapses here; ``worst`` is the slowest round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.ops import Subject, subject
from benchmarks.ops_models import products
from edgekit.bench.machine import describe

LAYERS, SIZE, ROUNDS = 30, 2560, 9
WAYS = ("ternary", "MatMulNBits-2")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((1, SIZE)).astype(np.float32)
    ways = products(SIZE, SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        made = {
            (way, threads): subject(way, ways[way], x, SIZE, threads, LAYERS, Path(scratch))
            for way in WAYS
            for threads in (1, 2)
        }
        rows = [row for neighbour in (False, True) for row in measure(made, neighbour)]
    if options.json:
        print(json.dumps({"machine": {"cpu": describe().cpu}, "rows": rows}))
        return
    for row in rows:
        busy = "busy neighbour" if row["neighbour"] else "quiet"
        print(
            f"{row['impl']:<14} {row['threads']} threads  {busy:<15} median {row['median_us']:>7.1f} us  worst {row['worst_us']:>8.1f} us"
        )


def measure(made: dict[tuple[str, int], Subject], neighbour: bool) -> list[dict[str, Any]]:
    """One row for each way and thread count."""
    times: dict[tuple[str, int], list[float]] = {key: [] for key in made}
    with busy(neighbour):
        for _ in range(ROUNDS):
            for key, one in made.items():
                began = time.perf_counter()
                for _ in range(20):
                    one.run()
                times[key].append((time.perf_counter() - began) / 20 / LAYERS * 1e6)
    return [
        {"impl": way, "threads": threads, "neighbour": neighbour, "median_us": round(median(found), 1), "worst_us": round(max(found), 1)}
        for (way, threads), found in times.items()
    ]  # fmt: skip


@contextmanager
def busy(wanted: bool):  # type: ignore[no-untyped-def]
    """A process that never rests, or none."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    if wanted:
        process.start()
        time.sleep(0.5)
    yield
    if wanted:
        process.kill()
        process.join()


def spin() -> None:
    """Until it is killed."""
    while True:
        pass


if __name__ == "__main__":
    main()
