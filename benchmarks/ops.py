"""edgekit's operators against everything that ONNX Runtime offers for the same product, and against the machine's limits.

    .venv/bin/python benchmarks/ops.py [--json] [--threads 1 2] [--shapes 2560x2560 ...] [--rounds 9] [--output FILE]

One sample is one session.run with bound memory, repeated for 5 ms or more; it includes ONNX Runtime's own 2 us or so a
run, the same for all. Implementations of a cell take turns, round by round, in an order that turns too; medians and
minima are over rounds. ``cold`` rows run a model with 200 MB of weights, so that each product reads its own from memory;
times are for one product. ``read`` reads the file of ``ternary`` as it is mapped and does nothing else (huge pages, which a
file has not, would read faster). gb_per_s counts weights and
scales as stored. EDGEKIT_ISA forces ours to an instruction set; ONNX Runtime's kernels cannot be forced.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also when it is run by its path

from benchmarks.ops_models import OURS, Product, names_of, products, write_model  # noqa: E402
from edgekit.bench.machine import describe  # noqa: E402
from edgekit.lowbit.library import load_library  # noqa: E402
from edgekit.lowbit.reference import int8_matmul, ternary_matmul  # noqa: E402
from edgekit.runtime.session import SPIN_MICROSECONDS, onnxruntime  # noqa: E402

COLD_BYTES = 200 << 20
SAMPLE_SECONDS = 0.005
SHAPES = ("2560x2560", "6912x2560", "2560x6912")
MS = (1, 4, 8, 16, 64, 128)
CHECKED = 64  # rows of W and at most 4 of X that are compared with numpy before anything is timed


@dataclass(frozen=True)
class Row:
    """One implementation in one cell."""

    impl: str
    M: int
    N: int
    K: int
    threads: int
    cold: bool
    isa: str
    median_us: float
    min_us: float
    gb_per_s: float
    gmac_per_s: float


@dataclass
class Subject:
    """Something to time: ``run`` does ``products`` products of ``nbytes`` of weights each."""

    impl: str
    run: Callable[[], None]
    products: int
    nbytes: int
    isa: str = ""


def main() -> None:
    """Measures, prints, writes."""
    options = _options()
    limits = Limits()
    rows: list[Row] = []
    for shape in options.shapes:
        n, k = (int(number) for number in shape.split("x"))
        ways = {name: p for name, p in products(n, k).items() if not options.impl or name in options.impl}
        for threads in options.threads:
            for m, cold in [*((m, False) for m in options.m), (1, True)]:
                print(f"{shape}, M = {m}, {threads} threads{', cold' if cold else ''}", file=sys.stderr, flush=True)
                rows += cell(ways, limits, m, n, k, threads, cold, options.rounds)
    result = {"machine": {**asdict(describe()), **limits.facts()}, "rows": [asdict(row) for row in rows]}
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else "\n".join(table(rows, result["machine"])))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxK")
    parser.add_argument("--m", type=int, nargs="+", default=MS, help="rows of X")
    parser.add_argument("--impl", nargs="+", help="only these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    return parser.parse_args()


def cell(
    ways: dict[str, Product], limits: Limits, m: int, n: int, k: int, threads: int, cold: bool, rounds: int
) -> list[Row]:
    """Rows of all implementations for one M, thread count and place of the weights."""
    x = np.random.default_rng(1).standard_normal((m, k)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        copies = {name: -(-COLD_BYTES // p.nbytes) if cold else 1 for name, p in ways.items()}
        subjects = [subject(name, p, x, n, threads, copies[name], Path(scratch)) for name, p in ways.items()]
        if "ternary" in ways:
            subjects.append(limits.reader(Path(scratch) / f"ternary-{threads}.data", copies["ternary"], threads))
        times = _turns(subjects, rounds)
    macs = m * n * k
    return [
        Row(
            s.impl, m, n, k, threads, cold, s.isa, round(median(times[s.impl]) * 1e6, 2), round(min(times[s.impl]) * 1e6, 2),
            round(s.nbytes / median(times[s.impl]) / 1e9, 2),
            0.0 if s.impl == "read" else round(macs / median(times[s.impl]) / 1e9, 2),
        )
        for s in subjects
    ]  # fmt: skip


def _turns(subjects: list[Subject], rounds: int) -> dict[str, list[float]]:
    """Seconds of one product, for each round."""
    repeats = {}
    for subject in subjects:
        subject.run()  # warm
        began = time.perf_counter()
        subject.run()
        repeats[subject.impl] = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {s.impl: [] for s in subjects}
    for turn in range(rounds):
        shift = turn % len(subjects)
        for subject in [*subjects[shift:], *subjects[:shift]]:
            began = time.perf_counter()
            for _ in range(repeats[subject.impl]):
                subject.run()
            times[subject.impl].append((time.perf_counter() - began) / repeats[subject.impl] / subject.products)
    return times


def subject(name: str, product: Product, x: np.ndarray, n: int, threads: int, copies: int, scratch: Path) -> Subject:
    """A session with bound memory that runs ``copies`` products of ``x`` in a row; ours are checked first."""
    path = scratch / f"{name.replace('+', '-')}-{threads}.onnx"
    write_model(product, x.shape[1], copies, path)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    library = load_library() if product.weight is not None else None
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(x))
    outputs = [np.empty((len(x), n), np.float32) for _ in range(copies)]
    for output, array in zip(names_of(copies), outputs, strict=True):
        binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(array))

    def run() -> None:
        assert outputs and x is not None  # kept alive: a binding does not own its memory
        session.run_with_iobinding(binding)

    run()
    if product.weight is not None:
        _check(name, product, x, session.run(["Y0"], {"X": x})[0])
    return Subject(name, run, copies, product.nbytes, library.isa if library is not None else "")


def _check(name: str, product: Product, x: np.ndarray, y: np.ndarray) -> None:
    """A wrong kernel is never timed."""
    assert product.weight is not None
    block = 128 if name.endswith("g128") else 0
    reference = ternary_matmul if product.weight.format == "t2" else int8_matmul
    expected = reference(x[:4], product.weight.rows(0, CHECKED), None, block)
    if not np.array_equal(expected, y[:4, :CHECKED]):
        raise SystemExit(f"{name}: {OURS} gives other numbers than the reference; nothing was timed")


class Limits:
    """What the machine can do at most: read memory, and multiply bytes."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        made = Path(self._directory.name) / "streams.so"
        source = Path(__file__).parent / "streams.c"
        command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-shared", "-fPIC", str(source)]
        subprocess.run([*command, "-o", str(made)], check=True)
        self._library = ctypes.CDLL(str(made))
        self._library.read_once.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def reader(self, file: Path, products_: int, threads: int) -> Subject:
        """Reads the mapped weights of a model once, each thread its share."""
        data = np.memmap(file, np.uint64, "r", shape=file.stat().st_size // 8)
        total = data.nbytes // (512 * threads) * (512 * threads)
        start, share = data.ctypes.data, total // threads
        pool = ThreadPoolExecutor(threads)

        def run() -> None:
            assert data is not None  # kept mapped
            if threads == 1:
                self._library.read_once(start, total)
            else:
                list(pool.map(lambda i: self._library.read_once(start + i * share, share), range(threads)))

        return Subject("read", run, products_, data.nbytes // products_)

    def facts(self) -> dict[str, Any]:
        """The most products of bytes a second that one core does, where it has vpdpbusd."""
        rounds = 1_000_000
        if self._library.multiply_in_registers(ctypes.c_size_t(rounds)) == 0:
            return {"vpdpbusd_gmac_per_s": None}
        best = min(self._timed(rounds) for _ in range(7))
        return {"vpdpbusd_gmac_per_s": round(rounds * 12 * 64 / best / 1e9, 1)}

    def _timed(self, rounds: int) -> float:
        began = time.perf_counter()
        self._library.multiply_in_registers(ctypes.c_size_t(rounds))
        return time.perf_counter() - began


def table(rows: list[Row], machine: dict[str, Any]) -> Iterator[str]:
    """For people: a block for each cell, with how many times as long as ours each takes."""
    yield f"{machine['cpu']}, {machine['cores']} cores; vpdpbusd at most {machine['vpdpbusd_gmac_per_s']} GMAC/s a core"
    cells = dict.fromkeys((r.N, r.K, r.M, r.threads, r.cold) for r in rows)
    for n, k, m, threads, cold in cells:
        members = [r for r in rows if (r.N, r.K, r.M, r.threads, r.cold) == (n, k, m, threads, cold)]
        ours = next((r.median_us for r in members if r.impl == "ternary"), members[0].median_us)
        yield f"\n{n}x{k}  M = {m}  {threads} thread{'s' * (threads > 1)}  {'from memory' if cold else 'in cache'}"
        for r in members:
            yield (
                f"  {r.impl:<36} {r.median_us:>10.1f} us (min {r.min_us:>9.1f}) {r.gb_per_s:>7.1f} GB/s "
                f"{r.gmac_per_s:>7.1f} GMAC/s  {r.median_us / ours:>6.2f}  {r.isa}"
            )


if __name__ == "__main__":
    main()
