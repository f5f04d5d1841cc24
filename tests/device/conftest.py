"""The emulated devices, started once for all tests that ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.tooling import require

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "emulated_devices"
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


@pytest.fixture(scope="session")
def pi(devices: Devices) -> str:
    """The emulated Pi's target, with ONNX Runtime installed there as a user would."""
    done = devices.edgekit("devices", "setup", PI)
    assert done.returncode == 0, done.stderr
    return PI
