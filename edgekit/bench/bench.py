"""Benchmarks of bundles on this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgekit.bench.machine import Disturbance, describe, usable_cores
from edgekit.bench.protocol import Progress, Series, Worker, measure
from edgekit.bench.report import BenchResult, Ratio, Row
from edgekit.bench.statistics import percentile, ratio, spread
from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.session import onnxruntime

LOCAL = "local"
ROUNDS = 10
WIDEST_SPREAD = 0.10
MOST_STOLEN = 0.02
FEWEST_SAMPLES = 10
FEWEST_ROUNDS = 5


def bench(
    bundles: Sequence[Bundle | Path | str],
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

    Raises UsageError for a call that cannot be measured, BundleError for a bundle that cannot be opened or run.
    """
    opened = [b if isinstance(b, Bundle) else Bundle.open(b) for b in bundles]
    _check(opened, targets, threads, prompt_tokens, new_tokens, rounds)
    rows: list[Row] = []
    ratios: list[Ratio] = []
    for count in threads:
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker.of_bundle(str(b.directory), count, prompt_tokens, new_tokens))
                for b in opened
            ]
            series, disturbance = measure(workers, rounds, progress)
        for found in series:
            rows += [row(found, phase, count, prompt_tokens, disturbance) for phase in found.rounds]
        ratios += compare(series, count)
    return BenchResult(tuple(rows), tuple(ratios), describe(), prompt_tokens, new_tokens, _versions())


def _check(
    bundles: Sequence[Bundle],
    targets: Sequence[str],
    threads: Sequence[int],
    prompt: int,
    new: int,
    rounds: int,
) -> None:
    if not bundles:
        raise UsageError("bundles: none given")
    if not targets or any(target != LOCAL for target in targets):
        raise UnsupportedError(f"targets {list(targets)}: this edgekit measures on 'local' only")
    most = usable_cores()
    if not threads or min(threads) < 1 or max(threads) > most:
        raise UsageError(f"threads {list(threads)}: give numbers from 1 to {most}, the cores of this machine")
    if prompt < 1 or new < 1 or rounds < 1:
        raise UsageError(f"prompt_tokens {prompt}, new_tokens {new}, rounds {rounds}: each must be at least 1")


def row(series: Series, phase: str, threads: int, prompt_tokens: int, disturbance: Disturbance) -> Row:
    """The statistics of one phase."""
    samples, medians = series.samples(phase), series.medians(phase)
    middle = percentile(samples, 0.5)
    tokens = {"prefill": prompt_tokens, "decode": 1}.get(phase)
    reasons = invalid_reasons(medians, len(samples), threads, disturbance)
    return Row(
        bundle=series.name,
        target=LOCAL,
        phase=phase,
        threads=threads,
        tokens_per_second=None if tokens is None else tokens * 1e3 / middle,
        p50_ms=middle,
        p90_ms=percentile(samples, 0.9),
        p99_ms=percentile(samples, 0.99),
        kernel=series.kernel,
        valid=not reasons,
        invalid_reason="; ".join(reasons),
        samples=len(samples),
        rounds=len(medians),
        spread=spread(medians),
        load_ms=series.load_ms,
        first_run_ms=series.first_run_ms,
        rss_base_mb=series.base_mb,
        rss_peak_mb=series.peak_mb,
        rss_anon_mb=series.private_mb,
        rss_file_mb=series.file_mb,
    )


def invalid_reasons(medians: Sequence[float], samples: int, threads: int, disturbance: Disturbance) -> list[str]:
    """Why these numbers may not be quoted; empty when they may."""
    reasons = []
    if samples < FEWEST_SAMPLES or len(medians) < FEWEST_ROUNDS:
        reasons.append(
            f"{samples} samples in {len(medians)} rounds, at least {FEWEST_SAMPLES} in {FEWEST_ROUNDS} are needed"
        )
    if spread(medians) > WIDEST_SPREAD:
        reasons.append(f"rounds differ by {spread(medians):.0%}, at most {WIDEST_SPREAD:.0%} is steady")
    # A neighbour on a core that nothing needs is harmless; half of what is left over is taken as the limit.
    limit = max(0.25, ((os.cpu_count() or 1) - threads) / 2)
    if disturbance.others > limit:
        reasons.append(f"other processes kept {disturbance.others:.2f} cores busy, at most {limit:.2f} may be")
    if disturbance.stolen > MOST_STOLEN:
        reasons.append(f"the hypervisor took {disturbance.stolen:.0%} of the machine away")
    if disturbance.throttled:
        reasons.append(f"the processor was throttled ({disturbance.throttled} events)")
    return reasons


def compare(series: Sequence[Series], threads: int) -> list[Ratio]:
    """The first series against each other one, phase by phase."""
    found = []
    for other in series[1:]:
        for phase in series[0].rounds:
            if phase in other.rounds:
                times = ratio(other.medians(phase), series[0].medians(phase))
                found.append(Ratio(series[0].name, other.name, phase, threads, times.value, times.low, times.high))
    return found


def _versions() -> dict[str, str]:
    return {"onnxruntime": onnxruntime().__version__, "python": platform.python_version()}
