"""The operator library from the Python side: what is loaded, what is refused, what a bundle carries."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from edgekit import __version__
from edgekit.errors import RuntimeUnavailable, UsageError
from edgekit.exporter import export
from edgekit.lowbit import library
from edgekit.lowbit.library import ABIS, SHIPPED, built_library, host_abi, load_library, register_library
from edgekit.runtime.session import _check_taken_over
from tools.check_kernels import LIMITS


def test_the_library_says_what_it_is() -> None:
    found = load_library()
    assert found is not None
    assert found.version == __version__  # the C++ has a copy of its own: it is built without Python
    assert found.isa == found.supported[0]
    assert found.supported[-1] == "scalar"


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_an_instruction_set_can_be_forced(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_library()
    assert found is not None
    if isa not in found.supported:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("EDGEKIT_ISA", isa)
    forced = load_library()
    assert forced is not None
    assert forced.isa == isa


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_ISA", "neon9")
    with pytest.raises(
        RuntimeUnavailable, match=r"EDGEKIT_ISA=neon9: this processor cannot run it; it has .*scalar. Unset"
    ):
        load_library()


def test_no_library_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    assert load_library() is None
    assert register_library(onnxruntime.SessionOptions()) is None


def test_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NATIVE", tmp_path)
    with pytest.raises(
        RuntimeUnavailable, match=r"no operator library for .*; installing edgekit builds it.*OPS_LIBRARY=none"
    ):
        load_library()


def test_something_else_than_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "libother.so"
    other.write_bytes(b"no library")
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", str(other))
    with pytest.raises(RuntimeUnavailable, match=f"{other}: cannot be loaded as edgekit's operator library"):
        load_library()


@pytest.mark.parametrize(
    ("system", "machine", "abi"),
    [
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-aarch64"),
        ("darwin", "arm64", "macos-arm64"),
        ("darwin", "x86_64", "macos-x86_64"),
        ("win32", "AMD64", "windows-x86_64"),
    ],
)
def test_names_of_systems(system: str, machine: str, abi: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert host_abi() == abi


def test_a_system_it_is_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(
        RuntimeUnavailable, match=r"not built for linux-riscv64, but for linux-x86_64, .*OPS_LIBRARY=none"
    ):
        host_abi()


def test_every_shipped_library_is_built() -> None:
    assert set(SHIPPED) < set(ABIS)
    for abi in ABIS:
        limit = LIMITS[{"macos": "macho", "windows": "pe"}.get(abi.partition("-")[0], "elf")]
        assert 0 < built_library(abi).stat().st_size <= limit


def test_a_session_that_fell_back_is_refused() -> None:
    before = load_library()
    assert before is not None
    bundle = SimpleNamespace(graph_path="model.onnx")
    with pytest.raises(RuntimeUnavailable, match=r"model.onnx: .* was registered, but ONNX Runtime .* function bodies"):
        _check_taken_over(bundle, before)  # type: ignore[arg-type]


def test_an_unknown_abi(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"abi 'android-arm64': not one of linux-x86_64, .*did you mean 'android-arm64-v8a'"
    ):
        export("anything", "ternary", tmp_path / "out", abis=["android-arm64"])
