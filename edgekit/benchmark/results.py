"""What `bench` found, as frozen dataclasses, JSON and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.benchmark.machine import Machine
from edgekit.devices import LOCAL
from edgekit.devices.probe import Facts

SCHEMA_VERSION = 1


TEXTS = ("cores", "governor")
"""What a row on this machine leaves empty."""


@dataclass(frozen=True)
class BenchRow:
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
    cores: str = ""  # those that it was kept on, on a device
    temperature_before: float | None = None  # degrees Celsius, hottest zone of a device
    temperature_after: float | None = None
    governor: str = ""
    # Of the whole measurement that the row is part of, all bundles and phases; where the device counts them.
    battery_before: int | None = None  # percent
    battery_after: int | None = None
    charge_used_mah: float | None = None  # milliampere hours, negative while it is charged
    energy_j: float | None = None  # joules

    def to_json(self) -> dict[str, Any]:
        """What does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None and (key not in TEXTS or value)}


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
    target: str = LOCAL


@dataclass(frozen=True)
class BenchResult:
    """The result of `bench`."""

    rows: tuple[BenchRow, ...]
    ratios: tuple[Ratio, ...]
    machine: Machine
    prompt_tokens: int
    new_tokens: int
    versions: dict[str, str]
    devices: tuple[Facts, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)  # devices that gave no answer, and why

    @property
    def valid(self) -> bool:
        """Every row may be quoted, and every device answered."""
        return not self.failures and all(row.valid for row in self.rows)

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
            "devices": [facts.to_json() for facts in self.devices],
            "failures": self.failures,
        }

    def lines(self) -> Iterator[str]:
        """The result for people: the machine, a table, ratios, and why a row may not be quoted."""
        machine = self.machine
        if any(row.target == LOCAL for row in self.rows):
            yield f"{machine.cpu}, {machine.cores} cores ({', '.join(machine.features)}), {machine.system}"
        for facts in self.devices:
            yield from facts.lines()
        for target, reason in self.failures.items():
            yield f"{target}: no answer: {reason}"
        if self.rows:
            yield from self._table()
        for ratio in self.ratios:
            threads = f"{ratio.threads} thread{'s' if ratio.threads > 1 else ''}"
            times = f"{ratio.times_as_fast:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) times as fast"
            where = "" if ratio.target == LOCAL else f" on {ratio.target}"
            yield f"{ratio.phase}, {threads}{where}: {ratio.bundle} is {times} as {ratio.than}"
        yield from self._not_compared()

    def _not_compared(self) -> Iterator[str]:
        """Why there is no ratio where one might be looked for."""
        groups: dict[tuple[str, int, str], list[BenchRow]] = {}
        for row in self.rows:
            groups.setdefault((row.target, row.threads, row.phase), []).append(row)
        for (target, threads, phase), (first, *others) in groups.items():
            for other in others:
                if not (first.valid and other.valid):
                    where = "" if target == LOCAL else f" on {target}"
                    yield f"{phase}, {threads} thread{'s' if threads > 1 else ''}{where}: {first.bundle} and {other.bundle} are not compared, a row is INVALID"

    def _table(self) -> Iterator[str]:
        several = {row.target for row in self.rows} != {LOCAL}
        place = max(len(row.target) for row in self.rows) if several else 0
        width = max(len(row.bundle) for row in self.rows)
        yield (
            f"{'target' if several else '':<{place}}{'  ' if several else ''}{'bundle':<{width}}  {'phase':<8} {'threads':>7} {'tok/s':>8} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} "
            f"{'load ms':>8} {'peak MB':>8}  kernel"
        )
        for row in self.rows:
            speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
            yield (
                f"{row.target if several else '':<{place}}{'  ' if several else ''}"
                f"{row.bundle:<{width}}  {row.phase:<8} {row.threads:>7} {speed:>8} "
                f"{row.p50_ms:>9.3f} {row.p90_ms:>9.3f} {row.p99_ms:>9.3f} "
                f"{row.load_ms:>8.0f} {row.rss_peak_mb:>8.0f}  {row.kernel}{_conditions(row)}"
            )
            if not row.valid:
                yield f"{'':<{width}}  INVALID: {row.invalid_reason}"


def _conditions(row: BenchRow) -> str:
    """Where and how warm, of a device."""
    facts = [f"cores {row.cores}"] if row.cores else []
    if row.temperature_before is not None and row.temperature_after is not None:
        facts.append(f"{row.temperature_before:.0f} to {row.temperature_after:.0f} °C")
    if row.governor:
        facts.append(row.governor)
    if row.battery_before is not None and row.battery_after is not None:
        facts.append(f"battery {row.battery_before} to {row.battery_after} %")
    if row.charge_used_mah is not None:
        facts.append(f"{row.charge_used_mah:.1f} mAh")
    if row.energy_j is not None:
        facts.append(f"{row.energy_j:.1f} J")
    return f"  [{', '.join(facts)}]" if facts else ""
