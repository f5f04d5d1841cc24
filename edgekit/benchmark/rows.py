"""From the times of rounds to rows that say whether they may be quoted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.benchmark.machine import Disturbance
from edgekit.benchmark.protocol import Series
from edgekit.benchmark.results import NONE, BenchRow, Conditions, Ratio
from edgekit.benchmark.statistics import percentile, ratio, spread
from edgekit.devices import LOCAL
from edgekit.spec.names import ROUNDS

WIDEST_SPREAD = 0.10
MOST_STOLEN = 0.02
FEWEST_SAMPLES = 10


@dataclass(frozen=True)
class Where:
    """The machine that a row comes from."""

    target: str
    cores: int  # that it has
    reasons: tuple[str, ...] = ()  # why nothing measured there may be quoted
    conditions: Conditions = NONE


HERE = Where(LOCAL, os.cpu_count() or 1)


def row(
    series: Series, phase: str, threads: int, prompt_tokens: int, disturbance: Disturbance, where: Where = HERE
) -> BenchRow:
    """The statistics of one phase."""
    samples, medians = series.samples(phase), series.medians(phase)
    middle = percentile(samples, 0.5)
    tokens = {"prefill": prompt_tokens, "decode": 1}.get(phase)
    reasons = [*where.reasons, *invalid_reasons(medians, len(samples), threads, disturbance, where.cores)]
    return BenchRow(
        bundle=series.name,
        target=where.target,
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
        conditions=where.conditions,
    )


def invalid_reasons(
    medians: Sequence[float], samples: int, threads: int, disturbance: Disturbance, cores: int | None = None
) -> list[str]:
    """Why these numbers may not be quoted; empty when they may."""
    reasons = []
    if samples < FEWEST_SAMPLES or len(medians) < ROUNDS:
        reasons.append(f"{samples} samples in {len(medians)} rounds, at least {FEWEST_SAMPLES} in {ROUNDS} are needed")
    if spread(medians) > WIDEST_SPREAD:
        reasons.append(f"rounds differ by {spread(medians):.0%}, at most {WIDEST_SPREAD:.0%} is steady")
    # A neighbour on a core that nothing needs is harmless; half of what is left over is taken as the limit.
    limit = max(0.25, ((cores or os.cpu_count() or 1) - threads) / 2)
    if disturbance.others > limit:
        reasons.append(f"other processes kept {disturbance.others:.2f} cores busy, at most {limit:.2f} may be")
    if disturbance.stolen > MOST_STOLEN:
        reasons.append(f"the hypervisor took {disturbance.stolen:.0%} of the machine away")
    if disturbance.throttled:
        reasons.append(f"the processor was throttled ({disturbance.throttled} events)")
    return reasons


def compare(series: Sequence[Series], threads: int, target: str = LOCAL) -> list[Ratio]:
    """The first series against each other one, phase by phase."""
    ratios = []
    for first, other in ((series[0], other) for other in series[1:]):
        for phase in (phase for phase in first.rounds if phase in other.rounds):
            times = ratio(other.medians(phase), first.medians(phase))
            ratios.append(Ratio(first.name, other.name, phase, threads, times.value, times.low, times.high, target))
    return ratios
