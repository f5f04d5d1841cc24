"""What is measured on one target, this machine or a device, and what is the target's own about it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from edgekit.benchmark.machine import Watch
from edgekit.benchmark.protocol import BundleProcess, Series, measure
from edgekit.benchmark.results import BenchRow, Conditions, Ratio
from edgekit.benchmark.rows import HERE, Where, compare, row
from edgekit.benchmark.watch import DeviceWatch, energy_joules
from edgekit.bundle import Bundle
from edgekit.devices import LOCAL, Connection
from edgekit.devices.backend import Backend
from edgekit.devices.deploy import deploy
from edgekit.devices.local import open_local
from edgekit.devices.probe import Core, Facts, probe
from edgekit.errors import UsageError
from edgekit.spec.progress import Progress
from edgekit.strict import ranges

ATTEMPTS = 2
"""How often a device is measured that did not keep quiet."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    bundles: tuple[Bundle, ...]
    threads: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int


@dataclass(frozen=True)
class TargetResult:
    """What one target gave; ``facts`` of a device."""

    rows: list[BenchRow]
    ratios: list[Ratio]
    onnxruntime: str
    facts: Facts | None


class LocalHost:
    """This machine."""

    name, attempts, facts = LOCAL, 1, None

    def __init__(self, plan: Plan) -> None:
        """Raises RuntimeUnavailable when the operator library is needed and cannot be used."""
        self._backends = [open_local(bundle) for bundle in plan.bundles]

    def backends(self, threads: int) -> Sequence[Backend]:
        """The plan's bundles there, for so many threads."""
        return self._backends

    def watch(self, pids: Sequence[int]) -> Watch:
        """Begins to watch what the machine does besides the runners ``pids``."""
        return Watch(pids)

    def where(self, threads: int) -> Where:
        """What rows say about the machine, after a measurement."""
        return HERE


class DeviceHost:
    """A device; runners are kept on its fastest cores."""

    def __init__(self, connection: Connection, plan: Plan, progress: Progress) -> None:
        """Pushes the bundles. Raises UsageError for more threads than cores, and as :func:`deploy`."""
        self.facts = probe(connection)
        self._cores = len(self.facts.cores) or 1
        if max(plan.threads) > self._cores:
            asked = f"{max(plan.threads)} threads asked for"
            raise UsageError(f"{connection.name}: {asked}, the device has {self._cores} cores")
        self.name, self._connection = connection.name, connection
        self.attempts = 1 if self.facts.emulated else ATTEMPTS
        self._deployed = [deploy(connection, bundle, progress) for bundle in plan.bundles]
        self._pins = connection.run("command -v taskset").code == 0

    def backends(self, threads: int) -> Sequence[Backend]:
        """See :class:`LocalHost`."""
        return [replace(deployed, cores=tuple(self._fast(threads))) for deployed in self._deployed]

    def watch(self, pids: Sequence[int]) -> DeviceWatch:
        """See :class:`LocalHost`."""
        self._watch = DeviceWatch(self._connection, pids, self._cores)
        return self._watch

    def where(self, threads: int) -> Where:
        """See :class:`LocalHost`."""
        return where(self.name, self.facts, ranges(self._fast(threads)), self._watch)

    def _fast(self, threads: int) -> list[int]:
        return fast_cores(self.facts.cores, threads) if self._pins else []


def measure_on(host: LocalHost | DeviceHost, plan: Plan, progress: Progress) -> TargetResult:
    """Measures a plan's bundles side by side; rows that are INVALID are compared with nothing."""
    result = TargetResult([], [], "", host.facts)
    for threads in plan.threads:
        for _ in range(host.attempts):
            series, rows, version = _measured(host, threads, plan, progress)
            if all(one.valid for one in rows):
                break
        valid = {(one.bundle, one.phase) for one in rows if one.valid}
        ratios = [r for r in compare(series, threads, host.name) if {(r.bundle, r.phase), (r.than, r.phase)} <= valid]
        result = TargetResult([*result.rows, *rows], [*result.ratios, *ratios], version, host.facts)
    return result


def _measured(
    host: LocalHost | DeviceHost, threads: int, plan: Plan, progress: Progress
) -> tuple[list[Series], list[BenchRow], str]:
    """What the runners answered, rows made of it, and the version of ONNX Runtime."""
    tokens = {"prompt_tokens": plan.prompt_tokens, "new_tokens": plan.new_tokens}
    with ExitStack() as stack:
        processes = [
            BundleProcess(str(bundle.directory), bundle, stack.enter_context(backend.job(threads, **tokens)))
            for bundle, backend in zip(plan.bundles, host.backends(threads), strict=True)
        ]
        series, disturbance = measure(processes, plan.rounds, progress, host.watch)
    place = host.where(threads)
    rows = [row(one, phase, threads, plan.prompt_tokens, disturbance, place) for one in series for phase in one.rounds]
    return series, rows, str(processes[0].job.facts.get("onnxruntime"))


def fast_cores(cores: Sequence[Core], threads: int) -> list[int]:
    """The cores with the highest clock, and slower kinds until all threads have one; none where no clock is told."""
    if any(core.max_mhz is None for core in cores):
        return []
    chosen: list[int] = []
    for speed in sorted({core.max_mhz or 0.0 for core in cores}, reverse=True):
        if len(chosen) < threads:
            chosen += [core.id for core in cores if core.max_mhz == speed]
    return sorted(chosen)


def where(name: str, facts: Facts, cores: str, watch: DeviceWatch) -> Where:
    """What rows say about a device."""
    before, after = watch.before, watch.after
    reasons = [f"an emulated device ({facts.emulated})"] if facts.emulated else []
    if before.governor != after.governor:
        reasons.append(f"the governor changed from {before.governor or 'none'} to {after.governor or 'none'}")
    charge = None
    if before.charge_uah is not None and after.charge_uah is not None:
        charge = (before.charge_uah - after.charge_uah) / 1000
    conditions = Conditions(
        cores, before.temperature, after.temperature, after.governor, before.battery, after.battery, charge,
        energy_joules(before, after),
    )  # fmt: skip
    return Where(name, len(facts.cores) or 1, tuple(reasons), conditions)
