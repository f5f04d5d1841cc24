"""What `bench` found, as frozen dataclasses, JSON and lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.benchmark.machine import Machine
from edgekit.devices import LOCAL
from edgekit.devices.probe import Facts

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Conditions:
    """Of a device while it measured; empty on this machine."""

    cores: str = ""  # those that its runner was kept on
    temperature_before: float | None = None  # degrees Celsius, hottest zone of a device
    temperature_after: float | None = None
    governor: str = ""
    # Of the whole measurement that the row is part of, all bundles and phases; where the device counts them.
    battery_before: int | None = None  # percent
    battery_after: int | None = None
    charge_used_mah: float | None = None  # milliampere hours, negative while it is charged
    energy_j: float | None = None  # joules

    def __str__(self) -> str:
        facts = [f"cores {self.cores}"] if self.cores else []
        if self.temperature_before is not None and self.temperature_after is not None:
            facts.append(f"{self.temperature_before:.0f} to {self.temperature_after:.0f} °C")
        if self.governor:
            facts.append(self.governor)
        if self.battery_before is not None and self.battery_after is not None:
            facts.append(f"battery {self.battery_before} to {self.battery_after} %")
        if self.charge_used_mah is not None:
            facts.append(f"{self.charge_used_mah:.1f} mAh")
        if self.energy_j is not None:
            facts.append(f"{self.energy_j:.1f} J")
        return f"  [{', '.join(facts)}]" if facts else ""


NONE = Conditions()


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
    conditions: Conditions = NONE

    def to_json(self) -> dict[str, Any]:
        """What does not apply is left out; the conditions stand beside the rest."""
        own = asdict(self)
        conditions = {key: value for key, value in own.pop("conditions").items() if value != ""}
        return {key: value for key, value in {**own, **conditions}.items() if value is not None}


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
            times = f"{ratio.times_as_fast:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) times as fast"
            yield f"{_place(ratio)}: {ratio.bundle} is {times} as {ratio.than}"
        yield from self._not_compared()

    def _not_compared(self) -> Iterator[str]:
        """Why there is no ratio where one might be looked for."""
        groups: dict[tuple[str, int, str], list[BenchRow]] = {}
        for row in self.rows:
            groups.setdefault((row.target, row.threads, row.phase), []).append(row)
        for first, *others in groups.values():
            for other in others:
                if not (first.valid and other.valid):
                    yield f"{_place(first)}: {first.bundle} and {other.bundle} are not compared, a row is INVALID"

    def _table(self) -> Iterator[str]:
        several = {row.target for row in self.rows} != {LOCAL}
        place = max(len(row.target) for row in self.rows) if several else 0
        width = max(len(row.bundle) for row in self.rows)
        yield (
            f"{'target' if several else '':<{place}}{'  ' if several else ''}{'bundle':<{width}}  {'phase':<8} "
            f"{'threads':>7} {'tok/s':>8} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'load ms':>8} {'peak MB':>8}  kernel"
        )
        for row in self.rows:
            speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
            yield (
                f"{row.target if several else '':<{place}}{'  ' if several else ''}"
                f"{row.bundle:<{width}}  {row.phase:<8} {row.threads:>7} {speed:>8} "
                f"{row.p50_ms:>9.3f} {row.p90_ms:>9.3f} {row.p99_ms:>9.3f} "
                f"{row.load_ms:>8.0f} {row.rss_peak_mb:>8.0f}  {row.kernel}{row.conditions}"
            )
            if not row.valid:
                yield f"{'':<{width}}  INVALID: {row.invalid_reason}"


def _place(of: BenchRow | Ratio) -> str:
    """What was measured, and where."""
    where = "" if of.target == LOCAL else f" on {of.target}"
    return f"{of.phase}, {of.threads} thread{'s' if of.threads > 1 else ''}{where}"
