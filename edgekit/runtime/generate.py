"""Text generation from a bundle."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime import saved
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.lookup import Lookup, next_tokens
from edgekit.runtime.sampling import Sampling, draw
from edgekit.runtime.session import Stopped
from edgekit.runtime.tokenizer import Stream, Tokenizer

GREEDY = Sampling()


@dataclass
class Generation:
    """A running generation: iterate over it for pieces of text; afterwards it says how it went.

    Seconds count the model's work and the choice of tokens, not what the reader does with the pieces.
    """

    prompt_tokens: int
    reused_tokens: int = 0  # of the prompt, whose keys and values came from a saved session
    tokens: list[int] = field(default_factory=list)  # new ones, the end-of-text token left out
    finish: str = ""  # "stop" (end-of-text token or stop string), "length" or "cancelled"
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    proposed_tokens: int = 0  # by prompt lookup
    accepted_tokens: int = 0
    _decoder: Decoder | None = field(default=None, repr=False)
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the generation at once, from any thread, also within a long prompt; the iteration then just stops."""
        self.finish = "cancelled"
        if self._decoder is not None:
            self._decoder.stop()

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens that were fed over the time until the first new token was known; 0 before that."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

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
    lookup: int = 0,
    session: Path | None = None,
) -> Generation:
    """Continues ``prompt``, or answers it where the model has a chat template (``chat`` None decides by that).

    Generation ends at an end-of-text token of the model, at one of ``stop`` (not given out), or after
    ``max_new_tokens`` or the end of the context. Leaving the iteration ends it at once. A Decoder given is reset and
    keeps its own threads; a Bundle is loaded with ``threads`` and a cache of just the length that is needed.

    ``lookup`` proposes up to so many tokens at a time that followed the same words before (greedy only): faster where
    the answer repeats the prompt. ``session`` is a file: when it is there, its text or chat goes on from its saved cache;
    when the generation ends, however it does, the file is written anew.

    Raises UsageError for an empty or too long prompt or an unusable session, UnsupportedError for a bundle without
    decoder or tokenizer.
    """
    bundle = model.bundle if isinstance(model, Decoder) else model
    _check(max_new_tokens, stop, sampling, lookup)
    tokenizer = Tokenizer(bundle)
    chat = tokenizer.chat_template is not None if chat is None else chat
    before = saved.read(session, bundle) if session is not None and session.exists() else None
    messages = _messages(prompt, chat, system, before)
    ids = tokenizer.chat(messages) if chat else _continued(tokenizer, prompt, before)
    if isinstance(model, Decoder):
        decoder = model
        decoder.reset()
        limit = decoder.max_length
    else:
        limit = bundle.manifest.decoder.max_length if bundle.manifest.decoder else 0
        decoder = Decoder(bundle, threads, max_length=min(limit, len(ids) + max_new_tokens) or None)
    if len(ids) >= limit:
        raise UsageError(f"prompt: {len(ids)} tokens; the context holds {limit}, the answer included")
    generation = Generation(prompt_tokens=len(ids), _decoder=decoder)
    if before is not None:
        generation.reused_tokens = before.refill(decoder, ids)
    tokens = _tokens(generation, decoder, ids, max_new_tokens, sampling, lookup)
    pieces = _pieces(generation, tokens, Stream(tokenizer), StopStrings(stop))
    generation._pieces = pieces if session is None else _saving(generation, pieces, session, ids, messages)
    return generation


