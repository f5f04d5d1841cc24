"""A bundle's runner at work on a device: docs/runner.md over one connection."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from edgekit import errors
from edgekit.devices.connection import Connection, Done
from edgekit.errors import RuntimeUnavailable

LONGEST_ANSWER = 1 << 30
"""Characters of one line at most: a device is trusted no further than a bundle."""
DTYPES = {"float32", "float16", "int64", "int32", "int8", "uint8", "bool"}


class Job:
    """A running runner. ``ask`` raises the runner's own error, RuntimeUnavailable when the device or the runner dies."""

    def __init__(self, connection: Connection, command: str) -> None:
        """``command`` is the script that becomes the runner."""
        self.name = connection.name
        self._connection = connection
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            connection.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages,
        )  # fmt: skip
        try:
            self.facts = self.line()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def ask(self, what: str, **more: object) -> dict[str, Any]:
        """The first line that answers a request."""
        assert self._process.stdin is not None
        # A runner that has ended left its last words.
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps({"do": what, **more}) + "\n").encode())
            self._process.stdin.flush()
        return self.line()

    def line(self) -> dict[str, Any]:
        """The next line of an answer."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline(LONGEST_ANSWER)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RuntimeUnavailable(f"{self.name}: {self._death()}")
        if "error" in answer:
            named = getattr(errors, str(answer["error"]), None)
            kind = named if isinstance(named, type) and issubclass(named, errors.EdgekitError) else RuntimeUnavailable
            raise kind(f"{self.name}: {answer.get('message')}")
        return answer

    def arrays(self, what: str, **more: object) -> dict[str, np.ndarray]:
        """An answer's arrays. Raises RuntimeUnavailable for anything that is none."""
        try:
            return {str(name): _array(entry) for name, entry in self.ask(what, **more)["arrays"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RuntimeUnavailable(
                f"{self.name}: the runner's answer to {what!r} holds no arrays ({error})"
            ) from error

    def nodes(self) -> list[tuple[str, str]]:
        """Operator and name of every node that a profiled run ran."""
        events = self.ask("profile").get("events")
        if not isinstance(events, list):
            raise RuntimeUnavailable(f"{self.name}: the runner's profile holds no events; push it again")
        return [(str(event["op"]), str(event["name"])) for event in events]

    @property
    def pid(self) -> int:
        """The runner's process id on the device."""
        return int(self.facts["pid"])

    def _death(self) -> str:
        self._process.kill()
        _, code = self._process.communicate(), self._process.wait()
        self._messages.seek(0)
        words = self._messages.read().decode("utf-8", "replace")
        if lost := self._connection.lost(Done(code, b"", words)):
            return lost
        last = (words.strip().splitlines() or ["without a word"])[-1][:300]
        return f"the runner ended ({last}); was it killed for memory, or the device switched off?"

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the runner ends with its stdin
        self._process.stdin = None
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._messages.close()


def packed(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Arrays as a request carries them."""
    return {
        name: {"dtype": a.dtype.name, "shape": list(a.shape), "data": base64.b64encode(a.tobytes()).decode("ascii")}
        for name, a in arrays.items()
    }


def isa_of(answer: Mapping[str, Any]) -> str:
    """The instruction set of the operator library in an answer to ``load`` or ``finish``; empty without library."""
    facts = str(answer.get("operators", "")).partition(";")[0].split()
    return facts[1] if len(facts) > 1 else ""


def _array(entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r}")
    return np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"]).reshape(entry["shape"])
