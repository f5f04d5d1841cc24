"""ONNX Runtime sessions with the settings of edgekit's own, their inputs and outputs bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.lowbit.library import register_library
from edgekit.runtime.session import onnxruntime
from edgekit.spec.names import SPIN_MICROSECONDS


def open_session(path: Path, threads: int, native: bool) -> Any:
    """An InferenceSession; with ``native``, the operator library is registered as ``EDGEKIT_OPS_LIBRARY`` says."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if native:
        register_library(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bound_run(session: Any, x: np.ndarray, n: int) -> Callable[[], None]:
    """Runs ``session`` with ``x`` as every input; all outputs, float32 [M, n], go into one buffer.

    One buffer, because that is what ONNX Runtime's arena gives to the layers of a model: it stays in the cache.
    """
    ort = onnxruntime()
    given = ort.OrtValue.ortvalue_from_numpy(x)
    taken = ort.OrtValue.ortvalue_from_numpy(np.empty((len(x), n), np.float32))
    binding = session.io_binding()
    for value in session.get_inputs():
        binding.bind_ortvalue_input(value.name, given)
    for value in session.get_outputs():
        binding.bind_ortvalue_output(value.name, taken)

    def run() -> None:
        assert len(x)  # a binding does not own its memory: x lives as long as this function
        session.run_with_iobinding(binding)

    return run
