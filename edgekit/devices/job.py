"""A bundle's runner at work on a device: docs/runner.md over one connection."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgekit import errors
from edgekit.bundle import Bundle
from edgekit.bundle.manifest import NAME
from edgekit.bundle.reading import sha256
from edgekit.devices import runner
from edgekit.devices.connection import Connection, Done
from edgekit.devices.transfer import Item, Progress, push
from edgekit.errors import RuntimeUnavailable
from edgekit.lowbit.library import ABIS, built_library

LONGEST_ANSWER = 1 << 30
"""Characters of one line at most: a device is trusted no further than a bundle."""
DTYPES = {"float32", "float16", "int64", "int32", "int8", "uint8", "bool"}


def send_bundle(connection: Connection, bundle: Bundle, abi: str, progress: Progress) -> str:
    """Pushes a bundle, the runner and the operator library; returns the bundle's directory on the device.

    Raises RuntimeUnavailable as :func:`edgekit.devices.transfer.push`.
    """
    manifest = item_of(bundle.directory / NAME, "")
    folder = f"bundles/{manifest.sha256[:16]}"
    items = [Item(manifest.source, f"{folder}/{NAME}", manifest.sha256, manifest.bytes)]
    items += [Item(bundle.directory / f.path, f"{folder}/{f.path}", f.sha256, f.bytes) for f in bundle.manifest.files]
    items.append(item_of(Path(runner.__file__), "runner/runner.py"))
    if bundle.manifest.uses_operators:
        items.append(item_of(built_library(abi), f"lib/{ABIS[abi]}"))
    push(connection, items, progress)
    return f"{connection.directory}/{folder}"


def check_hashes(connection: Connection, bundle: Bundle, directory: str) -> None:
    """Compares every file of a bundle on the device with its sha256. Raises BundleError naming the file."""
    listed = "".join(f"{f.sha256}  {f.path}\n" for f in bundle.manifest.files)
    done = connection.run(f"cd {shlex.quote(directory)} && sha256sum -c -", stdin=listed.encode(), timeout=1800)
    if done.code != 0:
        wrong = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if not line.endswith(": OK")]
        raise errors.BundleError(
            f"{connection.name}: {wrong[0] if wrong else done.stderr.strip()}: the file on the device is not the "
            "bundle's; `edgekit devices clean` and run again"
        )


class Job:
    """A running runner. ``ask`` raises the runner's own error, RuntimeUnavailable when the device or the runner dies."""

    def __init__(
        self, connection: Connection, settings: Mapping[str, object], isa: str = "", cores: Sequence[int] = ()
    ) -> None:
        """``settings`` as docs/runner.md; ``isa`` forces an instruction set, ``cores`` are those it may run on (any)."""
        self.name = connection.name
        self._connection = connection
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            connection.argv(_command(connection, settings, isa, cores)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages,
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
            kind = getattr(errors, str(answer["error"]), errors.RuntimeUnavailable)
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


def _command(connection: Connection, settings: Mapping[str, object], isa: str, cores: Sequence[int]) -> str:
    variables = ["ORT_DISABLE_TELEMETRY=1", *([f"EDGEKIT_ISA={shlex.quote(isa)}"] if isa else [])]
    mask = f"taskset {sum(1 << core for core in cores):x} " if cores else ""
    given = shlex.quote(json.dumps(settings))
    return (
        f"cd {shlex.quote(connection.directory)} && exec env {' '.join(variables)} "
        f"{mask}venv/bin/python runner/runner.py {given}"
    )


def item_of(source: Path, path: str) -> Item:
    """A local file, to be pushed to ``path``."""
    return Item(source, path, sha256(source), os.path.getsize(source))
