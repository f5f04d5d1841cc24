"""Benchmarks on devices: the protocol of this machine, spoken to runners over a connection."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from edgekit.benchmark.protocol import Series, measure
from edgekit.benchmark.results import Ratio, Row
from edgekit.benchmark.rows import Where, compare, row
from edgekit.benchmark.watch import DeviceWatch, energy_joules
from edgekit.bundle import Bundle
from edgekit.devices import Connection, Target, open_connection
from edgekit.devices.deploy import Deployed, deploy
from edgekit.devices.job import Job, isa_of
from edgekit.devices.probe import Core, Facts, probe
from edgekit.errors import EdgekitError, UsageError
from edgekit.runtime.kernels import describe, from_nodes
from edgekit.spec.progress import Progress

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
class Measured:
    """What one device gave."""

    facts: Facts
    rows: list[Row]
    ratios: list[Ratio]


def bench_devices(targets: Sequence[Target], plan: Plan, progress: Progress) -> dict[str, Measured | EdgekitError]:
    """Measures all devices at once, each by itself; a device that fails stops no other."""
    lock = threading.Lock()

    def one(target: Target) -> Measured | EdgekitError:
        def say(what: str, share: float) -> None:
            with lock:
                progress(what if target.text in what else f"{what} on {target.text}", share)

        try:
            with open_connection(target) as connection:
                return _bench(connection, plan, say)
        except EdgekitError as error:
            return error

    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        return dict(zip((target.text for target in targets), pool.map(one, targets), strict=True))


class Runner:
    """A bundle's runner on a device, as `measure` asks it."""

    def __init__(self, deployed: Deployed, job: Job) -> None:
        self.name, self._deployed, self._job = str(deployed.bundle.directory), deployed, job

    @property
    def pid(self) -> int:
        return self._job.pid

    def ask(self, what: str) -> dict[str, Any]:
        answer = self._job.ask(what)
        if what != "finish":
            return answer
        nodes = self._job.nodes()
        return {**answer, "kernel": describe(from_nodes(self._deployed.bundle, nodes, isa_of(answer)))}


def fast_cores(cores: Sequence[Core], threads: int) -> list[int]:
    """The cores with the highest clock, and slower kinds until there are as many as threads; none where no clock is told."""
    if any(core.max_mhz is None for core in cores):
        return []
    chosen: list[int] = []
    for speed in sorted({core.max_mhz or 0.0 for core in cores}, reverse=True):
        if len(chosen) < threads:
            chosen += [core.id for core in cores if core.max_mhz == speed]
    return sorted(chosen)


def spelled(cores: Sequence[int]) -> str:
    """[4, 5, 6, 7] as "4-7"."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _bench(connection: Connection, plan: Plan, progress: Progress) -> Measured:
    facts = probe(connection)
    most = len(facts.cores) or 1
    if max(plan.threads) > most:
        raise UsageError(f"{connection.name}: {max(plan.threads)} threads asked for, the device has {most} cores")
    for bundle in plan.bundles:
        _check_context(bundle, plan)
    deployed = [deploy(connection, bundle, progress) for bundle in plan.bundles]
    pinning = connection.run("command -v taskset").code == 0
    rows: list[Row] = []
    ratios: list[Ratio] = []
    for threads in plan.threads:
        cores = fast_cores(facts.cores, threads) if pinning else []
        for _ in range(1 if facts.emulated else ATTEMPTS):
            series, found = _measured(connection, plan, deployed, threads, cores, facts, progress)
            if all(one.valid for one in found):
                break
        rows += found
        ratios += compare(series, threads, connection.name)
    return Measured(facts, rows, ratios)


def _check_context(bundle: Bundle, plan: Plan) -> None:
    info = bundle.manifest.decoder
    if info is not None and plan.prompt_tokens + plan.new_tokens > info.max_length:
        raise UsageError(
            f"{bundle.directory}: {plan.prompt_tokens} + {plan.new_tokens} tokens; the context holds {info.max_length}"
        )


def _measured(
    connection: Connection,
    plan: Plan,
    deployed: Sequence[Deployed],
    threads: int,
    cores: Sequence[int],
    facts: Facts,
    progress: Progress,
) -> tuple[list[Series], list[Row]]:
    watches: list[DeviceWatch] = []

    def watch_over(pids: Sequence[int]) -> DeviceWatch:
        watches.append(DeviceWatch(connection, pids, len(facts.cores) or 1))
        return watches[0]

    tokens = {"prompt_tokens": plan.prompt_tokens, "new_tokens": plan.new_tokens}
    with ExitStack() as stack:
        runners = [Runner(one, stack.enter_context(one.job(threads, cores, **tokens))) for one in deployed]
        series, disturbance = measure(runners, plan.rounds, progress, watch_over)
    where = _where(connection.name, facts, spelled(cores), watches[0])
    rows = [
        row(found, phase, threads, plan.prompt_tokens, disturbance, where) for found in series for phase in found.rounds
    ]
    return series, rows


def _where(name: str, facts: Facts, cores: str, watch: DeviceWatch) -> Where:
    before, after = watch.before, watch.after
    reasons = [f"an emulated device ({facts.emulated})"] if facts.emulated else []
    if before.governor != after.governor:
        reasons.append(f"the governor changed from {before.governor or 'none'} to {after.governor or 'none'}")
    charge = None
    if before.charge_uah is not None and after.charge_uah is not None:
        charge = (before.charge_uah - after.charge_uah) / 1000
    return Where(
        name, len(facts.cores) or 1, cores, before.temperature, after.temperature, tuple(reasons), after.governor,
        before.battery, after.battery, charge, energy_joules(before, after),
    )  # fmt: skip
