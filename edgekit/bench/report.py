"""What `bench` found, as frozen dataclasses, JSON and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.bench.machine import Machine

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One phase of one bundle at one number of threads."""

    bundle: str
    target: str
    phase: str  # "prefill", "decode" or "latency"
    threads: int
    tokens_per_second: float | None  # from the median; None for latency
    p50_ms: float  # of one prompt, one token, one run
    p90_ms: float
    p99_ms: float
    kernel: str
    valid: bool
    invalid_reason: str
    samples: int
    rounds: int
    spread: float  # middle half of the rounds' medians, as a share
    load_ms: float
    first_run_ms: float
    rss_base_mb: float  # before loading
    rss_peak_mb: float
    rss_anon_mb: float | None  # after the last round; None where the system does not tell
    rss_file_mb: float | None

    def to_json(self) -> dict[str, Any]:
        """What does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ``bundle`` is as ``than``, with its 95 % interval."""

    bundle: str
    than: str
    phase: str
    threads: int
    times_as_fast: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchResult:
    """The result of `bench`."""

    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    machine: Machine
    prompt_tokens: int
    new_tokens: int
    versions: dict[str, str]

    @property
    def valid(self) -> bool:
        """Every row may be quoted."""
        return all(row.valid for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return {
            "schema_version": SCHEMA_VERSION,
            "valid": self.valid,
            "rows": [row.to_json() for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "machine": {**asdict(self.machine), "features": list(self.machine.features)},
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "versions": self.versions,
        }

    def lines(self) -> Iterator[str]:
        """The result for people: the machine, a table, ratios, and why a row may not be quoted."""
        machine = self.machine
        yield f"{machine.cpu}, {machine.cores} cores ({', '.join(machine.features)}), {machine.system}"
        width = max(len(row.bundle) for row in self.rows)
        yield (
            f"{'bundle':<{width}}  {'phase':<8} {'threads':>7} {'tok/s':>8} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} "
            f"{'load ms':>8} {'peak MB':>8}  kernel"
        )
        for row in self.rows:
            speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
            yield (
                f"{row.bundle:<{width}}  {row.phase:<8} {row.threads:>7} {speed:>8} "
                f"{row.p50_ms:>9.3f} {row.p90_ms:>9.3f} {row.p99_ms:>9.3f} "
                f"{row.load_ms:>8.0f} {row.rss_peak_mb:>8.0f}  {row.kernel}"
            )
            if not row.valid:
                yield f"{'':<{width}}  INVALID: {row.invalid_reason}"
        for ratio in self.ratios:
            threads = f"{ratio.threads} thread{'s' if ratio.threads > 1 else ''}"
            times = f"{ratio.times_as_fast:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) times as fast"
            yield f"{ratio.phase}, {threads}: {ratio.bundle} is {times} as {ratio.than}"
