"""Benchmarks of bundles on this machine and on devices."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from edgekit.benchmark.machine import describe, usable_cores
from edgekit.benchmark.results import BenchResult
from edgekit.benchmark.targets import DeviceHost, LocalHost, Plan, TargetResult, measure_on
from edgekit.bundle import Bundle, BundleLike
from edgekit.devices import LOCAL, Target, open_connection
from edgekit.devices.backend import on_each
from edgekit.errors import EdgekitError, UsageError
from edgekit.spec.names import BENCH_NEW, BENCH_PROMPT, ROUNDS
from edgekit.spec.progress import Progress

MOST_THREADS = 1024


def bench(
    bundles: BundleLike | Sequence[BundleLike],
    *,
    targets: Sequence[str] = (LOCAL,),
    threads: Sequence[int] = (1,),
    prompt_tokens: int = BENCH_PROMPT,
    new_tokens: int = BENCH_NEW,
    rounds: int = ROUNDS,
    progress: Progress = lambda what, share: None,
) -> BenchResult:
    """Measures bundles side by side: prefill and decode of language models, latency of all others.

    Each bundle runs in a process of its own; after warm-up, rounds take turns between them. Rows say which kernels ran
    and whether the machine was quiet enough for the numbers to mean anything; with several bundles, ratios compare the
    first with each other one. See docs/benchmarking.md for the rules.

    Devices among ``targets`` measure side by side after this machine, their runners kept on their fastest cores; what
    is INVALID there is measured once more. An emulated device's rows are always INVALID.

    Raises UsageError for a call that cannot be measured, BundleError for a bundle that cannot be opened or run.
    """
    opened = [Bundle.open(b) for b in ([bundles] if isinstance(bundles, BundleLike) else bundles)]
    parsed = [Target.parse(target) for target in targets]
    _check(opened, parsed, threads, prompt_tokens, new_tokens, rounds)
    plan = Plan(tuple(opened), tuple(threads), prompt_tokens, new_tokens, rounds)

    def on_device(target: Target, say: Progress) -> TargetResult:
        with open_connection(target) as connection:
            return measure_on(DeviceHost(connection, plan, say), plan, say)

    local = [measure_on(LocalHost(plan), plan, progress)] if any(target.kind == LOCAL for target in parsed) else []
    results = on_each([target for target in parsed if target.kind != LOCAL], on_device, progress)
    measured = [*local, *(result for result in results.values() if isinstance(result, TargetResult))]
    return BenchResult(
        rows=tuple(row for result in measured for row in result.rows),
        ratios=tuple(ratio for result in measured for ratio in result.ratios),
        machine=describe(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        versions={"python": platform.python_version(), **({"onnxruntime": local[0].onnxruntime} if local else {})},
        devices=tuple(result.facts for result in measured if result.facts is not None),
        failures={target: str(error) for target, error in results.items() if isinstance(error, EdgekitError)},
    )


def _check(
    bundles: Sequence[Bundle], targets: Sequence[Target], threads: Sequence[int], prompt: int, new: int, rounds: int
) -> None:
    if not bundles:
        raise UsageError("bundles: none given")
    if not targets:
        raise UsageError("targets: none given")
    most = usable_cores() if any(target.kind == LOCAL for target in targets) else MOST_THREADS
    if not threads or min(threads) < 1 or max(threads) > most:
        raise UsageError(f"threads {list(threads)}: give numbers from 1 to {most}, the cores of this machine")
    if prompt < 1 or new < 1:
        raise UsageError(f"prompt_tokens {prompt}, new_tokens {new}: each must be at least 1")
    if rounds < ROUNDS:
        raise UsageError(f"rounds {rounds}: fewer than {ROUNDS} are too few to be quoted; give {ROUNDS} or more")
    for bundle in bundles:
        info = bundle.manifest.decoder
        if info is not None and prompt + new > info.max_length:
            raise UsageError(f"{bundle.directory}: {prompt} + {new} tokens; the context holds {info.max_length}")
