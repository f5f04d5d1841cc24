"""Chat templates come with the model and are not trusted: they run in a sandbox, in a process with limits."""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from edgekit.errors import BundleError, RuntimeUnavailable
from edgekit.runtime.template import MEMORY, SECONDS

GLANCE = 0.02
"""Seconds between two looks at what the process takes."""


def render(template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str], where: str) -> str:
    """The text of a conversation, ending where the assistant begins.

    A message's content is a text, or a list of parts as templates of models that take pictures read them. ``special``
    holds ``bos_token`` and the like. Raises BundleError, beginning with ``where``, when the template is broken, does what
    the sandbox forbids, refuses the messages, or takes too much time or memory; RuntimeUnavailable when no process can be
    started.
    """
    plain = [{str(k): v if isinstance(v, list) else str(v) for k, v in message.items()} for message in messages]
    answer = _process_of_this_one().ask({"template": template, "messages": plain, "special": dict(special)})
    if "text" not in answer:
        raise BundleError(f"{where}: the chat template failed: {answer['error']}")
    return answer["text"]


class _Process:
    """A process that renders, kept for the next conversation: starting it takes a tenth of a second."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgekit.runtime.template"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},  # nothing from the current directory
            )  # fmt: skip
            self._watched = psutil.Process(self._process.pid)
        except (OSError, psutil.Error) as error:
            raise RuntimeUnavailable(
                f"{sys.executable}: chat templates run in a process of their own, which cannot be started ({error})"
            ) from error
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The answer, or ``error`` when the process had to be ended."""
        with self._lock:
            try:
                return self._ask(json.dumps(request).encode() + b"\n")
            except BaseException:  # also Ctrl-C: an answer that nobody waits for would be taken for the next one
                self.end()
                raise

    def _ask(self, request: bytes) -> dict[str, str]:
        assert self._process.stdin is not None
        try:
            began = self._seconds()
            self._process.stdin.write(request)
            self._process.stdin.flush()
            while True:
                try:
                    line = self._lines.get(timeout=GLANCE)
                    break
                except queue.Empty:
                    if self._seconds() - began > SECONDS:
                        return self._stopped(f"it does not end within {SECONDS} s")
                    if self._watched.memory_info().rss > MEMORY:
                        return self._stopped(f"it needs more than {MEMORY >> 20} MiB of memory")
        except (OSError, psutil.Error):
            line = b""
        if not line:
            return self._stopped("the process that ran it died")
        answer: dict[str, str] = json.loads(line)
        return answer

    def _stopped(self, reason: str) -> dict[str, str]:
        self.end()
        return {"error": reason}

    def _seconds(self) -> float:
        """Of processor time that it took so far."""
        times = self._watched.cpu_times()
        return float(times.user + times.system)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            self._lines.put(line)
        self._lines.put(b"")

    def end(self) -> None:
        """Ends the process; the next conversation starts another."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


_started = threading.Lock()
_process: _Process | None = None


def _process_of_this_one() -> _Process:
    """The one that this process keeps; a forked process starts its own."""
    global _process
    with _started:
        if _process is None or not _process.alive:
            if _process is not None and _process.owner == os.getpid():
                _process.end()
            _process = _Process()
        return _process


@atexit.register
def _end() -> None:
    if _process is not None and _process.alive:
        _process.end()
