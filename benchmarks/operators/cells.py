"""The worker of ``ops.py``: measures one shape at one thread count in a process of its own, one JSON row a line.

It is called with one argument, the fields of ``Settings`` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks.operators.limits import Limits
from benchmarks.operators.models import Product, product, write_products
from benchmarks.operators.sessions import bound_run, open_session
from edgekit.benchmark.machine import Watch
from edgekit.lowbit.formats import PackedTensor, sparse_rows, unpack_sparse
from edgekit.lowbit.library import load_library
from edgekit.lowbit.reference import block_matmul, int8_matmul, sparse_matmul, ternary_matmul
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import INT4_MATMUL, INT8_BLOCK_MATMUL, INT8_MATMUL, SPARSE_MATMUL, TERNARY_MATMUL

COLD_BYTES = 200 << 20
HOT_PRODUCTS = 20  # in one run, of M <= 16
FEW_ROWS = 16
READ = "read"
MOST_OTHERS = 0.25  # cores, as in `edgekit bench`


@dataclass(frozen=True)
class Settings:
    """What to measure; ``scratch`` keeps models from one worker to the next."""

    n: int
    k: int
    threads: int
    rows: list[int]  # values of M
    impls: list[str]
    rounds: int
    sample_seconds: float
    scratch: str
    clock: str = "wall"  # or "cpu": seconds of the one thread, where other processes want the cores too


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
    spread_us: float = 0.0  # half the distance of the quartiles over rounds


@dataclass(frozen=True)
class Subject:
    """Something to time: ``run(times)`` does ``times * products`` products of ``nbytes`` of weights each."""

    impl: str
    run: Callable[[int], None]
    products: int
    nbytes: int
    isa: str = ""


def main() -> None:
    """Measures and prints."""
    settings = Settings(**json.loads(sys.argv[1]))
    products = {name: product(name, settings.n, settings.k) for name in settings.impls if name != READ}
    for m, cold in [*((m, False) for m in settings.rows), *([(1, True)] if 1 in settings.rows else [])]:
        where = f"{settings.n}x{settings.k}, M = {m}, threads = {settings.threads}{', cold' if cold else ''}"
        print(where, file=sys.stderr, flush=True)
        watch = Watch([])
        for row in cell(settings, products, m, cold):
            print(json.dumps(asdict(row)), flush=True)
        others = watch.disturbance().others
        if others > MOST_OTHERS:
            print(f"  other processes kept {others:.2f} cores busy: not quiet enough", file=sys.stderr, flush=True)


def cell(settings: Settings, products: dict[str, Product], m: int, cold: bool) -> list[Row]:
    """A row for each implementation."""
    x = np.random.default_rng(1).standard_normal((m, settings.k)).astype(np.float32)
    subjects = [_subject(settings, name, one, x, cold) for name, one in products.items()]
    if m == 1 and READ in settings.impls:
        subjects.append(_reader(settings, products, cold))
    times = _turns(subjects, settings)
    return [_row(settings, subject, times[subject.impl], m, cold) for subject in subjects]


def _row(settings: Settings, subject: Subject, times: list[float], m: int, cold: bool) -> Row:
    middle = median(times)
    macs = 0 if subject.impl == READ else m * settings.n * settings.k
    return Row(
        subject.impl, m, settings.n, settings.k, settings.threads, cold, subject.isa,
        round(middle * 1e6, 2), round(min(times) * 1e6, 2),
        round(subject.nbytes / middle / 1e9, 4), round(macs / middle / 1e9, 2), round(_spread_of(times) * 1e6, 2),
    )  # fmt: skip


def _spread_of(times: list[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return (high - low) / 2


def _turns(subjects: list[Subject], settings: Settings) -> dict[str, list[float]]:
    """Seconds of one product in each round, A B C and then C B A."""
    times: dict[str, list[float]] = {subject.impl: [] for subject in subjects}
    clock = {"wall": time.perf_counter, "cpu": time.thread_time}[settings.clock]
    repeats = {subject.impl: _repeats(subject, settings.sample_seconds) for subject in subjects}
    for turn in range(settings.rounds):
        for subject in subjects if turn % 2 == 0 else reversed(subjects):
            count = repeats[subject.impl]
            times[subject.impl].append(_seconds(subject, count, clock) / count / subject.products)
    return times


def _repeats(subject: Subject, seconds: float) -> int:
    """Runs that take so long together, also when nothing interrupts them; finding out warms caches and maps pages."""
    count = 1
    while min(_seconds(subject, count) for _ in range(2)) < seconds:
        count *= 2
    return count


def _seconds(subject: Subject, times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    subject.run(times)
    return clock() - began


def _subject(settings: Settings, name: str, one: Product, x: np.ndarray, cold: bool) -> Subject:
    path, count = _model(settings, name, one, len(x), cold)
    native = one.weight is not None
    session = open_session(path, settings.threads, native)
    once = bound_run(session, x, settings.n)
    library = load_library() if native else None
    if library is not None:
        _check(name, one, x, session, cold)

    def run(times: int) -> None:
        for _ in range(times):
            once()

    return Subject(name, run, count, one.nbytes, library.isa if library is not None else "")


def _model(settings: Settings, name: str, one: Product, m: int, cold: bool) -> tuple[Path, int]:
    """The file of ``name``, made when missing, and how many products it holds."""
    hot = HOT_PRODUCTS if m <= FEW_ROWS else 1
    count = -(-COLD_BYTES // one.nbytes) if cold else hot
    path = Path(settings.scratch) / f"{name}-{count}{'-cold' if cold else ''}.onnx"
    if not path.exists():
        write_products(one, settings.n, settings.k, count, cold, path)
    return path, count


def _reader(settings: Settings, products: dict[str, Product], cold: bool) -> Subject:
    one = products.get("ternary") or product("ternary", settings.n, settings.k)
    # Hot: a file of one product, which 20 of them share.
    path, count = _model(settings, "ternary", one, 1, cold)
    read = Limits(Path(settings.scratch)).reader(path.with_suffix(".data"), settings.threads)
    return Subject(READ, read, count if cold else 1, one.nbytes)


def _check(name: str, one: Product, x: np.ndarray, session: Any, cold: bool) -> None:
    """A wrong kernel is never timed: all columns of the first row of X, and all rows of X for some columns of Y.

    Other products have the same weights, rotated where they are cold.
    """
    assert one.weight is not None
    multiply = {
        TERNARY_MATMUL: ternary_matmul, SPARSE_MATMUL: sparse_matmul,
        INT8_MATMUL: int8_matmul, INT4_MATMUL: block_matmul, INT8_BLOCK_MATMUL: block_matmul,
    }[FORMATS[one.weight.format].operator]  # fmt: skip
    outputs = session.run(None, {value.name: x for value in session.get_inputs()})
    columns = _spread(one.weight.shape[0])
    some = _rows(one.weight, columns)
    block = one.activation_block
    _same(name, "row 0", multiply(x[:1], one.weight, None, block), outputs[0][:1])
    _same(name, "some columns", multiply(x, some, None, block), outputs[0][:, columns])
    for turn, output in enumerate(outputs):
        _same(name, f"product {turn}", np.roll(outputs[0], turn if cold and one.rotates else 0, axis=1), output)


def _spread(n: int) -> np.ndarray:
    """Columns of Y: both ends, where tiles are cut off, and every 97th."""
    return np.unique(np.r_[: min(32, n), max(0, n - 32) : n, 0:n:97])


def _rows(weight: PackedTensor, rows: np.ndarray) -> PackedTensor:
    assert weight.scales is not None
    scales = weight.scales if weight.scales.size == 1 else weight.scales[rows]
    if FORMATS[weight.format].layout == "sparse":
        data = sparse_rows.pack([unpack_sparse(weight)[rows]], len(rows), FORMATS[weight.format].bits)
        return replace(weight, shape=(len(rows), weight.shape[1]), data=data, scales=scales)
    return replace(weight, shape=(len(rows), weight.shape[1]), data=weight.data[rows], scales=scales)


def _same(name: str, what: str, expected: np.ndarray, found: np.ndarray) -> None:
    if not np.array_equal(expected, found):
        wrong = int((expected != found).sum())
        largest = float(np.abs(expected - found).max())
        raise SystemExit(
            f"{name}, M = {len(expected)}, {what}: {wrong} of {found.size} numbers differ from the reference, by up to "
            f"{largest:.3g}; expected the same bits (docs/operators.md), so nothing is timed"
        )


if __name__ == "__main__":
    main()
