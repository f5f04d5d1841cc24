"""How measuring goes: fresh processes, warmed up until steady, then rounds that take turns."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from edgekit import errors
from edgekit.benchmark.machine import Disturbance, Watch, Watching
from edgekit.benchmark.statistics import percentile
from edgekit.spec.progress import Progress

STEADY = 0.05
"""Warm-up ends when a round's median is this close to the one before."""
MOST_WARM_UP = 6


class Subject(Protocol):
    """What measures one bundle: a process here, or a runner on a device."""

    name: str

    @property
    def pid(self) -> int:
        """The process id, on its own machine."""

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to a request of ``edgekit.benchmark.worker``."""


class Worker:
    """A process that speaks the protocol of ``edgekit.benchmark.worker``."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Starts ``command``; its stderr stays the caller's."""
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    @staticmethod
    def of_bundle(bundle: str, threads: int, prompt_tokens: int, new_tokens: int) -> Worker:
        """A worker for a bundle directory."""
        settings = {
            "bundle": bundle,
            "threads": threads,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
        }
        return Worker(bundle, [sys.executable, "-m", "edgekit.benchmark.worker", json.dumps(settings)])

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to one request. Raises the worker's own error, RuntimeUnavailable when it died."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        # A worker that has ended left its last words in the pipe.
        with contextlib.suppress(OSError):
            requests.write(json.dumps({"do": what}) + "\n")
            requests.flush()
        line = answers.readline()
        if not line:
            raise errors.RuntimeUnavailable(f"{self.name}: the measuring process died at {what!r} ({self._death()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def _death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}; its messages are above"
        name = signal.Signals(-code).name
        return f"{name}; out of memory?" if name == "SIGKILL" else name

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


@dataclass
class Series:
    """All that one worker answered: milliseconds of every run, by phase and round, and the facts around them."""

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
    workers: Sequence[Subject],
    rounds: int,
    progress: Progress,
    watch_over: Callable[[Sequence[int]], Watching] = Watch,
) -> tuple[list[Series], Disturbance]:
    """Loads, warms up and measures; the order of the workers is reversed in every other round (A B, B A, ...).

    ``watch_over`` begins to watch the machine of the processes that it is given. Returns one series for each worker, in
    their order, and what else the machine did during the rounds.
    """
    series = [_started(worker) for worker in workers]
    for worker in workers:
        progress(f"warm up {worker.name}", 0.0)
        _warm_up(worker)
    watch = watch_over([worker.pid for worker in workers])
    pairs = list(zip(workers, series, strict=True))
    for index in range(rounds):
        progress("measure", index / rounds)
        for worker, found in pairs if index % 2 == 0 else reversed(pairs):
            found.add(worker.ask("round")["times"])
    disturbance = watch.disturbance()
    for worker, found in pairs:
        answer = worker.ask("finish")
        found.peak_mb = answer["memory"]["peak"] or 0.0
        found.private_mb, found.file_mb = answer["memory"]["private"], answer["memory"]["file"]
        found.kernel = answer["kernel"]
    return series, disturbance


def _started(worker: Subject) -> Series:
    load = worker.ask("load")
    first = worker.ask("first")
    before = load["before"]
    base = (before["peak"] or 0.0) if before["private"] is None else before["private"] + before["file"]
    return Series(worker.name, load["ms"], first["ms"], base)


def _warm_up(worker: Subject) -> None:
    before: dict[str, float] = {}
    for _ in range(MOST_WARM_UP):
        now = {phase: percentile(samples, 0.5) for phase, samples in worker.ask("round")["times"].items()}
        if before and all(abs(now[p] / before[p] - 1) < STEADY for p in now):
            return
        before = now
