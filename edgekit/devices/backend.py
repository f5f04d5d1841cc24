"""A bundle where it can run: this machine or a device, which answer the same requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from edgekit.bundle import Bundle
from edgekit.devices.connection import open_connection
from edgekit.devices.deploy import deploy
from edgekit.devices.job import Job
from edgekit.devices.local import open_local
from edgekit.devices.target import LOCAL, Target
from edgekit.spec.progress import Progress


class Backend(Protocol):
    """A bundle that is ready to run somewhere."""

    @property
    def name(self) -> str:
        """The target, or the bundle's directory on this machine: how messages begin."""

    @property
    def bundle(self) -> Bundle:
        """What runs."""

    def job(self, threads: int, **more: object) -> Job:
        """A runner for the bundle; ``more`` are settings of docs/runner.md."""

    def graph(self, graph: bytes) -> AbstractContextManager[str]:
        """Another graph on the bundle's weights: its name for the setting ``graph``."""

    def versions(self, job: Job) -> dict[str, str]:
        """What runs there, for reports."""


@contextmanager
def open_backend(target: Target, bundle: Bundle, progress: Progress) -> Iterator[Backend]:
    """A bundle where ``target`` says, until the context ends.

    Raises RuntimeUnavailable when the operator library cannot be used, and as :func:`edgekit.devices.deploy.deploy`.
    """
    if target.kind == LOCAL:
        yield open_local(bundle)
        return
    with open_connection(target) as connection:
        yield deploy(connection, bundle, progress)
