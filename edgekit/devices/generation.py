"""Text generation on a target: tokens come from its runner, text is made of them here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.devices.backend import open_backend
from edgekit.devices.connection import LOCAL, Target
from edgekit.devices.job import Job, packed
from edgekit.errors import RuntimeUnavailable
from edgekit.runtime.decoder import decoder_info
from edgekit.runtime.generation import Generation, Prompt, prepare
from edgekit.spec.names import NEW_TOKENS
from edgekit.spec.progress import Progress


def generate_on(
    target: Target,
    bundle: Bundle,
    prompt: str,
    *,
    images: Sequence[str | Path] = (),
    max_new_tokens: int = NEW_TOKENS,
    chat: bool | None = None,
    system: str | None = None,
    stop: Sequence[str] = (),
    begin: str = "",
    audio: str | Path | np.ndarray | None = None,
    threads: int = 1,
    progress: Progress = lambda what, share: None,
) -> Generation:
    """As :func:`edgekit.runtime.generation.generate`, the likeliest token each time, computed by a runner.

    Raises UsageError and UnsupportedError as that does; RuntimeUnavailable, also within the iteration, when the target
    is out of reach or not set up.
    """
    info = decoder_info(bundle)
    asked = prepare(
        bundle, prompt, max_new_tokens, chat, system, stop, info.max_length, begin=begin, images=images, audio=audio
    )
    stack = ExitStack()
    try:
        backend = stack.enter_context(open_backend(target, bundle, progress))
        length = min(info.max_length, len(asked.ids) + max_new_tokens)
        job = stack.enter_context(backend.job(threads, max_length=length))
        if target.kind != LOCAL:
            progress(f"load on {target.text}", 0.0)
        job.ask("load")
    except BaseException:
        stack.close()
        raise
    generation = Generation(asked.tokens, _stop=job.stop)
    generation._pieces = asked.pieces(
        generation, _tokens(generation, stack, job, asked, max_new_tokens, info.eos_token_ids)
    )
    return generation


def _tokens(
    state: Generation, stack: ExitStack, job: Job, asked: Prompt, count: int, ends: Sequence[int]
) -> Iterator[int]:
    """New tokens as the runner sends them; it ends with them."""
    with stack:
        try:
            source: dict[str, object] = {"arrays": packed(asked.source)} if asked.source else {}
            if asked.languages:
                source["languages"] = list(asked.languages)
            answer = job.ask("generate", ids=asked.ids, max_new_tokens=count, stop=list(ends), **source)
            state.prefill_seconds = float(answer["ms"]) / 1e3
            while "token" in answer:
                state.tokens.append(int(answer["token"]))
                yield state.tokens[-1]
                if state.finish == "cancelled":
                    return
                answer = job.line()
                state.decode_seconds += float(answer["ms"]) / 1e3
        except RuntimeUnavailable:
            if state.finish == "cancelled":  # which has ended the runner
                return
            raise
        state.finish = str(answer["finish"])
