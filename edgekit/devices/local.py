"""This machine as a target: the runner of devices in a fresh process, on the bundle where it lies."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.devices import runner
from edgekit.devices.job import Job, settings
from edgekit.lowbit.library import load_library
from edgekit.spec.names import OLDEST_RUNTIME

ADVICE = f"pip install --upgrade 'onnxruntime>={'.'.join(map(str, OLDEST_RUNTIME))}'"


@dataclass(frozen=True)
class Local:
    """A bundle on this machine, run by this interpreter."""

    bundle: Bundle
    library: str  # the operator library; empty where none is used

    @property
    def name(self) -> str:
        """The bundle's directory."""
        return str(self.bundle.directory)

    def job(self, threads: int, **more: object) -> Job:
        """A runner in a process of its own."""
        needed = self.bundle.manifest.needs_operators
        asked = settings(self.name, threads, self.library, ADVICE, library_needed=needed, **more)
        # The runner's folder holds modules of edgekit's, which are nobody else's.
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONSAFEPATH": "1"}
        return Job(self.name, [sys.executable, str(Path(runner.__file__)), asked], environment=environment)

    @contextmanager
    def graph(self, graph: bytes) -> Iterator[str]:
        """A temporary file; the bundle is not touched."""
        with tempfile.TemporaryDirectory(prefix="edgekit-graph-") as scratch:
            file = Path(scratch) / "tapped.onnx"
            file.write_bytes(graph)
            yield str(file)

    def versions(self, job: Job) -> dict[str, str]:
        """Of the packages that run and judge, and the processor."""
        return {
            "onnxruntime": str(job.facts.get("onnxruntime")),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }


def open_local(bundle: Bundle) -> Local:
    """A bundle on this machine. Raises RuntimeUnavailable when an operator library that it needs cannot be used."""
    manifest = bundle.manifest
    library = load_library(manifest.needs_operators) if manifest.uses_operators else None
    return Local(bundle, str(library.path) if library is not None else "")
