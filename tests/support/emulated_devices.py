"""The emulated devices of tools/emulated_devices, as tests reach them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.tooling import ROOT
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
            self.argv(*command), input=stdin, capture_output=True, check=False, timeout=1800,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def killed(self, part: str, arguments: tuple[str, ...], when: Callable[[str], bool]) -> tuple[int, list[str]]:
        """edgekit's exit code and lines on stderr when ``part`` loses power as soon as ``when`` is true for its last line."""
        errors = Path(arguments[1]).with_suffix(".stderr")
        known = host.processes(part)  # finding them takes as long as a file may take to arrive
        with errors.open("wb") as file:
            command = self.argv(sys.executable, "-m", "edgekit", *arguments)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
            while not when((errors.read_text().splitlines() or [""])[-1]):
                assert process.poll() is None, errors.read_text()
                time.sleep(0.005)
            _suspend(known)  # at once; the tool takes its time to begin
            _suspend(host.processes(part))
            self.tool("kill", part)
            code = process.wait(timeout=1800)
        return code, errors.read_text().splitlines()

    def edgekit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs edgekit with variables of its own."""
        done = self.run(sys.executable, "-m", "edgekit", *arguments, environment=environment)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def _suspend(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def set_up(devices: Devices, target: str) -> None:
    """``edgekit devices setup`` of one of the two."""
    extra = ("--aar", str(ROOT / "build" / "ort-android")) if target == DROID else ()
    done = devices.edgekit("devices", "setup", target, *extra)
    assert done.returncode == 0, done.stderr
