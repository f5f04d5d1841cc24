"""A bundle on a device, ready to run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekit.bundle import Bundle
from edgekit.devices import linux, phone
from edgekit.devices.connection import Connection
from edgekit.devices.job import Job
from edgekit.devices.transfer import Item, item_of, push
from edgekit.errors import BundleError
from edgekit.lowbit.library import ABIS, CHOICE, built_library
from edgekit.spec.names import MANIFEST
from edgekit.spec.progress import Progress

HASHING_SECONDS = 1800.0
"""A slow card reads a large bundle for minutes."""


class System(Protocol):
    """What kind of system runs on a device, and how a runner is started there."""

    @property
    def machine(self) -> str:
        """As ``uname -m`` calls its processor."""

    @property
    def abi(self) -> str:
        """The operator library's name for it."""

    def runner_files(self) -> list[Item]:
        """The runner itself."""

    def command(self, directory: str, variables: str, prefix: str, settings: str) -> str:
        """The script that becomes a runner."""


@dataclass(frozen=True)
class Deployed:
    """Where a bundle lies on a device, and what runs it there."""

    connection: Connection
    bundle: Bundle
    system: System
    directory: str
    library: str  # the operator library there; empty where none is used
    runtime: str  # "onnxruntime 1.29.0, Python 3.13.5"

    def job(self, threads: int, cores: Sequence[int] = (), **more: object) -> Job:
        """A runner for the bundle, kept on ``cores`` (any); ``more`` are settings of docs/runner.md."""
        settings = {"bundle": self.directory, "threads": threads, "library": self.library, **more}
        isa = os.environ.get("EDGEKIT_ISA", "")
        variables = "ORT_DISABLE_TELEMETRY=1" + (f" EDGEKIT_ISA={shlex.quote(isa)}" if isa else "")
        prefix = f"taskset {sum(1 << core for core in cores):x} " if cores else ""
        given = shlex.quote(json.dumps(settings))
        return Job(self.connection, self.system.command(self.connection.directory, variables, prefix, given))


def deploy(connection: Connection, bundle: Bundle, progress: Progress) -> Deployed:
    """Pushes what the device does not have, and checks every file's hash there.

    Raises UnsupportedError for a device that cannot run bundles, RuntimeUnavailable when it is not set up, has no room or
    is out of reach, BundleError when a file on it is not the bundle's.
    """
    system: System
    if connection.target.kind == "adb":
        system, runtime = phone.inspect_android(connection), phone.installed(connection)
    else:
        system, runtime = linux.inspect_linux(connection), linux.installed(connection)
    manifest = item_of(bundle.directory / MANIFEST, "")
    folder = f"bundles/{manifest.sha256[:16]}"
    items = [Item(manifest.source, f"{folder}/{MANIFEST}", manifest.sha256, manifest.bytes), *system.runner_files()]
    items += [Item(bundle.directory / f.path, f"{folder}/{f.path}", f.sha256, f.bytes) for f in bundle.manifest.files]
    library = ""
    if bundle.manifest.uses_operators and os.environ.get(CHOICE) != "none":
        items.append(item_of(built_library(system.abi), f"lib/{ABIS[system.abi]}"))
        library = f"{connection.directory}/{items[-1].path}"
    push(connection, items, progress)
    directory = f"{connection.directory}/{folder}"
    progress(f"check hashes on {connection.name}", 0.0)
    _check_hashes(connection, bundle, directory)
    return Deployed(connection, bundle, system, directory, library, runtime)


def _check_hashes(connection: Connection, bundle: Bundle, directory: str) -> None:
    listed = "".join(f"{f.sha256}  {f.path}\n" for f in bundle.manifest.files)
    script = f"cd {shlex.quote(directory)} && sha256sum -c -"
    done = connection.run(script, stdin=listed.encode(), timeout=HASHING_SECONDS)
    if done.code != 0:
        wrong = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if not line.endswith(": OK")]
        raise BundleError(
            f"{connection.name}: {wrong[0] if wrong else done.stderr.strip()}: the file on the device is not the "
            "bundle's; `edgekit devices clean` and run again"
        )
