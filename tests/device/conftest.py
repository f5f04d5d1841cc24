"""The emulated devices, started once for all tests that ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.emulated_devices import DROID, PI, TOOL, Devices, set_up
from tests.support.tooling import need, require
from tools import build_runner
from tools import emulation_host as host


@pytest.fixture(scope="session")
def devices() -> Iterator[Devices]:
    """Both devices, up; ended when the tests are, unless they were up before."""
    require(sys.platform == "linux" and os.geteuid() == 0, "the emulated devices need Linux and root")
    found = Devices()
    before = subprocess.run([TOOL, "status"], capture_output=True, check=False).returncode == 0
    up = subprocess.run([TOOL, "up"], capture_output=True, text=True, check=False)
    require(up.returncode == 0, up.stderr)
    yield found
    if not before:
        found.tool("down")


@pytest.fixture
def pi(devices: Devices) -> str:
    """The emulated Pi's target, with ONNX Runtime installed there as a user would; kept until its disk is forgotten."""
    if not (host.STATE / "pi" / "upper" / "root" / ".edgekit-device" / "venv").is_dir():
        set_up(devices, PI)
    return PI


@pytest.fixture(scope="session")
def runner_jar() -> None:
    """The Android runner, built from the sources that are there."""
    need("java", "npm")
    build_runner.build()


@pytest.fixture
def droid(devices: Devices, runner_jar: None) -> str:
    """The emulated phone's target, with ONNX Runtime installed there as a user would; kept until its disk is forgotten."""
    if not (host.STATE / "droid" / "upper" / "data" / "local" / "tmp" / "edgekit" / "lib").is_dir():
        set_up(devices, DROID)
    return DROID
