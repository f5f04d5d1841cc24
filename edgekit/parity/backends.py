"""Where golden vectors are replayed: this machine, or a device."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from edgekit.bundle import Bundle
from edgekit.devices.connection import Connection
from edgekit.devices.deploy import deploy
from edgekit.devices.job import isa_of, packed
from edgekit.devices.transfer import Item, push
from edgekit.errors import RuntimeUnavailable
from edgekit.metrics import Arrays
from edgekit.runtime.kernels import describe, from_nodes, kernels
from edgekit.runtime.replay import open_decoder, replay_sample, replay_text
from edgekit.runtime.session import Session, graph_with_outputs, onnxruntime
from edgekit.spec.progress import Progress

COMPRESSED, ORIGINAL = "compressed", "original"
REFERENCES = (COMPRESSED, ORIGINAL)

Run = Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Runs a graph: inputs by name, names of the values wanted."""


class Place(Protocol):
    """A machine that runs one bundle."""

    versions: dict[str, str]

    def answers(self, vectors: Sequence[Arrays]) -> list[Arrays]:
        """What the machine answers to each golden vector: the arrays of replay_text or replay_sample."""

    def tapped(self, values: Sequence[str]) -> AbstractContextManager[Run]:
        """The graph with intermediate ``values`` as outputs too."""

    def kernel(self) -> str:
        """Which kernels run."""


class Here:
    """This machine."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle, self._threads = bundle, threads
        self.versions = {
            "onnxruntime": onnxruntime().__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }

    def answers(self, vectors: Sequence[Arrays]) -> list[Arrays]:
        if self._bundle.manifest.decoder is None:
            session = Session(self._bundle, self._threads)
            return [replay_sample(session, vector) for vector in vectors]
        decoder = open_decoder(self._bundle, self._threads, _longest(vectors))
        found: list[Arrays] = []
        for vector in vectors:
            at = {who: vector[f"{who}.top_indices"] for who in REFERENCES}
            steps = len(vector["compressed.logits"]) - 1
            found.append(replay_text(decoder, vector["input.input_ids"], steps, at))
        return found

    @contextmanager
    def tapped(self, values: Sequence[str]) -> Iterator[Run]:
        yield Session(self._bundle, self._threads, extra_outputs=values).run

    def kernel(self) -> str:
        return describe(kernels(self._bundle, self._threads))


class OnDevice:
    """A device."""

    def __init__(self, connection: Connection, bundle: Bundle, threads: int, progress: Progress) -> None:
        """Pushes the bundle; raises as :func:`edgekit.devices.deploy.deploy`."""
        self._connection, self._bundle, self._threads = connection, bundle, threads
        self._deployed = deploy(connection, bundle, progress)
        self.versions = {"device": self._deployed.runtime, "machine": self._deployed.system.machine}
        self._isa = ""

    def answers(self, vectors: Sequence[Arrays]) -> list[Arrays]:
        length = _longest(vectors) if self._bundle.manifest.decoder is not None else 1
        with self._deployed.job(self._threads, max_length=length) as job:
            self._isa = isa_of(job.ask("load"))
            self.versions["device"] = f"onnxruntime {job.facts.get('onnxruntime')}, {job.facts.get('runtime')}"
            return [
                self._checked(vector, job.arrays("replay", vector=info.file))
                for info, vector in zip(self._bundle.manifest.vectors, vectors, strict=True)
            ]

    def _checked(self, vector: Arrays, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A device is trusted no further than a bundle: names and shapes must be those that were asked for."""
        if self._bundle.manifest.decoder is None:
            expected: dict[str, tuple[int, ...] | None] = {o.name: None for o in self._bundle.manifest.outputs}
        else:
            tokens = vector["input.input_ids"].shape[1]
            expected = {
                "top_indices": (tokens,), "logsumexp": (tokens,), "nll": (tokens - 1,),
                "logits": vector["compressed.logits"].shape,
                **{f"at.{who}": vector[f"{who}.top_indices"].shape for who in REFERENCES},
            }  # fmt: skip
        for name, shape in expected.items():
            if name not in found or (shape is not None and found[name].shape != shape):
                there = list(found[name].shape) if name in found else "nothing"
                raise RuntimeUnavailable(
                    f"{self._connection.name}: the runner answered {there} for {name!r}, {list(shape or ())} expected; "
                    "`edgekit devices clean`, set up again, and report it if it stays so"
                )
        return {name: found[name] for name in expected}

    @contextmanager
    def tapped(self, values: Sequence[str]) -> Iterator[Run]:
        graph = graph_with_outputs(self._bundle, values)
        digest = hashlib.sha256(graph).hexdigest()
        name = f"tapped-{digest[:16]}.onnx"
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(graph)
            folder = self._deployed.directory.removeprefix(f"{self._connection.directory}/")
            push(self._connection, [Item(file, f"{folder}/{name}", digest, len(graph))])
        with self._deployed.job(self._threads, graph=name) as job:
            job.ask("load")
            yield lambda inputs, names: job.arrays("run", arrays=packed(inputs), outputs=list(names))

    def kernel(self) -> str:
        with self._deployed.job(self._threads) as job:
            return describe(from_nodes(self._bundle, job.nodes(), self._isa))


def _longest(vectors: Sequence[Arrays]) -> int:
    return max((vector["input.input_ids"].shape[1] for vector in vectors), default=1)
