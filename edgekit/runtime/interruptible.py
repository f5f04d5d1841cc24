"""A generation in a thread of its own, which Ctrl-C can end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator

from edgekit.runtime.generation import Generation


def interruptible(running: Generation) -> Generator[str, None, None]:
    """The pieces of a generation that runs in a thread, so that Ctrl-C ends it at once, also within a long prompt.

    Then come the pieces that were ready, and KeyboardInterrupt. Whoever leaves early closes it, which ends the thread.
    """
    ready: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for piece in running:
                ready.put(piece)
            ready.put(None)
        except BaseException as error:  # handed over, whatever it is
            ready.put(error)

    thread = threading.Thread(target=work, name="generation", daemon=True)
    try:
        try:
            thread.start()
            yield from _until_end(ready)
        except KeyboardInterrupt:
            running.cancel()
            if thread.is_alive() or not ready.empty():  # Ctrl-C may come before the thread has begun
                yield from _until_end(ready)
            raise
    finally:
        running.cancel()
        if thread.is_alive():
            thread.join()


def _until_end(ready: queue.SimpleQueue[str | BaseException | None]) -> Iterator[str]:
    while (piece := ready.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece
