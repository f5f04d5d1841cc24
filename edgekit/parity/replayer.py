"""Replays golden vectors wherever a bundle runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from edgekit.devices.backend import Backend
from edgekit.devices.job import isa_of, packed
from edgekit.errors import RuntimeUnavailable
from edgekit.metrics import Arrays
from edgekit.runtime.kernels import describe, from_nodes
from edgekit.runtime.replay import slots
from edgekit.runtime.session import graph_with_outputs

COMPRESSED, ORIGINAL = "compressed", "original"
REFERENCES = (COMPRESSED, ORIGINAL)

Run = Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Runs a graph: inputs by name, names of the values wanted."""


class Replayer:
    """A backend with a number of threads; ``kernel`` and ``versions`` are known after :meth:`answers`."""

    def __init__(self, backend: Backend, threads: int) -> None:
        self.backend, self._threads = backend, threads
        self.kernel, self.versions = "", dict[str, str]()

    def answers(self, vectors: Sequence[Arrays]) -> list[Arrays]:
        """What it answers to each golden vector of the bundle: the arrays of ``replay`` in docs/runner.md."""
        bundle, length = self.backend.bundle, 1
        if bundle.manifest.decoder is not None:
            length = max(map(slots, vectors))
        with self.backend.job(self._threads, max_length=length) as job:
            isa = isa_of(job.ask("load"))
            self.versions = self.backend.versions(job)
            answers: list[Arrays] = [
                self._checked(vector, job.arrays("replay", vector=info.file, arrays=packed(_wanted(vector))))
                for info, vector in zip(bundle.manifest.vectors, vectors, strict=True)
            ]
            self.kernel = describe(from_nodes(bundle, job.nodes(), isa))
        return answers

    def _checked(self, vector: Arrays, answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A device is trusted no further than a bundle: names and shapes must be those that were asked for."""
        manifest = self.backend.bundle.manifest
        if manifest.decoder is None:
            expected: dict[str, tuple[int, ...] | None] = {o.name: None for o in manifest.outputs}
        else:
            tokens = vector["input.input_ids"].shape[1]
            expected = {
                "top_indices": (tokens,), "logsumexp": (tokens,), "nll": (tokens - 1,),
                "logits": vector["compressed.logits"].shape,
                **{f"at.{who}": vector[f"{who}.top_indices"].shape for who in REFERENCES},
            }  # fmt: skip
        for name, shape in expected.items():
            if name not in answer or (shape is not None and answer[name].shape != shape):
                there = list(answer[name].shape) if name in answer else "nothing"
                raise RuntimeUnavailable(
                    f"{self.backend.name}: the runner answered {there} for {name!r}, {list(shape or ())} expected; "
                    "on a device `edgekit devices clean` and set up again; report it if it stays so"
                )
        return {name: answer[name] for name in expected}

    @contextmanager
    def tapped(self, values: Sequence[str]) -> Iterator[Run]:
        """The graph with intermediate ``values`` as outputs too."""
        with (
            self.backend.graph(graph_with_outputs(self.backend.bundle, values)) as name,
            self.backend.job(self._threads, graph=name) as job,
        ):
            job.ask("load")
            yield lambda inputs, names: job.arrays("run", arrays=packed(inputs), outputs=list(names))


def _wanted(vector: Arrays) -> dict[str, np.ndarray]:
    """The tokens whose logits are compared: those of the vector's file, unless the original was asked afresh."""
    return {name: vector[name] for name in (f"{who}.top_indices" for who in REFERENCES) if name in vector}
