"""Is this machine fit to export and run? Versions, instruction sets, memory, disk, telemetry."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from edgekit.cpu import processor_features
from edgekit.errors import RuntimeUnavailable
from edgekit.lowbit.library import CHOICE, load_library

FLOORS = {
    # package: the oldest version that edgekit is tested with or that is safe, and why not older
    "torch": ("2.10", "older ones run code from pickles even with weights_only (CVE-2026-24747)"),
    "transformers": ("4.57", "older ones have another cache and attention interface"),
    "onnx": ("1.21", "older ones let external data point outside the directory (CVE-2026-27489, CVE-2026-34446)"),
    "onnx-ir": ("1.0", "older ones have another graph type"),
    "onnxscript": ("0.7", "torch's exporter needs it"),
    "onnxruntime": ("1.28", "the first whose 2-bit matrix product is fast"),
    "numpy": ("1.26", "the first for Python 3.12"),
    "tokenizers": ("0.21", "older ones cannot read current tokenizer.json files"),
    "safetensors": ("0.5", "tested from here on"),
    "protobuf": ("6.33.5", "older ones can be made to recurse without end (CVE-2026-0994)"),
}
CEILINGS = {"transformers": ("6", "edgekit replaces attention through transformers' interface, which may have moved")}
PATCHED = {"protobuf": ((5, 29, 6), (5, 30))}  # an older series that got the repair too: from, before
OPTIONAL = {"gguf": "gguf", "accelerate": "gguf", "optimum": "optimum", "onnxruntime-genai": "bench"}
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
    return Examination((*findings, _processor(), _operators(), _memory(), _disk(), _telemetry()))


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < (3, 11):
        return Finding("python", version, "note", "PyPI has ONNX Runtime 1.28 and newer for Python 3.11 and newer only")
    return Finding("python", version, "ok")


def installed(package: str) -> str:
    """The version of a package; nothing where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _package(name: str) -> Finding:
    (floor, reason), version = FLOORS[name], installed(name)
    if not version:
        return Finding(name, "missing", "problem", f"pip install '{name}>={floor}'")
    have = _numbers(version)
    first, last = PATCHED.get(name, ((), ()))
    if have < _numbers(floor) and not first <= have < last:
        return Finding(name, version, "problem", f"{floor} or newer is needed: {reason}")
    ceiling, why = CEILINGS.get(name, ("", ""))
    if ceiling and have >= _numbers(ceiling):
        return Finding(name, version, "problem", f"older than {ceiling} is needed: {why}")
    return Finding(name, version, "ok")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _optional(name: str) -> Finding:
    if version := installed(name):
        return Finding(name, version, "ok")
    return Finding(name, "not installed", "note", f"optional: pip install 'edgekit[{OPTIONAL[name]}]'")


def _processor() -> Finding:
    name, features = processor_features()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    words = f"{name}, {cores} cores, {', '.join(features) or 'instruction sets unknown'}"
    if platform.machine().lower() in ("x86_64", "amd64") and features and "avx2" not in features:
        return Finding("processor", words, "note", "no AVX2: quantized models will be slow here")
    return Finding("processor", words, "ok")


def _operators() -> Finding:
    try:
        library = load_library()
    except RuntimeUnavailable as error:
        return Finding("operators", "not usable", "problem", str(error))
    if library is None:
        return Finding(
            "operators", f"switched off ({CHOICE}=none)", "note", "ternary models run slower, rounded differently"
        )
    others = ", ".join(isa for isa in library.supported if isa != library.isa)
    return Finding("operators", f"library {library.version}, {library.isa} (also {others})", "ok")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    words = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < LEAST_MEMORY:
        return Finding("memory", words, "note", "an export takes about the model's float32 size")
    return Finding("memory", words, "ok")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    words = f"{free / 1e9:.1f} GB free here"
    return Finding("disk", words, "ok") if free >= LEAST_DISK else Finding("disk", words, "note", "bundles may not fit")


def _telemetry() -> Finding:
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        return Finding("telemetry", "off in this process and in every edgekit process", "ok")
    return Finding(
        "telemetry", "off in edgekit's processes", "note", "set ORT_DISABLE_TELEMETRY=1 in programs of your own"
    )
