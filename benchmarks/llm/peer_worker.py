"""The requests that `edgekit bench` times (docs/runner.md: load, first, round, finish), answered by another engine.

``finish`` names the ``kernel`` too. An answer with "error" names what went wrong and ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edgekit.devices import runner
from edgekit.devices.job import Job
from edgekit.errors import EdgekitError
from edgekit.spec.names import ROUND_RUNS, ROUND_SECONDS

Times = dict[str, list[float]]


class Engine(Protocol):
    """What is measured."""

    def load(self) -> None:
        """Makes it ready to run."""

    def first(self) -> None:
        """Runs it once."""

    def round(self) -> Times:
        """Milliseconds of each repetition, by phase."""

    def kernel(self) -> str:
        """What runs."""


def start(name: str, module: str, settings: dict[str, Any]) -> Job:
    """A process of ``module``, which calls :func:`serve` with the settings."""
    return Job(name, [sys.executable, "-m", module, json.dumps(settings)])


def repeated(run: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> list[float]:
    """Milliseconds of each run, repeated as runners do; ``prepare`` is not timed."""
    return runner.repeated(run, ROUND_SECONDS, ROUND_RUNS, prepare)


def serve(engine: Callable[[dict[str, Any]], Engine], arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Answers requests until stdin ends. ``engine`` makes what is measured of the settings; its errors are answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        measured = engine(json.loads(arguments[0]))
        say({"runner": runner.PROTOCOL, "pid": os.getpid()})
        for line in sys.stdin:
            say(_answer(measured, json.loads(line)["do"]))
    except KeyboardInterrupt:
        pass
    except EdgekitError as error:
        say({"error": type(error).__name__, "message": str(error)})


def _answer(engine: Engine, what: str) -> dict[str, Any]:
    if what in ("load", "first"):
        before, began = runner.memory(), time.perf_counter()
        engine.load() if what == "load" else engine.first()
        return {"ms": (time.perf_counter() - began) * 1e3, "before": before, "after": runner.memory()}
    if what == "round":
        gc.disable()  # collection pauses are no property of the model
        try:
            return {"times": engine.round()}
        finally:
            gc.enable()
    assert what == "finish", what
    return {"memory": runner.memory(), "kernel": engine.kernel()}
