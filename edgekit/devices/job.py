"""A bundle's runner at work: docs/runner.md over the pipes of one process."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit import errors
from edgekit.devices.connection import Done, last_line
from edgekit.errors import RuntimeUnavailable
from edgekit.spec import names

LONGEST_ANSWER = 1 << 30
"""Characters of one line at most: a device is trusted no further than a bundle."""
DTYPES = {"float32", "float16", "int64", "int32", "int8", "uint8", "bool"}
PATIENCE = 5.0
"""Seconds that a runner has to end in."""


def settings(bundle: str, threads: int, library: str, advice: str, **more: object) -> str:
    """What a runner is started with, as JSON; ``more`` are settings of docs/runner.md."""
    shared = {
        "oldest_onnxruntime": names.OLDEST_RUNTIME, "spin_us": names.SPIN_MICROSECONDS,
        "prompt_piece": names.PROMPT_PIECE, "replay_piece": names.REPLAY_PIECE,
        "round_seconds": names.ROUND_SECONDS, "round_runs": names.ROUND_RUNS,
    }  # fmt: skip
    return json.dumps({"bundle": bundle, "threads": threads, "library": library, "advice": advice, **shared, **more})


class Job:
    """A running runner. ``ask`` raises the runner's own error, RuntimeUnavailable when it dies or is out of reach."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        prefix: str = "",
        died: str = "was it killed for memory?",
        lost: Callable[[Done], str] = lambda done: "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts ``command``. ``prefix`` begins what the runner complains of; ``lost`` says why a connection broke."""
        self.name, self._prefix, self._died, self._lost = name, prefix, died, lost
        self._asked = "start"
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, env=environment,
            start_new_session=True,  # Ctrl-C is for edgekit, which ends the runner
        )  # fmt: skip
        try:
            self.facts = self.line()
        except BaseException as error:
            self.__exit__(error)
            raise

    def ask(self, what: str, **more: object) -> dict[str, Any]:
        """The first line that answers a request."""
        assert self._process.stdin is not None
        self._asked = what
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
            if text:  # no runner speaks so
                self._process.kill()
            raise RuntimeUnavailable(f"{self.name}: {self._death()}")
        if "error" in answer:
            named = getattr(errors, str(answer["error"]), None)
            kind = named if isinstance(named, type) and issubclass(named, errors.EdgekitError) else RuntimeUnavailable
            raise kind(f"{self._prefix}{answer.get('message')}")
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
        """Operator and name of every node that a profiled run ran; what was loaded before is let go."""
        events = self.ask("profile").get("events")
        if not isinstance(events, list):
            raise RuntimeUnavailable(f"{self.name}: the runner's profile holds no events; push it again")
        return [(str(event["op"]), str(event["name"])) for event in events]

    @property
    def pid(self) -> int:
        """The runner's process id on its machine."""
        return int(self.facts["pid"])

    def stop(self) -> None:
        """Ends the runner at once, from any thread; whoever waits for its answer gets RuntimeUnavailable."""
        self._process.kill()

    def _death(self) -> str:
        try:
            code = self._process.wait(PATIENCE)  # it has closed its end
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._messages.seek(0)
        words = self._messages.read().decode("utf-8", "replace")
        if lost := self._lost(Done(code, b"", words)):
            return lost
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the runner ended at {self._asked!r} ({how}: {last_line(words, 'without a word')}); {self._died}"

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the runner ends with its stdin
        self._process.stdin = None
        try:
            self._process.communicate(timeout=0 if any(error) else PATIENCE)
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
