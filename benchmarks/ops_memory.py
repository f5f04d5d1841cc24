"""What loading a ternary model costs in memory: 40 layers of 2560 x 2560, 62.5 MiB of weights mapped from a file.

    python -m benchmarks.ops_memory [--json]

Each way of loading has a fresh process; figures are growth over the process just before the session, in MiB. ``native``
is the operator library, ``MatMulNBits-2`` what runs without it. The last rows are two processes at once: pages that both
map count half in each (Linux's Pss).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ops_models import products, write_model
from edgekit.bench.machine import describe
from edgekit.lowbit.library import load_library
from edgekit.runtime.session import onnxruntime

LAYERS, SIZE = 40, 2560
WAYS = ("ternary", "MatMulNBits-2")
FIELDS = {"anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM", "resident": "VmRSS"}


def main() -> None:
    """Builds the models, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Path(options.worker))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for way in WAYS for row in measure(way, Path(scratch))]
    if options.json:
        print(json.dumps({"machine": {"cpu": describe().cpu}, "rows": rows}))
        return
    for row in rows:
        figures = "  ".join(f"{name} {value:>7.1f}" for name, value in row.items() if isinstance(value, float))
        print(f"{row['impl']:<14} {row['when']:<28} {figures}")


def measure(way: str, scratch: Path) -> Iterator[dict[str, Any]]:
    """Growth after loading and after one run, alone; then what each of two processes is charged."""
    path = scratch / f"{way}.onnx"
    write_model(products(SIZE, SIZE)[way], SIZE, LAYERS, path)
    with Worker(path) as one:
        yield {"impl": way, "when": "loaded", **one.ask("load")}
        yield {"impl": way, "when": "after one run", **one.ask("run")}
        with Worker(path) as two:
            two.ask("load")
            two.ask("run")
            yield {"impl": way, "when": "two processes, charged to each", **one.ask("pss")}


class Worker:
    """A process that loads one model when it is told to."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.ops_memory", "--worker", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def ask(self, what: str) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


def work(path: Path) -> None:
    """Answers ``load``, ``run`` and ``pss`` until stdin ends."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    library = load_library()
    if path.stem == "ternary" and library is not None:
        options.register_custom_ops_library(str(library.path))
    x = np.ones((1, SIZE), np.float32)
    before = resident()
    pss = proportional()
    for line in sys.stdin:
        if line.strip() == "load":
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        elif line.strip() == "run":
            session.run(None, {"X": x})
        now = resident()
        answer = {name: round(now[name] - before[name], 1) for name in FIELDS}
        if line.strip() == "pss":
            answer = {"proportional": round(proportional() - pss, 1)}
        print(json.dumps(answer), flush=True)


def resident() -> dict[str, float]:
    """MiB of this process by kind."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in FIELDS.items()}


def proportional() -> float:
    """MiB of this process, shared pages divided among those who map them."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
