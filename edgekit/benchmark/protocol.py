"""How measuring goes: fresh processes, warmed up until steady, then rounds that take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgekit.benchmark.machine import Disturbance, Watch
from edgekit.benchmark.statistics import percentile
from edgekit.benchmark.watch import DeviceWatch
from edgekit.bundle import Bundle
from edgekit.devices.job import Job, isa_of
from edgekit.runtime.kernels import describe, from_nodes
from edgekit.spec.progress import Progress

STEADY = 0.05
"""Warm-up ends when a round's median is this close to the one before."""
MOST_WARM_UP = 6


class TimedProcess(Protocol):
    """What runs one bundle: a runner of docs/runner.md, or another engine behind the same requests."""

    name: str

    @property
    def pid(self) -> int:
        """The process id, on its own machine."""

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to ``load``, ``first``, ``round`` or ``finish``; the last one names the ``kernel`` too."""


class BundleProcess:
    """A bundle's runner, and at the end the kernels that ran."""

    def __init__(self, name: str, bundle: Bundle, job: Job) -> None:
        self.name, self._bundle, self.job = name, bundle, job

    @property
    def pid(self) -> int:
        """The process id, on its own machine."""
        return self.job.pid

    def ask(self, what: str) -> dict[str, Any]:
        """See :class:`TimedProcess`."""
        answer = self.job.ask(what)
        if what != "finish":
            return answer
        return {**answer, "kernel": describe(from_nodes(self._bundle, self.job.nodes(), isa_of(answer)))}


@dataclass
class Series:
    """All that one process answered: milliseconds of every run, by phase and round, and the facts around them."""

    name: str
    load_ms: float
    first_run_ms: float
    base_mb: float  # private and file memory before loading: the interpreter and its libraries
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    private_mb: float | None = None
    file_mb: float | None = None
    peak_mb: float = 0.0
    kernel: str = ""

    def add(self, times: dict[str, list[float]]) -> None:
        """One more round."""
        for phase, samples in times.items():
            self.rounds.setdefault(phase, []).append(samples)

    def medians(self, phase: str) -> list[float]:
        """Milliseconds, one median a round."""
        return [percentile(samples, 0.5) for samples in self.rounds[phase]]

    def samples(self, phase: str) -> list[float]:
        """Milliseconds of every run."""
        return [sample for samples in self.rounds[phase] for sample in samples]


def measure(
    processes: Sequence[TimedProcess],
    rounds: int,
    progress: Progress,
    watch_over: Callable[[Sequence[int]], Watch | DeviceWatch] = Watch,
) -> tuple[list[Series], Disturbance]:
    """Loads, warms up and measures; the order of the processes is reversed in every other round (A B, B A, ...).

    ``watch_over`` begins to watch the machine of the processes that it is given. Returns one series for each process,
    in their order, and what else the machine did during the rounds.
    """
    series = [_started(process) for process in processes]
    for process in processes:
        progress(f"warm up {process.name}", 0.0)
        _warm_up(process)
    watch = watch_over([process.pid for process in processes])
    pairs = list(zip(processes, series, strict=True))
    for index in range(rounds):
        progress("measure", index / rounds)
        for process, one in pairs if index % 2 == 0 else reversed(pairs):
            one.add(process.ask("round")["times"])
    disturbance = watch.disturbance()
    for process, one in pairs:
        answer = process.ask("finish")
        memory, one.kernel = answer["memory"], answer["kernel"]
        one.peak_mb, one.private_mb, one.file_mb = memory["peak"] or 0.0, memory["private"], memory["file"]
    return series, disturbance


def _started(process: TimedProcess) -> Series:
    load = process.ask("load")
    first = process.ask("first")
    before = load["before"]
    base = (before["peak"] or 0.0) if before["private"] is None else before["private"] + before["file"]
    return Series(process.name, load["ms"], first["ms"], base)


def _warm_up(process: TimedProcess) -> None:
    before: dict[str, float] = {}
    for _ in range(MOST_WARM_UP):
        now = {phase: percentile(samples, 0.5) for phase, samples in process.ask("round")["times"].items()}
        if before and all(abs(now[p] / before[p] - 1) < STEADY for p in now):
            return
        before = now
