"""Benchmarks on devices: the protocol of this machine, spoken to runners over a connection."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from edgekit.bench.machine import Disturbance
from edgekit.bench.protocol import Progress, Series, measure
from edgekit.bench.report import Ratio, Row
from edgekit.bench.rows import Where, compare, row
from edgekit.bundle import Bundle
from edgekit.devices import Connection, Target, open_connection
from edgekit.devices.deploy import Deployed, deploy
from edgekit.devices.job import Job, isa_of
from edgekit.devices.probe import Core, Facts, probe
from edgekit.errors import EdgekitError, UsageError
from edgekit.runtime.kernels import describe, from_nodes

ATTEMPTS = 2
"""How often a device is measured that did not keep quiet."""
WATCH = r"""
echo "@@ $(getconf CLK_TCK 2>/dev/null || echo 100)"
head -n 1 /proc/stat
for p in {pids}; do cat /proc/$p/stat; done
echo @@
cat /sys/class/thermal/thermal_zone*/temp
echo @@
cat /sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count
cat /sys/devices/platform/soc*/*firmware/get_throttled
true
"""


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


class DeviceWatch:
    """Counts what a device did besides the runners, and how warm it was when this began and at the end."""

    def __init__(self, connection: Connection, pids: Sequence[int], cores: int) -> None:
        self._cores = cores
        self._connection, self._script = connection, WATCH.replace("{pids}", " ".join(map(str, pids)))
        self._began = self._now()
        self.temperature_before, self.temperature_after = self._began[4], self._began[4]

    def disturbance(self) -> Disturbance:
        now = self._now()
        seconds = max(now[0] - self._began[0], 1e-9)
        busy, own, stolen = (b - a for a, b in zip(self._began[1:4], now[1:4], strict=True))
        self.temperature_after = now[4]
        events = int(now[5] - self._began[5] + now[6])
        return Disturbance(max(0.0, (busy - own) / seconds), max(0.0, stolen / seconds / self._cores), events)

    def _now(self) -> tuple[float, float, float, float, float | None, int, int]:
        """Seconds: of a clock, of all cores busy, of the runners, stolen; the temperature; events, flags set."""
        clock = time.monotonic()
        text = self._connection.text(self._script)
        head, temperatures, events = [*text.split("@@", 3), "", "", ""][1:4]
        ticks, *lines = head.strip().splitlines() or ["100"]
        hertz = float(ticks) if ticks.strip().isdigit() else 100.0
        total = [int(value) for value in lines[0].split()[1:9]] if lines and lines[0].startswith("cpu") else [0] * 8
        total += [0] * (8 - len(total))
        own = sum(
            int(f[11]) + int(f[12]) for f in (line.rpartition(")")[2].split() for line in lines[1:]) if len(f) > 12
        )
        busy = sum(total) - total[3] - total[4] - total[7]
        zones = [int(line) / 1000 for line in temperatures.split() if re.fullmatch(r"\d{4,6}", line)]
        counts = [int(e) for e in events.split() if e.isdigit()]
        flags = [int(e, 16) for e in events.split() if e.startswith("0x") and re.fullmatch(r"0x[0-9a-fA-F]+", e)]
        return (
            clock, busy / hertz, own / hertz, total[7] / hertz,
            max((z for z in zones if z < 150), default=None), sum(counts), sum(1 for flag in flags if flag & 0xF),
        )  # fmt: skip


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
    where = Where(
        connection.name, len(facts.cores) or 1, spelled(cores), watches[0].temperature_before,
        watches[0].temperature_after, (f"an emulated device ({facts.emulated})",) if facts.emulated else (),
    )  # fmt: skip
    rows = [
        row(found, phase, threads, plan.prompt_tokens, disturbance, where) for found in series for phase in found.rounds
    ]
    return series, rows
