"""Is this machine fit to export and run? Versions, instruction sets, memory, disk, telemetry."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

FLOORS = {
    # package: oldest version, and why not older
    "torch": ("2.10", "older ones run code from pickles even with weights_only (CVE-2026-24747)"),
    "transformers": ("4.57", "older ones have another cache and attention interface"),
    "onnx": ("1.21", "older ones let external data point outside the directory (CVE-2026-27489, CVE-2026-34446)"),
    "onnx-ir": ("1.0", "the graph type changed"),
    "onnxscript": ("0.7", "the exporter of torch needs it"),
    "onnxruntime": ("1.28", "the first whose 2-bit matrix product is fast"),
    "numpy": ("1.26", "the first for Python 3.12"),
    "tokenizers": ("0.21", "older ones cannot read current tokenizer.json files"),
    "safetensors": ("0.5", "tested from here on"),
}
OPTIONAL = ("gguf", "accelerate", "optimum", "onnxruntime-genai")
ISA = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "sve")
LEAST_DISK = 2 << 30
LEAST_MEMORY = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``level`` is "ok", "note" (worth knowing) or "problem" (must change)."""

    what: str
    found: str
    level: str
    advice: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """No problem was found."""
        return all(f.level != "problem" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The contract of ``edgekit doctor --json``."""
        return {"schema_version": 1, "passed": self.passed, "findings": [asdict(f) for f in self.findings]}

    def lines(self) -> Iterator[str]:
        """One line a finding."""
        marks = {"ok": "✓", "note": "·", "problem": "✗"}
        for f in self.findings:
            yield f"{marks[f.level]} {f.what:<18} {f.found}" + (f"  ({f.advice})" if f.advice else "")


def examine() -> Examination:
    """Looks at this machine; imports neither torch nor onnxruntime."""
    findings = [_python(), *(_package(name) for name in FLOORS), *(_optional(name) for name in OPTIONAL)]
    return Examination((*findings, _processor(), _memory(), _disk(), _telemetry()))


def _python() -> Finding:
    fit = sys.version_info >= (3, 10)
    return Finding(
        "python", platform.python_version(), "ok" if fit else "problem", "" if fit else "3.10 or newer is needed"
    )


def _package(name: str) -> Finding:
    floor, reason = FLOORS[name]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "problem", f"pip install '{name}>={floor}'")
    if _numbers(version) < _numbers(floor):
        return Finding(name, version, "problem", f"{floor} or newer: {reason}")
    return Finding(name, version, "ok")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _optional(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), "ok")
    except importlib.metadata.PackageNotFoundError:
        extra = {"gguf": "gguf", "accelerate": "gguf", "optimum": "optimum", "onnxruntime-genai": "bench"}[name]
        return Finding(name, "not installed", "note", f"optional: pip install 'edgekit[{extra}]'")


def processor_features() -> tuple[str, tuple[str, ...]]:
    """Name of the processor and the instruction sets of ISA that it has; as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _processor_by_command()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", text, re.MULTILINE)
    have = set(flags.group(1).split()) if flags else set()
    return name.group(1) if name else platform.machine(), tuple(f for f in ISA if f in have)


def _processor_by_command() -> tuple[str, tuple[str, ...]]:
    if platform.system() != "Darwin":
        return platform.processor() or platform.machine(), ()
    run = subprocess.run(["sysctl", "-a", "machdep.cpu", "hw.optional"], capture_output=True, text=True, check=False)
    name = re.search(r"machdep.cpu.brand_string: (.*)", run.stdout)
    known = {"FEAT_DotProd: 1": "asimddp", "FEAT_I8MM: 1": "i8mm", "hw.optional.avx2_0: 1": "avx2"}
    return name.group(1) if name else platform.machine(), tuple(isa for key, isa in known.items() if key in run.stdout)


def _processor() -> Finding:
    name, features = processor_features()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    found = f"{name}, {cores} cores, {', '.join(features) or 'instruction sets unknown'}"
    slow = platform.machine().lower() in ("x86_64", "amd64") and features and "avx2" not in features
    return Finding(
        "processor", found, "note" if slow else "ok", "no AVX2: quantized models will be slow here" if slow else ""
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    fit = memory.available >= LEAST_MEMORY
    return Finding(
        "memory",
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "ok" if fit else "note",
        "" if fit else "exporting takes about twice the model's size",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding(
        "disk",
        f"{free / 1e9:.1f} GB free here",
        "ok" if free >= LEAST_DISK else "note",
        "" if free >= LEAST_DISK else "bundles may not fit",
    )


def _telemetry() -> Finding:
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    return Finding(
        "telemetry",
        "ONNX Runtime's is off in every edgekit process",
        "ok" if off else "note",
        "" if off else "set ORT_DISABLE_TELEMETRY=1 in programs of your own",
    )
