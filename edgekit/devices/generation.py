"""Text generation on a device: tokens come from there, text is made of them here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from edgekit.bundle import Bundle
from edgekit.devices.connection import open_connection
from edgekit.devices.deploy import deploy
from edgekit.devices.job import Job
from edgekit.devices.target import Target
from edgekit.errors import UsageError
from edgekit.runtime.decoder import decoder_info
from edgekit.runtime.generation import Generation, StopStrings, check_request, text_pieces
from edgekit.runtime.tokenizer import Stream, Tokenizer
from edgekit.spec.progress import Progress


def generate_on(
    target: Target,
    bundle: Bundle,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    chat: bool | None = None,
    system: str | None = None,
    stop: Sequence[str] = (),
    threads: int = 1,
    progress: Progress = lambda what, share: None,
) -> Generation:
    """As :func:`edgekit.runtime.generation.generate`, the likeliest token each time, computed by the device.

    Raises UsageError and UnsupportedError as that does; RuntimeUnavailable, also within the iteration, when the device is
    out of reach or not set up.
    """
    check_request(prompt, max_new_tokens, stop)
    info, tokenizer = decoder_info(bundle), Tokenizer(bundle)
    chat = tokenizer.chat_template is not None if chat is None else chat
    if system is not None and not chat:
        raise UsageError("system: the prompt is continued as it is, without a chat; put the words into the prompt")
    opening = [{"role": "system", "content": system}] if system is not None else []
    ids = tokenizer.chat([*opening, {"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    if len(ids) >= info.max_length:
        raise UsageError(
            f"prompt: {len(ids)} tokens; the context holds {info.max_length}, the answer included; give a shorter one"
        )
    stack = ExitStack()
    try:
        deployed = deploy(stack.enter_context(open_connection(target)), bundle, progress)
        length = min(info.max_length, len(ids) + max_new_tokens)
        job = stack.enter_context(deployed.job(threads, max_length=length))
        progress(f"load on {target.text}", 0.0)
        job.ask("load")
    except BaseException:
        stack.close()
        raise
    generation = Generation(prompt_tokens=len(ids))
    tokens = _tokens(generation, stack, job, ids, max_new_tokens, info.eos_token_ids)
    generation._pieces = text_pieces(generation, tokens, Stream(tokenizer, () if chat else ids), StopStrings(stop))
    return generation


def _tokens(
    state: Generation, stack: ExitStack, job: Job, ids: Sequence[int], count: int, ends: Sequence[int]
) -> Iterator[int]:
    """New tokens as the device sends them; the connection ends with them."""
    with stack:
        answer = job.ask("generate", ids=list(ids), max_new_tokens=count, stop=list(ends))
        while "token" in answer:
            state.tokens.append(int(answer["token"]))
            yield state.tokens[-1]
            if state.finish == "cancelled":
                return
            answer = job.line()
        state.finish = str(answer["finish"])
        state.prefill_seconds, state.decode_seconds = answer["prefill_ms"] / 1e3, answer["decode_ms"] / 1e3
