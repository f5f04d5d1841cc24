"""A bundle on a device, ready to run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.bundle import Bundle
from edgekit.devices.connection import Connection
from edgekit.devices.job import Job, check_hashes, send_bundle
from edgekit.devices.setup import inspect_linux, installed
from edgekit.devices.transfer import Progress
from edgekit.errors import UnsupportedError
from edgekit.lowbit.library import ABIS, CHOICE


@dataclass(frozen=True)
class Deployed:
    """Where a bundle lies on a device, and what runs it there."""

    connection: Connection
    bundle: Bundle
    directory: str
    library: str  # the operator library there; empty where none is used
    runtime: str  # "onnxruntime 1.29.0, Python 3.13.5"
    machine: str

    def job(self, threads: int, cores: Sequence[int] = (), **more: object) -> Job:
        """A runner for the bundle; ``more`` are settings of docs/runner.md."""
        settings = {"bundle": self.directory, "threads": threads, "library": self.library, **more}
        return Job(self.connection, settings, os.environ.get("EDGEKIT_ISA", ""), cores)


def deploy(connection: Connection, bundle: Bundle, progress: Progress) -> Deployed:
    """Pushes what the device does not have, and checks every file's hash there.

    Raises UnsupportedError for a device that cannot run bundles, RuntimeUnavailable when it is not set up, has no room or
    is out of reach, BundleError when a file on it is not the bundle's.
    """
    if connection.target.kind != "ssh":
        raise UnsupportedError(f"target {connection.name!r}: this edgekit runs bundles on 'local' and 'ssh:' only")
    linux = inspect_linux(connection)
    runtime = installed(connection)
    directory = send_bundle(connection, bundle, linux.abi, progress)
    progress(f"check hashes on {connection.name}", 0.0)
    check_hashes(connection, bundle, directory)
    native = bundle.manifest.uses_operators and os.environ.get(CHOICE) != "none"
    library = f"{connection.directory}/lib/{ABIS[linux.abi]}" if native else ""
    return Deployed(connection, bundle, directory, library, runtime, linux.machine)
