"""Text generation from a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.sampling import Sampling, draw
from edgekit.runtime.tokenizer import Stream, Tokenizer

GREEDY = Sampling()


@dataclass
class Generation:
    """A running generation: iterate over it for pieces of text; afterwards it says how it went.

    Seconds count the model's work and the choice of tokens, not what the reader does with the pieces.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)  # new ones, the end-of-text token left out
    finish: str = ""  # "stop" (end-of-text token or stop string) or "length"
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens over the time until the first new token was known; 0 before that."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens after the first, over the time they took; 0 when there was only one."""
        later = len(self.tokens) - 1
        return later / self.decode_seconds if later > 0 and self.decode_seconds else 0.0


def generate(
    model: Bundle | Decoder,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    chat: bool | None = None,
    system: str | None = None,
    stop: Sequence[str] = (),
    sampling: Sampling = GREEDY,
    threads: int = 1,
) -> Generation:
    """Continues ``prompt``, or answers it where the model has a chat template (``chat`` None decides by that).

    Generation ends at an end-of-text token of the model, at one of ``stop`` (not given out), or after
    ``max_new_tokens`` or the end of the context. Leaving the iteration ends it at once. A Decoder given is reset and
    keeps its own threads; a Bundle is loaded with ``threads`` and a cache of just the length that is needed.

    Raises UsageError for an empty or too long prompt, UnsupportedError for a bundle without decoder or tokenizer.
    """
    bundle = model.bundle if isinstance(model, Decoder) else model
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: {max_new_tokens} is less than 1")
    if any(not s for s in stop):
        raise UsageError("stop: an empty string would stop at once; leave it out")
    tokenizer = Tokenizer(bundle)
    ids = _prompt_ids(tokenizer, prompt, chat, system)
    if isinstance(model, Decoder):
        decoder = model
        decoder.reset()
        limit = decoder.max_length
    else:
        limit = bundle.manifest.decoder.max_length if bundle.manifest.decoder else 0
        decoder = Decoder(bundle, threads, max_length=min(limit, len(ids) + max_new_tokens) or None)
    if len(ids) >= limit:
        raise UsageError(f"prompt: {len(ids)} tokens; the context holds {limit}, the answer included")
    generation = Generation(prompt_tokens=len(ids))
    tokens = _tokens(generation, decoder, ids, max_new_tokens, sampling)
    generation._pieces = _pieces(generation, tokens, Stream(tokenizer), StopStrings(stop))
    return generation


def _prompt_ids(tokenizer: Tokenizer, prompt: str, chat: bool | None, system: str | None) -> list[int]:
    if chat is None:
        chat = tokenizer.chat_template is not None
    if system is not None and not chat:
        raise UsageError("system: the prompt is continued as it is, without a chat; put the words into the prompt")
    if not prompt:
        raise UsageError("prompt: is empty; give some text")
    if not chat:
        return tokenizer.encode(prompt)
    opening = [{"role": "system", "content": system}] if system is not None else []
    return tokenizer.chat([*opening, {"role": "user", "content": prompt}])


def _pieces(state: Generation, tokens: Iterator[int], stream: Stream, text: StopStrings) -> Iterator[str]:
    for token in tokens:
        yield from text.push(stream.push(token))
        if text.hit:
            state.finish = "stop"
            return
    yield from text.push(stream.rest())
    yield from text.rest()


def _tokens(state: Generation, decoder: Decoder, ids: list[int], count: int, sampling: Sampling) -> Iterator[int]:
    """New tokens until the model ends, ``count`` is reached or the context is full; keeps ``state``."""
    random = np.random.default_rng(sampling.seed)
    began = time.perf_counter()
    token = draw(decoder.run(np.array([ids], np.int64))[0, -1], sampling, random, ids)
    state.prefill_seconds = time.perf_counter() - began
    while token not in decoder.info.eos_token_ids:
        state.tokens.append(token)
        yield token
        if len(state.tokens) == count or decoder.length == decoder.max_length:
            state.finish = "length"
            return
        began = time.perf_counter()
        logits = decoder.run(np.array([[token]], np.int64))[0, -1]
        token = draw(logits, sampling, random, [*ids, *state.tokens])
        state.decode_seconds += time.perf_counter() - began
    state.finish = "stop"


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> Iterator[str]:
        """What can be given out now; nothing more after ``hit``."""
        self._held += piece
        found = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.hit = True
            ready, self._held = self._held[: min(found)], ""
        else:
            begun = (n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n]))
            cut = len(self._held) - max(begun, default=0)
            ready, self._held = self._held[:cut], self._held[cut:]
        if ready:
            yield ready

    def rest(self) -> Iterator[str]:
        """What was held back for a stop string that never came."""
        if self._held:
            yield self._held