def _check(max_new_tokens: int, stop: Sequence[str], sampling: Sampling, lookup: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: {max_new_tokens} is less than 1")
    if any(not s for s in stop):
        raise UsageError("stop: an empty string would stop at once; leave it out")
    if lookup < 0:
        raise UsageError(f"lookup: {lookup} is negative; 0 proposes nothing, 8 is usual")
    if lookup and (sampling.temperature or sampling.repetition_penalty != 1.0):
        raise UsageError(
            "lookup: proposes the likeliest tokens only; leave out temperature and repetition_penalty, or lookup"
        )


def _messages(prompt: str, chat: bool, system: str | None, before: saved.Saved | None) -> saved.Messages:
    """The conversation so far with the prompt as its last message; nothing for plain text."""
    if system is not None and not chat:
        raise UsageError("system: the prompt is continued as it is, without a chat; put the words into the prompt")
    if not prompt:
        raise UsageError("prompt: is empty; give some text")
    if before is not None and bool(before.messages) != chat:
        kind, other = ("a chat", "plain text") if before.messages else ("plain text", "a chat")
        raise UsageError(f"{before.path}: holds {kind} and cannot go on as {other}; name another file")
    if before is not None and system is not None:
        raise UsageError(f"system: {before.path} has begun without or with its own; leave it out")
    if not chat:
        return []
    opening = [{"role": "system", "content": system}] if system is not None else []
    earlier = before.messages if before is not None else opening
    return [*earlier, {"role": "user", "content": prompt}]


def _continued(tokenizer: Tokenizer, prompt: str, before: saved.Saved | None) -> list[int]:
    if before is None:
        return tokenizer.encode(prompt)
    return [*before.tokens, *tokenizer.encode(prompt, special=False)]


def _saving(
    state: Generation, pieces: Generator[str, None, None], path: Path, ids: list[int], messages: saved.Messages
) -> Iterator[str]:
    """The pieces; whichever way the iteration ends, the session is written then."""
    said: list[str] = []
    try:
        for piece in pieces:
            said.append(piece)
            yield piece
    finally:
        pieces.close()
        assert state._decoder is not None
        text = [*ids, *state.tokens]
        state._decoder.rewind(min(state._decoder.length, len(text)))
        answer = [{"role": "assistant", "content": "".join(said)}] if messages else []
        saved.write(path, state._decoder, text, [*messages, *answer])


def _pieces(state: Generation, tokens: Iterator[int], stream: Stream, text: StopStrings) -> Generator[str, None, None]:
    try:
        for token in tokens:
            yield from text.push(stream.push(token))
            if text.hit:
                state.finish = "stop"
                return
    except Stopped:
        state.finish = "cancelled"
    yield from text.push(stream.rest())
    yield from text.rest()


def _tokens(
    state: Generation, decoder: Decoder, ids: list[int], count: int, sampling: Sampling, lookup: int
) -> Iterator[int]:
    """New tokens until the model ends, ``count`` is reached or the context is full; keeps ``state``."""
    random = np.random.default_rng(sampling.seed)
    began = time.perf_counter()
    logits = decoder.run(np.array([ids[state.reused_tokens :]], np.int64))[0, -1]
    following = [draw(logits, sampling, random, ids)]
    known = Lookup([*ids, following[0]], lookup) if lookup else None
    state.prefill_seconds = time.perf_counter() - began
    while following[0] not in decoder.info.eos_token_ids:
        token = following.pop(0)
        state.tokens.append(token)
        yield token
        if state.finish == "cancelled":
            return
        # Of tokens found ahead the decoder already holds all but the last.
        if len(state.tokens) == count or len(ids) + len(state.tokens) > decoder.max_length:
            state.finish = "length"
            return
        if following:
            continue
        began = time.perf_counter()
        if known is None:
            following = [draw(decoder.step(token), sampling, random, [*ids, *state.tokens])]
        else:
            following = next_tokens(decoder, known, token)
            for found in following:
                known.push(found)
            state.proposed_tokens, state.accepted_tokens = known.proposed, known.accepted
        state.decode_seconds += time.perf_counter() - began
    state.finish = "stop"


def interruptible(running: Generation) -> Iterator[str]:
    """The pieces of a generation that runs in a thread, so that Ctrl-C ends it at once, also within a long prompt."""
    ready: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for piece in running:
                ready.put(piece)
            ready.put(None)
        except BaseException as error:  # handed over, whatever it is
            ready.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        if not running.finish:
            running.cancel()
        thread.join()


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
