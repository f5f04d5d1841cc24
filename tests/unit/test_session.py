"""Sessions: errors on one line, telemetry off, and the kernels that really ran."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.devices.job import isa_of
from edgekit.devices.local import open_local
from edgekit.errors import BundleError, RuntimeUnavailable, UsageError
from edgekit.runtime import session as session_module
from edgekit.runtime.kernels import Kernel, describe, from_nodes
from edgekit.runtime.replay import feeds
from edgekit.runtime.session import Session, onnxruntime
from edgekit.spec.formats import FORMATS
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import broken_graph, linear_bundle


def kernels(bundle: Bundle) -> str:
    with open_local(bundle).job(1) as job:
        isa = isa_of(job.ask("load"))
        return describe(from_nodes(bundle, job.nodes(), isa))


def test_runs(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    session = Session(bundle)
    assert (session.inputs, session.outputs) == (["x"], ["y"])
    _, vector = bundle.vectors()[0]
    answer = session.run(feeds(vector), ["y"])
    assert list(answer) == ["y"]
    np.testing.assert_allclose(answer["y"], 2 * vector["tap.linear"], rtol=1e-5, atol=1e-4)


def test_onnxruntimes_errors_come_on_one_line(tmp_path: Path) -> None:
    session = Session(linear_bundle(tmp_path / "b"))
    with pytest.raises(BundleError, match=r"model.onnx: ONNX Runtime stopped: .*Got invalid dimensions") as caught:
        session.run({"x": np.zeros((1, 3), np.float32)})
    assert "\n" not in str(caught.value)
    directory = session.bundle.directory
    broken_graph(directory)
    with pytest.raises(BundleError, match=r"model.onnx: ONNX Runtime .* refuses it: .*Mus"):
        Session(Bundle.open(directory))


def test_threads_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads: 0 is less than 1"):
        Session(linear_bundle(tmp_path / "b"), threads=0)


def test_says_which_kernel_ran(tmp_path: Path) -> None:
    assert kernels(linear_bundle(tmp_path / "b", "fp32")) == "FusedMatMul×1"


@pytest.mark.parametrize(
    ("format_name", "body"),
    [
        ("t2", "TernaryMatMul: function body (MatMulNBits(bits=2,block=128,acc=4))×1"),
        ("int4", "Int4MatMul: function body (MatMulNBits(bits=4,acc=4))×1"),
        ("int8", "Int8BlockMatMul: function body (MatMulNBits(bits=8,acc=4))×1"),
    ],
)
def test_one_file_runs_with_and_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str, body: str
) -> None:
    bundle = linear_bundle(tmp_path / "b", format_name)
    for isa in ("scalar", "avx2") if platform.machine() == "x86_64" else ("scalar",):
        monkeypatch.setenv("EDGEKIT_ISA", isa)
        assert kernels(bundle) == f"{FORMATS[format_name].operator}: native operator ({isa})×1"
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    assert kernels(bundle) == body


@pytest.mark.parametrize("format_name", ["int4", "int8"])
def test_stock_bytes_run_where_no_library_is_and_ternary_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    """Its body is as good: also where the library is an older one that lacks the operator."""
    monkeypatch.setattr("edgekit.lowbit.library.NATIVE", tmp_path)
    assert "function body" in kernels(linear_bundle(tmp_path / "b", format_name))
    with pytest.raises(RuntimeUnavailable, match="no operator library for"):
        Session(linear_bundle(tmp_path / "t", "t2"))


def test_sparse_layers_say_where_dense_ones_are_faster() -> None:
    fast, slow = Kernel("SparseMatMul", "avx512vbmi2", "", 2), Kernel("SparseMatMul", "avx2", "", 2)
    assert str(fast) == "SparseMatMul: native operator (avx512vbmi2)×2"
    assert str(slow) == "SparseMatMul: native operator (avx2, slower than dense without avx512vbmi2)×2"
    assert str(Kernel("TernaryMatMul", "avx2", "", 1)) == "TernaryMatMul: native operator (avx2)×1"


def test_says_which_kernels_a_decoder_ran(tmp_path: Path) -> None:
    assert kernels(decoder_bundle(tmp_path / "b")) == "FusedMatMul×10"


def test_telemetry_is_off_before_onnxruntime_loads() -> None:
    script = (
        "import os, sys; from edgekit.runtime.session import onnxruntime; "
        "assert 'onnxruntime' not in sys.modules; onnxruntime(); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'torch' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "False"]


def test_an_old_or_missing_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.27.3"))
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime 1.27.3 is installed, bundles need 1.28 or newer"):
        session_module.onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match="onnxruntime cannot be imported"):
        session_module.onnxruntime()
