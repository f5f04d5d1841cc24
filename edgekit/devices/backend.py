"""A bundle where it can run: this machine or a device, which answer the same requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from edgekit.bundle import Bundle
from edgekit.devices.connection import LOCAL, Target, open_connection
from edgekit.devices.deploy import Deployed, deploy
from edgekit.devices.local import Local, open_local
from edgekit.errors import EdgekitError
from edgekit.spec.progress import Progress

Backend = Local | Deployed
"""A bundle that is ready to run somewhere."""
Result = TypeVar("Result")


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


def on_each(
    targets: Sequence[Target], work: Callable[[Target, Progress], Result], progress: Progress
) -> dict[str, Result | EdgekitError]:
    """What ``work`` gives for each target, or its error: this machine first and alone, then all devices at once."""
    lock = threading.Lock()

    def one(target: Target) -> Result | EdgekitError:
        def say(what: str, share: float) -> None:
            with lock:
                progress(what if target.text in what else f"{what} on {target.text}", share)

        try:
            return work(target, say)
        except EdgekitError as error:
            return error

    results = {target.text: one(target) for target in targets if target.kind == LOCAL}
    devices = [target for target in targets if target.kind != LOCAL]
    with ThreadPoolExecutor(max(1, len(devices))) as pool:
        results.update(zip((target.text for target in devices), pool.map(one, devices), strict=True))
    return {target.text: results[target.text] for target in targets}
