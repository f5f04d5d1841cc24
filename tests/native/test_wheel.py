"""The wheel: what it holds, and what is said when a part of it cannot be made."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekit import __version__
from edgekit.lowbit.library import ABIS
from tests.support.tooling import ROOT, need
from tools import build_hook


def test_the_wheel_holds_libraries_runner_recipes_and_types(tmp_path: Path) -> None:
    need("java", "npm")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"edgekit-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {f"edgekit/export_configs/{path.name}" for path in (ROOT / "export_configs").glob("*.yaml")}
    libraries = {f"edgekit/lowbit/native/{abi}/{file}" for abi, file in ABIS.items()}
    assert names >= {"edgekit/py.typed", build_hook.RUNNER, *recipes, *libraries}
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/", "edgekit/kernels/"))]


def test_why_there_is_no_runner_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_hook.runner_fault(str(tmp_path)) == "its sources are in a checkout only"
    said = "something else\njava is not installed; as root: apt-get install default-jdk\n"
    failed = subprocess.CompletedProcess([], 1, stdout=said)
    monkeypatch.setattr(build_hook, "run", lambda root, module: failed)
    assert build_hook.runner_fault(str(ROOT)) == "java is not installed; as root: apt-get install default-jdk"
