"""Measures a GGUF file in llama.cpp with the requests of ``benchmarks.llm.peer_worker``.

It calls llama.cpp's C functions through llama-cpp-python's bindings; Python's share of a token is one call and the choice of
the likeliest token, as in edgekit's runner. All settings are llama.cpp's own but for threads and context.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.llm.peer_worker import Engine, Times, repeated, serve
from edgekit.errors import RuntimeUnavailable

ERROR = 4  # GGML_LOG_LEVEL_ERROR; llama-cpp-python 0.3.36 takes it for debug output and shows warnings instead

SAID: list[str] = []
"""Errors of llama.cpp."""


@functools.cache
def _show() -> Any:
    import llama_cpp

    def show(level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            SAID.append(" ".join(text.decode(errors="replace").split()))

    return llama_cpp.llama_log_callback(show)  # kept by the cache for as long as llama.cpp may call it


def llama() -> Any:
    """The module llama_cpp, which prints nothing; its errors are in ``SAID``."""
    import llama_cpp

    llama_cpp.llama_log_set(_show(), None)
    return llama_cpp


class Llama:
    """A GGUF file. Logits are computed for the last token of a batch only, which is the default of ``llama_decode``."""

    def __init__(self, path: str, threads: int, prompt: list[int], new_tokens: int) -> None:
        self._api = llama()
        self._path, self._threads, self._new = path, threads, new_tokens
        self._prompt = (self._api.llama_token * len(prompt))(*prompt)
        self._api.llama_backend_init()

    def load(self) -> None:
        api = self._api
        self._model = api.llama_model_load_from_file(self._path.encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeUnavailable(f"{self._path}: llama.cpp cannot load it: {' '.join(SAID)[-300:]}")
        settings = api.llama_context_default_params()
        settings.n_ctx = len(self._prompt) + self._new
        settings.n_batch = settings.n_ctx  # a prompt in one call; its parts (n_ubatch) stay llama.cpp's own
        settings.n_threads = settings.n_threads_batch = self._threads
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeUnavailable(f"{self._path}: llama.cpp cannot make a context: {' '.join(SAID)[-300:]}")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def first(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._next = self._run(self._prompt)

    def round(self) -> Times:
        return {"prefill": repeated(self.first), "decode": list(self._decode())}

    def kernel(self) -> str:
        return " ".join(self._api.llama_print_system_info().decode().split())

    def _run(self, tokens: ctypes.Array[Any]) -> int:
        """The likeliest token after ``tokens``, which are appended to the cache."""
        code = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(tokens)))
        if code:
            raise RuntimeUnavailable(f"{self._path}: llama_decode answers {code}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def _decode(self) -> Iterator[float]:
        one = (self._api.llama_token * 1)()
        for _ in range(self._new):
            began = time.perf_counter()
            one[0] = self._next
            self._next = self._run(one)
            yield (time.perf_counter() - began) * 1e3


def _engine(settings: dict[str, Any]) -> Engine:
    return Llama(**settings)


if __name__ == "__main__":
    serve(_engine)
