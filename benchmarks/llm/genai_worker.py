"""Measures a model of onnxruntime-genai with the requests of ``benchmarks.llm.peer_worker``.

``append_tokens`` is the prefill; ``generate_next_token`` runs the model for the token before and takes the likeliest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.llm.peer_worker import Engine, Times, repeated, serve


class Genai:
    """What ``onnxruntime_genai.models.builder`` wrote, with the session options it chose but for threads."""

    def __init__(self, directory: str, threads: int, prompt: list[int], new_tokens: int) -> None:
        import onnxruntime_genai as genai

        self._genai, self._directory, self._threads = genai, directory, threads
        self._prompt, self._new = np.array(prompt, np.int32), new_tokens

    def load(self) -> None:
        config = self._genai.Config(self._directory)
        options = {"session_options": {"intra_op_num_threads": self._threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = self._genai.Model(config)
        self._start()

    def first(self) -> None:
        self._generator.append_tokens(self._prompt)

    def round(self) -> Times:
        return {"prefill": repeated(self.first, self._start), "decode": list(self._decode())}

    def kernel(self) -> str:
        return f"onnxruntime-genai {self._genai.__version__}"

    def _start(self) -> None:
        length = len(self._prompt) + self._new + 1
        settings = self._genai.GeneratorParams(self._model)
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)  # no early end
        self._generator: Any = self._genai.Generator(self._model, settings)

    def _decode(self) -> Iterator[float]:
        self._generator.generate_next_token()  # the prefill's own: only chosen, nothing is run for it
        for _ in range(self._new):
            began = time.perf_counter()
            self._generator.generate_next_token()
            yield (time.perf_counter() - began) * 1e3


def _engine(settings: dict[str, Any]) -> Engine:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return Genai(**settings)


if __name__ == "__main__":
    serve(_engine)
