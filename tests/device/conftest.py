"""The emulated devices, started once for all tests that ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native.tooling import ROOT, need, require
from tools import build_runner
from tools import emulation_host as host

TOOL = ROOT / "tools" / "emulated_devices"
PI, DROID = "ssh:pi", "adb:127.0.0.1:5555"


class Devices:
    """``tools/emulated_devices``, and commands that reach the devices."""

    def tool(self, *arguments: str) -> str:
        """What the tool prints; it has to succeed."""
        done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def argv(self, *command: str) -> list[str]:
        """A command that reaches the devices."""
        return [str(TOOL), "exec", *command]

    def run(
        self, *command: str, stdin: bytes = b"", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command that reaches the devices to its end."""
        return subprocess.run(
            self.argv(*command), input=stdin, capture_output=True, check=False, timeout=600,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def killed(self, part: str, arguments: tuple[str, ...], when: Callable[[str], bool]) -> tuple[int, list[str]]:
        """edgekit's exit code and lines on stderr when ``part`` loses power as soon as ``when`` is true for its last line."""
        errors = Path(arguments[1]).with_suffix(".stderr")
        with errors.open("wb") as file:
            command = self.argv(sys.executable, "-m", "edgekit", *arguments)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
            while not when((errors.read_text().splitlines() or [""])[-1]):
                assert process.poll() is None, errors.read_text()
                time.sleep(0.01)
            for running in host.processes(part):
                running.suspend()  # at once; the tool takes its time to begin
            self.tool("kill", part)
            code = process.wait(timeout=300)
        return code, errors.read_text().splitlines()

    def edgekit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs edgekit with variables of its own."""
        done = self.run(sys.executable, "-m", "edgekit", *arguments, environment=environment)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


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


def set_up(devices: Devices, target: str) -> None:
    """``edgekit devices setup`` of one of the two."""
    extra = ("--aar", str(ROOT / "build" / "ort-android")) if target == DROID else ()
    done = devices.edgekit("devices", "setup", target, *extra)
    assert done.returncode == 0, done.stderr
