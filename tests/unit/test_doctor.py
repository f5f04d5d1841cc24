"""Doctor: floors, ceilings, and processors of systems that are not this one."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from edgekit import cpu, doctor
from edgekit.cli import main

X86 = "processor: 0\nmodel name : AMD EPYC\nflags : fpu sse avx2 fma avx512f avx512_vnni avx2extra\n"
PI5 = (
    "processor : 0\nFeatures : fp asimd evtstrm asimdhp asimddp\n\nHardware : BCM2835\nModel : Raspberry Pi 5 Model B\n"
)
APPLE = "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.AdvSIMD: 1\n"
INTEL_MAC = "machdep.cpu.brand_string: Intel(R) Core(TM) i5\nhw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n"


def with_versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> dict[str, doctor.Finding]:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name.replace("-", "_") not in changed:
            return real(name) if name not in doctor.OPTIONAL else "1.0"
        found = changed[name.replace("-", "_")]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return {f.what: f for f in doctor.examine().findings}


def test_this_machine_is_fit() -> None:
    found = doctor.examine()
    assert found.passed
    assert found.to_json()["passed"] is True
    assert next(f.what for f in found.findings) == "python"
    assert len(list(found.lines())) == len(found.findings)


@pytest.mark.parametrize(
    ("name", "version", "level", "advice"),
    [
        ("torch", "2.9.1", "problem", "2.10 or newer is needed: older ones run code from pickles"),
        ("torch", "2.10.0+cpu", "ok", ""),
        ("onnx", "1.20.9", "problem", "1.21 or newer is needed: older ones let external data point outside"),
        ("onnxruntime", "1.27.0", "problem", "1.28 or newer is needed: the first whose 2-bit matrix product is fast"),
        ("onnxruntime", "1.100.0", "ok", ""),
        ("transformers", "4.57.1", "ok", ""),
        ("transformers", "6.0.0.dev0", "problem", "older than 6 is needed"),
        ("protobuf", "5.29.5", "problem", "6.33.5 or newer is needed"),
        ("protobuf", "5.29.6", "ok", ""),
        ("protobuf", "6.30.0", "problem", "6.33.5 or newer is needed"),
        ("safetensors", None, "problem", "pip install 'safetensors>=0.5'"),
        ("gguf", None, "note", "optional: pip install 'edgekit[gguf]'"),
        ("accelerate", None, "note", "optional: pip install 'edgekit[gguf]'"),
        ("onnxruntime_genai", None, "note", "optional: pip install 'edgekit[bench]'"),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, level: str, advice: str) -> None:
    found = with_versions(monkeypatch, **{name: version})[name.replace("_", "-")]
    assert found.level == level
    assert found.advice.startswith(advice)


def test_floors_are_those_of_the_package() -> None:
    text = (Path(doctor.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    for name, (floor, _) in doctor.FLOORS.items():
        assert f'"{name}>={floor}' in text or name == "protobuf"


def test_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(doctor.FLOORS, "numpy", ("99", "a test says so"))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json"])
    assert stop.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert [f["what"] for f in found["findings"] if f["level"] == "problem"] == ["numpy"]
    with pytest.raises(SystemExit):
        main(["doctor"])
    assert "✗ numpy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (X86, ("AMD EPYC", ("avx2", "fma", "avx512f", "avx512_vnni"))),
        (PI5, ("BCM2835", ("asimd", "asimddp"))),
        ("", (platform.machine(), ())),
    ],
)
def test_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, found: tuple[str, tuple[str, ...]]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu.processor_features() == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (APPLE, ("Apple M2", ("asimd", "asimddp", "i8mm"))),
        (INTEL_MAC, ("Intel(R) Core(TM) i5", ("avx2",))),
        ("", (platform.machine(), ())),
    ],
)
def test_macos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, found: tuple[str, tuple[str, ...]]) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=text))
    assert cpu.processor_features() == found


def test_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ctypes

    kernel = SimpleNamespace(IsProcessorFeaturePresent=lambda number: number in (40, 41))
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert cpu.processor_features() == ("Intel64 Family 6", ("avx2", "avx512f"))


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", missing)
    assert cpu.processor_features() == (platform.machine(), ())
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert cpu.processor_features()[1] == ()


def test_scarce_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9, total=2 * 10**9))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(doctor, "processor_features", lambda: ("Pentium", ("fma",)))
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    found = {f.what: f for f in doctor.examine().findings}
    assert found["memory"] == doctor.Finding(
        "memory", "1.0 of 2.0 GB free", "note", "an export takes about the model's float32 size"
    )
    assert found["disk"].advice == "bundles may not fit"
    assert found["processor"].advice == "no AVX2: quantized models will be slow here"
    assert found["telemetry"].level == "note"
    assert doctor.examine().passed


@pytest.mark.parametrize(("version", "level"), [((3, 10), "note"), ((3, 13), "ok")])
def test_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], level: str) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.examine().findings[0].level == level
