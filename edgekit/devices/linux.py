"""Linux devices over ssh. ONNX Runtime lives in a virtual environment below edgekit's directory, made of the host's
wheels.

The device needs no network, no pip and no compiler: only Python with its venv module.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices import runner
from edgekit.devices.connection import Connection, last_line
from edgekit.devices.transfer import Item, item_of, push
from edgekit.errors import RuntimeUnavailable, UnsupportedError
from edgekit.spec.progress import Progress

ONNXRUNTIME = "1.29.0"
"""The same everywhere: the newest that Android's packages within reach have too."""
PYTHONS = {(3, 11): "2.3.5", (3, 12): "2.3.5", (3, 13): "2.3.5"}
"""numpy by version of the device's Python."""
MACHINES = {"aarch64": "linux-aarch64", "x86_64": "linux-x86_64"}
"""The operator library's name by ``uname -m``."""
OLDEST_GLIBC = (2, 27)
_FACTS = (
    "uname -sm; getconf LONG_BIT; getconf GNU_LIBC_VERSION 2>/dev/null || echo none; "
    "python3 -c 'import sys, venv; print(*sys.version_info[:2])' 2>/dev/null || echo none"
)


@dataclass(frozen=True)
class Linux:
    """What has to be known of a Linux device before anything is installed there."""

    machine: str  # "aarch64" or "x86_64"
    python: tuple[int, int]
    glibc: tuple[int, int]

    @property
    def abi(self) -> str:
        """The operator library's name for it."""
        return MACHINES[self.machine]

    def runner_files(self) -> list[Item]:
        """What has to be there besides a bundle and :func:`setup_linux`."""
        return [item_of(Path(runner.__file__), "runner/runner.py")]

    def command(self, directory: str, variables: str, prefix: str, settings: str) -> str:
        """The script that becomes a runner; ``variables``, ``prefix`` and ``settings`` are quoted already."""
        return (
            f"cd {shlex.quote(directory)} && exec env {variables} {prefix}venv/bin/python runner/runner.py {settings}"
        )


def inspect_linux(connection: Connection) -> Linux:
    """Asks the device. Raises UnsupportedError, naming what would be needed, for what ONNX Runtime has no wheel for."""
    lines = connection.text(_FACTS).splitlines()
    system, bits, glibc, python = (*lines, "", "", "", "")[:4]
    machine = system.removeprefix("Linux ")
    if bits.strip() != "64" or machine not in MACHINES:
        raise UnsupportedError(
            f"{connection.name}: {system.strip() or 'an unknown system'} with {bits.strip() or '?'} bits; ONNX Runtime has "
            "wheels for 64-bit Linux only (aarch64, x86_64): install the 64-bit Raspberry Pi OS"
        )
    if (libc := _version(glibc)) < OLDEST_GLIBC:
        raise UnsupportedError(
            f"{connection.name}: C library {glibc.strip()!r}; ONNX Runtime's wheels need glibc "
            f"{'.'.join(map(str, OLDEST_GLIBC))} or newer"
        )
    if (version := _version(python)) not in PYTHONS:
        known = ", ".join(f"{a}.{b}" for a, b in PYTHONS)
        raise UnsupportedError(
            f"{connection.name}: python3 with venv is {python.strip()!r} there; ONNX Runtime {ONNXRUNTIME} has wheels for "
            f"Python {known}: install one of them with its venv module"
        )
    return Linux(machine, version, libc)


def setup_linux(connection: Connection, wheels: Path | None, progress: Progress) -> str:
    """Makes the environment and returns what runs in it, e.g. "onnxruntime 1.29.0, Python 3.13.5".

    ``wheels`` is a directory that holds the wheels; without it the host downloads them. Raises UnsupportedError as
    :func:`inspect_linux`, RuntimeUnavailable when the wheels cannot be had or do not run there.
    """
    device = inspect_linux(connection)
    with tempfile.TemporaryDirectory(prefix="edgekit-wheels-") as scratch:
        progress("download wheels", 0.0)
        files = _wheels(device, wheels or _download(device, Path(scratch)))
        push(connection, [item_of(wheel, f"wheels/{wheel.name}") for wheel in files], progress)
    progress(f"install on {connection.name}", 0.0)
    packages = f"venv/lib/python{device.python[0]}.{device.python[1]}/site-packages"
    unpack = " && ".join(f"python3 -m zipfile -e wheels/{shlex.quote(w.name)} {packages}" for w in files)
    connection.text(
        f"cd {shlex.quote(connection.directory)} && rm -rf venv && python3 -m venv --without-pip venv && {unpack}",
        timeout=900,
    )
    return installed(connection)


def installed(connection: Connection) -> str:
    """What is set up on the device. Raises RuntimeUnavailable when nothing is, or when it does not run."""
    script = (
        f"cd {shlex.quote(connection.directory)} 2>/dev/null && [ -x venv/bin/python ] || exit 44; "
        "ORT_DISABLE_TELEMETRY=1 venv/bin/python -c 'import onnxruntime, platform; "
        'print("onnxruntime", onnxruntime.__version__ + ",", "Python", platform.python_version())\''
    )
    done = connection.run(script)
    if done.code == 44:
        raise RuntimeUnavailable(
            f"{connection.name}: ONNX Runtime is not set up there; run `edgekit devices setup {connection.name}` once"
        )
    if done.code != 0:
        raise RuntimeUnavailable(
            f"{connection.name}: ONNX Runtime does not run there ({last_line(done.stderr)}); "
            f"`edgekit devices setup {connection.name}` again"
        )
    return done.stdout.decode("utf-8", "replace").strip()


def _download(device: Linux, folder: Path) -> Path:
    platforms = [
        f"--platform=manylinux_{major}_{minor}_{device.machine}"
        for major, minor in ((2, 28), (2, 27), (2, 17))
        if (major, minor) <= device.glibc
    ]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
        f"--python-version={device.python[0]}.{device.python[1]}", "--implementation=cp", *platforms, "--dest", str(folder),
        f"onnxruntime=={ONNXRUNTIME}", f"numpy=={PYTHONS[device.python]}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PIP_NO_INPUT": "1"})
    if done.returncode != 0:
        raise RuntimeUnavailable(
            f"pip could not download ONNX Runtime {ONNXRUNTIME} for {device.machine} ({last_line(done.stderr)}); "
            "without network give --wheels a directory that holds the wheels"
        )
    return folder


def _wheels(device: Linux, folder: Path) -> list[Path]:
    """The two wheels in ``folder``."""
    wheels = []
    for name in ("onnxruntime", "numpy"):
        tag = f"cp{device.python[0]}{device.python[1]}"
        fitting = sorted(p for p in folder.glob(f"{name}-*.whl") if tag in p.name and device.machine in p.name)
        if not fitting:
            raise RuntimeUnavailable(f"{folder}: no wheel of {name} for {tag} on {device.machine}")
        wheels.append(fitting[-1])
    return wheels


def _version(text: str) -> tuple[int, int]:
    numbers = re.search(r"(\d+)[. ](\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
