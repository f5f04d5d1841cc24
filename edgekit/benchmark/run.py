"""Benchmarks of bundles on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import ExitStack

from edgekit.benchmark.device import Measured, Plan, bench_devices
from edgekit.benchmark.machine import describe, usable_cores
from edgekit.benchmark.protocol import Worker, measure
from edgekit.benchmark.results import BenchResult, Ratio, Row
from edgekit.benchmark.rows import compare, row
from edgekit.bundle import Bundle, BundleLike
from edgekit.devices import LOCAL, Target
from edgekit.errors import EdgekitError, UsageError
from edgekit.runtime.session import onnxruntime
from edgekit.spec.progress import Progress

ROUNDS = 10
MOST_THREADS = 1024


def bench(
    bundles: BundleLike | Sequence[BundleLike],
    *,
    targets: Sequence[str] = (LOCAL,),
    threads: Sequence[int] = (1,),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = ROUNDS,
    progress: Progress = lambda what, share: None,
) -> BenchResult:
    """Measures bundles side by side: prefill and decode of language models, latency of all others.

    Each bundle runs in a process of its own; after warm-up, rounds take turns between them. Rows say which kernels ran
    and whether the machine was quiet enough for the numbers to mean anything; with several bundles, ratios compare the
    first with each other one. See docs/benchmarking.md for the rules.

    Devices among ``targets`` measure side by side after this machine, their runners kept on their fastest cores; what is
    INVALID there is measured once more. An emulated device's rows are always INVALID.

    Raises UsageError for a call that cannot be measured, BundleError for a bundle that cannot be opened or run.
    """
    opened = [Bundle.open(b) for b in ([bundles] if isinstance(bundles, BundleLike) else bundles)]
    parsed = [Target.parse(target) for target in targets]
    _check(opened, parsed, threads, prompt_tokens, new_tokens, rounds)
    plan = Plan(tuple(opened), tuple(threads), prompt_tokens, new_tokens, rounds)
    rows: list[Row] = []
    ratios: list[Ratio] = []
    if any(target.kind == LOCAL for target in parsed):
        rows, ratios = _here(plan, progress)
    found = bench_devices([target for target in parsed if target.kind != LOCAL], plan, progress)
    for device in found.values():
        if isinstance(device, Measured):
            rows += device.rows
            ratios += device.ratios
    return BenchResult(
        tuple(rows), tuple(ratios), describe(), prompt_tokens, new_tokens, _versions(),
        devices=tuple(d.facts for d in found.values() if isinstance(d, Measured)),
        failures={target: str(error) for target, error in found.items() if isinstance(error, EdgekitError)},
    )  # fmt: skip


def _here(plan: Plan, progress: Progress) -> tuple[list[Row], list[Ratio]]:
    rows: list[Row] = []
    ratios: list[Ratio] = []
    for count in plan.threads:
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker.of_bundle(str(b.directory), count, plan.prompt_tokens, plan.new_tokens))
                for b in plan.bundles
            ]
            series, disturbance = measure(workers, plan.rounds, progress)
        for found in series:
            rows += [row(found, phase, count, plan.prompt_tokens, disturbance) for phase in found.rounds]
        ratios += compare(series, count)
    return rows, ratios


def _check(
    bundles: Sequence[Bundle],
    targets: Sequence[Target],
    threads: Sequence[int],
    prompt: int,
    new: int,
    rounds: int,
) -> None:
    if not bundles:
        raise UsageError("bundles: none given")
    if not targets:
        raise UsageError("targets: none given")
    most = usable_cores() if any(target.kind == LOCAL for target in targets) else MOST_THREADS
    if not threads or min(threads) < 1 or max(threads) > most:
        raise UsageError(f"threads {list(threads)}: give numbers from 1 to {most}, the cores of this machine")
    if prompt < 1 or new < 1 or rounds < 1:
        raise UsageError(f"prompt_tokens {prompt}, new_tokens {new}, rounds {rounds}: each must be at least 1")


def _versions() -> dict[str, str]:
    return {"onnxruntime": onnxruntime().__version__, "python": platform.python_version()}
