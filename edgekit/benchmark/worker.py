"""The process that is measured: loads one bundle in a fresh interpreter and times what it is told, request by request.

Requests come on stdin and answers go to stdout, one JSON object a line: {"do": "load"}, "first", "round", "finish".
Times are milliseconds. An answer with "error" names what went wrong and ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from edgekit.benchmark import memory
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError, UsageError

ROUND_SECONDS = 0.3
"""A phase is repeated for about this long in each round: short runs need many to be timed well."""
MOST_RUNS = 200

Times = dict[str, list[float]]


class Subject(Protocol):
    """What a worker measures."""

    def load(self) -> None:
        """Makes it ready to run."""

    def first(self) -> None:
        """Runs it once."""

    def round(self) -> Times:
        """Milliseconds of each repetition, by phase."""

    def kernel(self) -> str:
        """Which kernels run; nothing is timed any more."""


class DecoderSubject:
    """A language model: prefill of a prompt, then greedy decoding."""

    def __init__(self, bundle: Bundle, threads: int, prompt_tokens: int, new_tokens: int) -> None:
        info = bundle.manifest.decoder
        assert info is not None
        if prompt_tokens + new_tokens > info.max_length:
            raise UsageError(
                f"{bundle.directory}: {prompt_tokens} + {new_tokens} tokens; the context holds {info.max_length}"
            )
        self._bundle, self._threads, self._new = bundle, threads, new_tokens
        ids = bundle.vectors()[0][1]["input.input_ids"]
        self._prompt = np.ascontiguousarray(np.resize(ids, (1, prompt_tokens)))  # a short text is repeated

    def load(self) -> None:
        from edgekit.runtime.decoder import Decoder

        self._decoder = Decoder(self._bundle, self._threads, max_length=self._prompt.shape[1] + self._new)

    def first(self) -> None:
        self._prefill()

    def round(self) -> Times:
        return {"prefill": repeated(self._prefill), "decode": list(self._decode())}

    def kernel(self) -> str:
        del self._decoder  # two copies of a large model may not fit
        return _kernel(self._bundle, self._threads)

    def _prefill(self) -> None:
        self._decoder.reset()
        self._next = self._decoder.run(self._prompt)[0, -1].argmax()

    def _decode(self) -> Iterator[float]:
        for _ in range(self._new):
            began = time.perf_counter()
            self._next = self._decoder.run(np.array([[self._next]], np.int64))[0, -1].argmax()
            yield (time.perf_counter() - began) * 1e3


class SampleSubject:
    """Any other model: the latency of its first golden input."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        from edgekit.runtime.replay import feeds

        self._bundle, self._threads = bundle, threads
        self._feeds = feeds(bundle.vectors()[0][1])

    def load(self) -> None:
        from edgekit.runtime.session import Session

        self._session = Session(self._bundle, self._threads)

    def first(self) -> None:
        self._session.run(self._feeds)

    def round(self) -> Times:
        return {"latency": repeated(self.first)}

    def kernel(self) -> str:
        del self._session
        return _kernel(self._bundle, self._threads)


def _kernel(bundle: Bundle, threads: int) -> str:
    from edgekit.runtime.kernels import describe, kernels

    gc.collect()
    return describe(kernels(bundle, threads))


def repeated(run: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> list[float]:
    """Milliseconds of each run, repeated for about ROUND_SECONDS and at least twice; ``prepare`` is not timed."""
    times: list[float] = []
    until = time.perf_counter() + ROUND_SECONDS
    while len(times) < 2 or (time.perf_counter() < until and len(times) < MOST_RUNS):
        prepare()
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def serve(subject: Callable[[], Subject]) -> None:
    """Answers requests until stdin ends. ``subject`` makes what is measured; its errors are answers too."""
    answers = _own_stdout()
    try:
        measured = subject()
        for line in sys.stdin:
            answer = _answer(measured, json.loads(line)["do"])
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        pass  # the terminal sends it to us too; the caller says what there is to say
    except EdgekitError as error:
        answers.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        answers.flush()


def _answer(subject: Subject, what: str) -> dict[str, Any]:
    if what in ("load", "first"):
        base = memory.now()
        began = time.perf_counter()
        subject.load() if what == "load" else subject.first()
        return {
            "ms": (time.perf_counter() - began) * 1e3,
            "before": asdict(base),
            "after": asdict(memory.now()),
        }
    if what == "round":
        # Collection pauses are no property of the model.
        gc.disable()
        try:
            return {"times": subject.round()}
        finally:
            gc.enable()
    assert what == "finish", what
    return {"memory": asdict(memory.now()), "kernel": subject.kernel()}


def _own_stdout() -> Any:
    """The real stdout for answers; whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _subject(settings: dict[str, Any]) -> Subject:
    # Importing is not loading a model; it belongs before the clock starts.
    from edgekit.runtime.session import onnxruntime

    onnxruntime()
    bundle = Bundle.open(settings["bundle"])
    if bundle.manifest.decoder is None:
        return SampleSubject(bundle, settings["threads"])
    return DecoderSubject(bundle, settings["threads"], settings["prompt_tokens"], settings["new_tokens"])


if __name__ == "__main__":
    serve(lambda: _subject(json.loads(sys.argv[1])))
