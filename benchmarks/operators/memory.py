"""Memory of ternary layers: with the operator library, with the function body instead, and two processes at once.

    .venv/bin/python benchmarks/operators/memory.py [--json] [--layers 40] [--size 2560] [--threads 1] [--output FILE.json]

One model, its weights in a file at page boundaries, is loaded and run once in fresh processes. Numbers are MiB over
what the process had with its libraries imported. ``anon`` is private memory, ``file`` mapped files: weights and code
that was touched. ``pss`` counts a page shared by n processes as 1/n of a page: ``weights_pss`` of two processes that
share the mapped weights is half their ``weights_rss``. Linux only: the numbers are /proc's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operators.models import write_chain
from benchmarks.operators.sessions import open_session
from edgekit.benchmark.machine import describe
from edgekit.devices.runner import memory
from edgekit.lowbit.library import CHOICE, load_library
from edgekit.runtime.session import onnxruntime

LIBRARY, BODY = "library", "function body"


@dataclass(frozen=True)
class Row:
    """One process of ``processes`` that have the model loaded at the same time; MiB."""

    runs: str
    processes: int
    load_anon: float
    load_file: float
    run_anon: float
    run_file: float
    peak: float
    pss: float  # of the whole process, libraries included
    weights_rss: float
    weights_pss: float


def main() -> None:
    """Measures and prints; ``--child`` is one of the processes measured."""
    options = _options()
    if options.child:
        _child(options.child, options.threads)
        return
    if not Path("/proc/self/smaps").exists():
        sys.exit("/proc/self/smaps: not there; these numbers exist on Linux only")
    with tempfile.TemporaryDirectory(prefix="edgekit-ops-") as scratch:
        path = Path(scratch) / "chain.onnx"
        write_chain(options.layers, options.size, path)
        weights = path.with_suffix(".data").stat().st_size
        ways = [(LIBRARY, 1), (BODY, 1), (LIBRARY, 2), (BODY, 2)]
        rows = [row for runs, processes in ways for row in _together(path, runs, processes, options.threads)]
    model = {"layers": options.layers, "size": options.size, "weights_mib": round(weights / 2**20, 1)}
    machine = {**asdict(describe()), "onnxruntime": onnxruntime().__version__, "threads": options.threads}
    result = {"machine": machine, "model": model, "rows": [asdict(row) for row in rows]}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if options.json else "\n".join(table(rows, model)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the JSON here too")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--size", type=int, default=2560, help="N and K of every layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _together(path: Path, runs: str, processes: int, threads: int) -> list[Row]:
    """Starts the processes one after another, then looks at all of them while they wait."""
    print(f"{runs}, {processes} at once", file=sys.stderr, flush=True)
    environment = dict(os.environ)
    if runs == BODY:
        environment[CHOICE] = "none"
    command = [sys.executable, "-m", "benchmarks.operators.memory", "--child", str(path), "--threads", str(threads)]
    children: list[subprocess.Popen[str]] = []
    try:
        reports = []
        for _ in range(processes):
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )  # fmt: skip
            children.append(child)
            assert child.stdout is not None
            reports.append(_report(child.stdout.readline(), runs))
        return [
            Row(runs, processes, **report, **_shared(child.pid, path.with_suffix(".data")))
            for child, report in zip(children, reports, strict=True)
        ]
    finally:
        for child in children:
            child.communicate("")  # closes its stdin: it ends


def _report(line: str, runs: str) -> dict[str, float]:
    if not line:
        sys.exit(f"{runs}: the process ended before it had run the model; its message is above")
    report: dict[str, Any] = json.loads(line)
    if (report.pop("native") > 0) != (runs == LIBRARY):
        sys.exit(f"{runs}: the other one ran; see what {CHOICE} says")
    return report


def _shared(pid: int, weights: Path) -> dict[str, float]:
    """MiB of a process counted by share: all of it, and what is mapped from the file ``weights``."""
    total = {"Rss:": 0.0, "Pss:": 0.0}
    mapped = dict(total)
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        field, *rest = line.split()
        if not field.endswith(":"):  # the first line of a mapping ends with its file
            inside = line.endswith(weights.name)
        elif field in total:
            total[field] += int(rest[0]) / 1024
            mapped[field] += int(rest[0]) / 1024 if inside else 0
    return {
        "pss": round(total["Pss:"], 1),
        "weights_rss": round(mapped["Rss:"], 1),
        "weights_pss": round(mapped["Pss:"], 1),
    }


def _child(path: Path, threads: int) -> None:
    """Loads, runs, reports, and waits until its input ends."""
    onnxruntime()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    base = memory()
    session = open_session(path, threads, native=True)
    loaded = memory()
    x = np.ones((1, session.get_inputs()[0].shape[1]), np.float32)
    session.run(None, {"X0": x})
    done = memory()
    library = load_library()
    report = {
        "load_anon": _grown(base, loaded, "private"), "load_file": _grown(base, loaded, "file"),
        "run_anon": _grown(base, done, "private"), "run_file": _grown(base, done, "file"),
        "peak": round(done["peak"] - base["private"] - base["file"], 1),
        "native": library.nodes if library is not None else 0,
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    sys.stdin.read()


def _grown(before: dict[str, Any], after: dict[str, Any], part: str) -> float:
    return round(float(after[part]) - float(before[part]), 1)


def table(rows: Sequence[Row], model: dict[str, Any]) -> Iterator[str]:
    """For people."""
    size = f"{model['size']}x{model['size']}"
    yield f"{model['layers']} layers {size}, {model['weights_mib']} MiB of weights; all numbers MiB"
    yield (
        f"{'runs':<14} {'at once':>7} {'load anon':>10} {'file':>6} {'run anon':>10} {'file':>6} {'peak':>7} "
        f"{'pss':>7} {'weights rss':>12} {'pss':>6}"
    )
    for r in rows:
        yield (
            f"{r.runs:<14} {r.processes:>7} {r.load_anon:>10.1f} {r.load_file:>6.1f} {r.run_anon:>10.1f} "
            f"{r.run_file:>6.1f} {r.peak:>7.1f} {r.pss:>7.1f} {r.weights_rss:>12.1f} {r.weights_pss:>6.1f}"
        )


if __name__ == "__main__":
    main()
