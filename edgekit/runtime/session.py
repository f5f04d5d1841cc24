"""An ONNX Runtime session from a bundle: loaded by path, telemetry off."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, RuntimeUnavailable, UsageError, one_line
from edgekit.lowbit.library import Library, load_library, register_library
from edgekit.spec.names import OLDEST_RUNTIME, SPIN_MICROSECONDS


@functools.cache
def onnxruntime() -> Any:
    """The onnxruntime module, its telemetry switched off. Raises RuntimeUnavailable when it is missing or too old."""
    # Since 1.29 the official builds report home by default, and only the environment is read early enough.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise RuntimeUnavailable(
            f"onnxruntime cannot be imported ({error}); pip install "
            f"'onnxruntime>={OLDEST_RUNTIME[0]}.{OLDEST_RUNTIME[1]}'"
        ) from error
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < OLDEST_RUNTIME:
        raise RuntimeUnavailable(
            f"onnxruntime {ort.__version__} is installed, bundles need {OLDEST_RUNTIME[0]}.{OLDEST_RUNTIME[1]} or "
            "newer; pip install --upgrade onnxruntime"
        )
    ort.disable_telemetry_events()
    return ort


class Stopped(Exception):
    """A run was told to end; never leaves edgekit.runtime."""


class Session:
    """A loaded bundle. ``ort`` is the InferenceSession, ``outputs`` are the graph's.

    ``library`` is the native operator library that runs the low-bit layers; None when there are none, when
    ``EDGEKIT_OPS_LIBRARY=none`` asked for the function bodies in the model, or when it is missing and the bundle needs it not.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 1, *, profile: bool = False, optimize: bool = True, prepack: bool = True
    ) -> None:
        """Loads the graph on the CPU with ``threads`` threads.

        ``profile`` records every kernel until :meth:`profile_text` is called. Without ``optimize`` every node runs as
        it stands in the file (between quantize and dequantize: in float); without ``prepack`` products read the mapped
        weights instead of a second copy in ONNX Runtime's own layout: half the memory for float32, far too slow for
        low-bit weights.

        Raises BundleError when ONNX Runtime refuses the graph, UsageError for an impossible number of threads,
        RuntimeUnavailable when the bundle needs the operator library and it is not there or does not take over.
        """
        if threads < 1:
            raise UsageError(f"threads: {threads} is less than 1; give the number of cores to use")
        ort = onnxruntime()
        self.bundle, self.threads = bundle, threads
        self._scratch = tempfile.TemporaryDirectory(prefix="edgekit-profile-") if profile else None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its messages come as exceptions too
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._scratch is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._scratch.name) / "profile")
        needed = bundle.manifest.needs_operators
        self.library = register_library(options, needed) if bundle.manifest.uses_operators else None
        try:
            self.ort = ort.InferenceSession(str(bundle.graph_path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise BundleError(
                f"{bundle.graph_path}: ONNX Runtime {ort.__version__} refuses it: {one_line(error, 300)}"
            ) from error
        if self.library is not None and needed:
            _check_taken_over(bundle, self.library)
        self.inputs = [i.name for i in self.ort.get_inputs()]
        self.outputs = [o.name for o in self.ort.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the graph; ``feeds`` and the result by name. Raises BundleError with ONNX Runtime's own words."""
        names = list(outputs or self.outputs)
        try:
            return dict(zip(names, self.ort.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise BundleError(f"{self.bundle.graph_path}: ONNX Runtime stopped: {one_line(error, 300)}") from error

    def run_bound(self, binding: Any, options: Any = None) -> None:
        """Runs the graph on bound inputs and outputs.

        Raises Stopped when ``options.terminate`` was set meanwhile, BundleError with ONNX Runtime's own words.
        """
        try:
            self.ort.run_with_iobinding(binding, options)
        except Exception as error:
            if options is not None and options.terminate:
                raise Stopped from None
            raise BundleError(f"{self.bundle.graph_path}: ONNX Runtime stopped: {one_line(error, 300)}") from error

    def profile_text(self) -> str:
        """What a session opened with ``profile`` recorded so far (JSON); recording ends here."""
        assert self._scratch is not None, "open the session with profile=True"
        text = Path(self.ort.end_profiling()).read_text(encoding="utf-8")
        self._scratch.cleanup()
        return text


def _check_taken_over(bundle: Bundle, before: Library) -> None:
    """A fallback to function bodies is silent in ONNX Runtime: the library's own count of nodes must have grown."""
    after = load_library()
    if after is None or after.nodes <= before.nodes:
        raise RuntimeUnavailable(
            f"{bundle.graph_path}: {before.path} was registered, but ONNX Runtime {onnxruntime().__version__} runs the "
            "function bodies instead of its operators; please report it with the model's config.json"
        )


def graph_with_outputs(bundle: Bundle, extra: Sequence[str]) -> bytes:
    """The bundle's graph as a file's bytes, with intermediate values as further outputs."""
    import onnx

    model = onnx.load(bundle.graph_path, load_external_data=False)
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra if name not in known)
    return bytes(model.SerializeToString())
