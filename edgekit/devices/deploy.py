"""A bundle on a device, ready to run."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.devices import linux, phone
from edgekit.devices.connection import Connection
from edgekit.devices.job import Job, settings
from edgekit.devices.transfer import Item, item_of, push
from edgekit.errors import BundleError
from edgekit.lowbit.library import ABIS, CHOICE, built_library
from edgekit.spec.names import MANIFEST
from edgekit.spec.progress import Progress

HASHING_SECONDS = 1800.0
"""A slow card reads a large bundle for minutes."""


System = linux.Linux | phone.Android


@dataclass(frozen=True)
class Deployed:
    """Where a bundle lies on a device, and what runs it there."""

    connection: Connection
    bundle: Bundle
    system: System
    directory: str
    library: str  # the operator library there; empty where none is used
    cores: tuple[int, ...] = ()  # that runners are kept on; any where there are none

    @property
    def name(self) -> str:
        """The target as the user wrote it."""
        return self.connection.name

    def job(self, threads: int, **more: object) -> Job:
        """A runner for the bundle, kept on ``cores``; ``more`` are settings of docs/runner.md."""
        advice, needed = f"run `edgekit devices setup {self.name}`", self.bundle.manifest.needs_operators
        asked = settings(self.directory, threads, self.library, advice, library_needed=needed, **more)
        isa = os.environ.get("EDGEKIT_ISA", "")
        variables = "ORT_DISABLE_TELEMETRY=1" + (f" EDGEKIT_ISA={shlex.quote(isa)}" if isa else "")
        prefix = f"taskset {sum(1 << core for core in self.cores):x} " if self.cores else ""
        script = self.system.command(self.connection.directory, variables, prefix, shlex.quote(asked))
        return device_job(self.connection, script)

    @contextmanager
    def graph(self, graph: bytes) -> Iterator[str]:
        """A file beside the bundle's, where it stays until the device is cleaned."""
        digest = hashlib.sha256(graph).hexdigest()
        name = f"tapped-{digest[:16]}.onnx"
        folder = self.directory.removeprefix(f"{self.connection.directory}/")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(graph)
            push(self.connection, [Item(file, f"{folder}/{name}", digest, len(graph))])
        yield name

    def versions(self, job: Job) -> dict[str, str]:
        """What runs there, and its processor."""
        running = f"onnxruntime {job.facts.get('onnxruntime')}, {job.facts.get('runtime')}"
        return {"device": running, "machine": self.system.machine}


def device_job(connection: Connection, script: str) -> Job:
    """The runner that a script on a device becomes."""
    return Job(
        connection.name, connection.argv(script), prefix=f"{connection.name}: ", lost=connection.lost,
        died="was it killed for memory, or the device switched off?",
    )  # fmt: skip


def deploy(connection: Connection, bundle: Bundle, progress: Progress) -> Deployed:
    """Pushes what the device does not have, and checks every file's hash there.

    Raises UnsupportedError for a device that cannot run bundles, RuntimeUnavailable when it is not set up, has no room
    or is out of reach, BundleError when a file on it is not the bundle's.
    """
    system: System
    if connection.target.kind == "adb":
        system = phone.inspect_android(connection)
        phone.installed(connection)
    else:
        system = linux.inspect_linux(connection)
        linux.installed(connection)
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
    return Deployed(connection, bundle, system, directory, library)


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
