"""Text generation from a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle, BundleLike
from edgekit.errors import BundleError, UsageError
from edgekit.runtime.beams import Beams, search
from edgekit.runtime.conversation import Messages, Saved, read
from edgekit.runtime.decoder import Decoder, decoder_info, unrewindable
from edgekit.runtime.lookup import Lookup, next_tokens
from edgekit.runtime.pictures import in_parts, look
from edgekit.runtime.sampling import Sampling, draw
from edgekit.runtime.session import Stopped
from edgekit.runtime.sources import sound_source, text_source, told_language
from edgekit.runtime.stop_strings import StopStrings
from edgekit.runtime.tokenizer import Stream, Tokenizer
from edgekit.spec.names import NEW_TOKENS
from edgekit.spec.records import EncoderInfo

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
    _stop: Callable[[], None] = field(default=lambda: None, repr=False)
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[str]:
        """The pieces that are left; leaving a loop over them ends the generation as :meth:`cancel` does."""
        yield from self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Ends the generation at once, from any thread, also within a long prompt; the iteration then just stops."""
        if self.finish:
            return
        self.finish = "cancelled"
        self._stop()

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
    model: BundleLike | Decoder,
    prompt: str = "",
    *,
    images: Sequence[str | Path] = (),
    audio: str | Path | np.ndarray | None = None,
    max_new_tokens: int = NEW_TOKENS,
    chat: bool | None = None,
    system: str | None = None,
    stop: Sequence[str] = (),
    begin: str = "",
    sampling: Sampling = GREEDY,
    threads: int = 1,
    lookup: int = 0,
    beams: int | Beams = 1,
    session: str | Path | None = None,
) -> Generation:
    """Continues ``prompt``, or answers it where the model has a chat template (``chat`` None decides by that).

    Generation ends at an end-of-text token of the model, at one of ``stop`` (not given out), or after
    ``max_new_tokens`` or the end of the context. Leaving the iteration ends it at once. A Decoder given is reset and
    keeps its own threads; a bundle is loaded with ``threads`` and a cache of just the length that is needed.

    ``images`` are files of pictures for a model that takes them: in a chat they stand before the prompt, in a plain text
    where it says so in the model's own way (``<image>``).

    A model with an encoder (T5, Marian, ...) turns ``prompt`` into another text, which starts as the model's settings
    say, or with ``begin``: for instance the name of a language, as its tokenizer writes it.

    One that reads speech (Whisper, Moonshine) writes down what is said in ``audio``, in place of a prompt: a .wav file, or
    sound float32 [n], -1 to 1, at the model's rate. ``begin`` are then the tokens behind the first one, which say
    language and task: by default as the model's settings say, the language being the likeliest.

    ``beams`` looks for the likeliest answer as a whole with so many at a time (translators and speech, greedy only); all of
    it comes at the end.

    ``lookup`` proposes up to so many tokens at a time that followed the same words before (greedy only): faster where
    the answer repeats the prompt; the text is the greedy one up to rounding. ``session`` is a file: when it is there,
    its text or chat goes on from its saved cache; when the generation ends, however it does, the file is written anew.
    A prompt that was cancelled before any answer is not part of it, but keeps its place in the cache: given again, it
    goes on there.

    Raises UsageError for an empty or too long prompt, pictures that cannot be read or have no place, sound that the model
    cannot take, or an unusable session, UnsupportedError for a bundle without decoder or tokenizer, and for ``lookup``
    where a model's states cannot go back to before a proposal.
    """
    bundle = model.bundle if isinstance(model, Decoder) else Bundle.open(model)
    session = None if session is None else Path(session)
    kept = Beams(beams) if isinstance(beams, int) else beams
    _check_choices(sampling, lookup, kept, bundle)
    limit = model.max_length if isinstance(model, Decoder) else decoder_info(bundle).max_length
    asked = prepare(bundle, prompt, max_new_tokens, chat, system, stop, limit, session, begin, images, audio)
    if isinstance(model, Decoder):
        decoder = model
        decoder.reset()
    else:
        decoder = Decoder(bundle, threads, max_length=min(limit, len(asked.ids) + max_new_tokens))
    generation = Generation(asked.tokens, asked.before.refill(decoder, asked.ids), _stop=decoder.stop)
    tokens = (
        _tokens(generation, decoder, asked, max_new_tokens, sampling, lookup)
        if kept.count == 1
        else _best(generation, decoder, asked, max_new_tokens, kept)
    )
    pieces = asked.pieces(generation, tokens)
    generation._pieces = pieces if session is None else _saving(generation, decoder, pieces, session, asked)
    return generation


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, and how text is made of those that follow; ``before`` is the conversation that it goes on."""

    ids: list[int]
    tokenizer: Tokenizer
    stop: tuple[str, ...]
    before: Saved
    messages: Messages | None  # of a chat, the prompt included
    source: dict[str, np.ndarray] = field(default_factory=dict)  # what an encoder reads, by its input's name
    languages: tuple[int, ...] = ()  # the likeliest of them is the second of ``ids``

    @property
    def translated(self) -> bool:
        """Whether an encoder reads all that is given: the answer is a text of its own."""
        return bool(self.source) and "pixel_values" not in self.source

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return self.source["input_ids"].shape[1] if "input_ids" in self.source else len(self.ids)

    def pieces(self, state: Generation, tokens: Iterator[int]) -> Generator[str, None, None]:
        """The text of new tokens as it becomes whole."""
        continues = self.messages is None and not self.translated
        stream = Stream(self.tokenizer, self.ids if continues else ())
        return text_pieces(state, tokens, stream, StopStrings(self.stop))


def prepare(
    bundle: Bundle,
    prompt: str,
    max_new_tokens: int,
    chat: bool | None,
    system: str | None,
    stop: Sequence[str],
    limit: int,
    session: Path | None = None,
    begin: str = "",
    images: Sequence[str | Path] = (),
    audio: str | Path | np.ndarray | None = None,
) -> Prompt:
    """What every generation begins with, wherever it runs; ``limit`` tokens of context, the rest as :func:`generate`.

    Raises UsageError and UnsupportedError as that does.
    """
    encoder = decoder_info(bundle).encoder
    speech = encoder is not None and encoder.sampling_rate > 0
    _check_request(bundle, prompt, max_new_tokens, stop, speech, audio is not None)
    if images and bundle.manifest.pictures is None:
        raise UsageError(f"images: {bundle.directory} takes no pictures; leave them out")
    tokenizer = Tokenizer(bundle)
    if encoder is not None:
        if chat or system is not None or session is not None:
            does = "writes down speech" if speech else "turns one text into another"
            raise UsageError(f"{bundle.directory}: {does}; it has no chat, system message or session, leave them out")
        source = (
            text_source(bundle, encoder, prompt, tokenizer) if audio is None else sound_source(bundle, encoder, audio)
        )
        start = list(encoder.start_tokens)
        if begin:
            start = [start[0], *tokenizer.encode(begin, special=False)]
        languages = () if begin else encoder.language_tokens
        return Prompt(start, tokenizer, tuple(stop), Saved(None), None, source, languages)
    if begin:
        raise UsageError(f"begin: {bundle.directory} continues the prompt; put the words at its end")
    chat = tokenizer.chat_template is not None if chat is None else chat
    before = _begun(session, bundle, chat, system)
    if images and session is not None:
        raise UsageError("session: would keep the places of pictures only; leave out the session or the images")
    messages = None if before.messages is None else [*before.messages, {"role": "user", "content": prompt}]
    parts = messages if bundle.manifest.pictures is None or messages is None else in_parts(messages, len(images))
    text, views = look(bundle, prompt if parts is None else tokenizer.chat_text(parts), images)
    first = before.text if messages is None else []
    ids = [*first, *tokenizer.encode(text, special=messages is None and not first)]
    _check_places(bundle, ids, views)
    if len(ids) >= limit:
        saved = before.path is not None
        where, way = (f"{session}: with the prompt", "another session file") if saved else ("prompt:", "a shorter one")
        raise UsageError(f"{where} {len(ids)} tokens; the context holds {limit}, the answer included; give {way}")
    return Prompt(ids, tokenizer, tuple(stop), before, messages, {} if views is None else {"pixel_values": views})


def _check_places(bundle: Bundle, ids: Sequence[int], views: np.ndarray | None) -> None:
    """Raises BundleError where a tokenizer makes another number of places than there are rows of features."""
    info = bundle.manifest.pictures
    if info is None or views is None:
        return
    if (places := ids.count(info.token)) != info.rows * len(views):
        raise BundleError(
            f"{bundle.directory}: the prompt has {places} tokens {info.token} for {info.rows * len(views)} rows of pictures; "
            "tokenizer and manifest do not belong together, export or download again"
        )


def _check_request(
    bundle: Bundle, prompt: str, max_new_tokens: int, stop: Sequence[str], speech: bool, audio: bool
) -> None:
    """Raises UsageError for what no generation can begin with."""
    if speech and (prompt or not audio):
        raise UsageError(f"{bundle.directory}: writes down speech; give audio, a .wav file, and no prompt")
    if audio and not speech:
        raise UsageError(f"audio: {bundle.directory} reads no sound; leave it out and give a prompt")
    if not prompt and not speech:
        raise UsageError("prompt: is empty; give some text")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: {max_new_tokens} is less than 1")
    if any(not s for s in stop):
        raise UsageError("stop: an empty string would stop at once; leave it out")


def _check_choices(sampling: Sampling, lookup: int, beams: Beams, bundle: Bundle) -> None:
    if beams.count > 1 and decoder_info(bundle).encoder is None:
        raise UsageError(
            f"beams: {bundle.directory} has no encoder; beam search is for translators and speech, leave it out"
        )
    if beams.count > 1 and (lookup or sampling.temperature or sampling.repetition_penalty != 1.0):
        raise UsageError(
            "beams: takes likely tokens only; leave out temperature, repetition_penalty and lookup, or beams"
        )
    if lookup < 0:
        raise UsageError(f"lookup: {lookup} is negative; 0 proposes nothing, 8 is usual")
    if lookup and (sampling.temperature or sampling.repetition_penalty != 1.0):
        raise UsageError(
            "lookup: proposes the likeliest tokens only; leave out temperature and repetition_penalty, or lookup"
        )
    if lookup and decoder_info(bundle).encoder is not None:
        raise UsageError("lookup: proposes what stands in the prompt, which this model translates; leave it out")
    if lookup and (states := decoder_info(bundle).states):
        raise unrewindable(bundle, states[0], "lookup takes proposals back; leave it out")


def _begun(session: Path | None, bundle: Bundle, chat: bool, system: str | None) -> Saved:
    """The conversation before the prompt: the saved one, or a new one."""
    if system is not None and not chat:
        raise UsageError("system: the prompt is continued as it is, without a chat; put the words into the prompt")
    saved = read(session, bundle) if session is not None else None
    if saved is None:
        opening = [{"role": "system", "content": system}] if system is not None else []
        return Saved(opening if chat else None)
    if (saved.messages is not None) != chat:
        kind, other = ("plain text", "a chat") if chat else ("a chat", "plain text")
        raise UsageError(f"{session}: holds {kind} and cannot go on as {other}; name another file")
    if system is not None:
        raise UsageError(f"system: {session} has begun without or with its own; leave it out")
    return saved


def _saving(
    state: Generation, decoder: Decoder, pieces: Generator[str, None, None], path: Path, asked: Prompt
) -> Generator[str, None, None]:
    """The pieces; whichever way the iteration ends, the session is written then."""
    said: list[str] = []
    try:
        for piece in pieces:
            said.append(piece)
            yield piece
    finally:
        pieces.close()
        text = [*asked.ids, *state.tokens]
        decoder.rewind(min(decoder.length, len(text)))  # prompt lookup may have fed more than was taken
        after = replace(asked.before, cached=text[: decoder.length])
        if state.tokens or state.finish == "stop":
            answer = {"role": "assistant", "content": "".join(said)}
            after = replace(after, text=text, messages=None if asked.messages is None else [*asked.messages, answer])
        after.write(path, decoder)


def text_pieces(
    state: Generation, tokens: Iterator[int], stream: Stream, text: StopStrings
) -> Generator[str, None, None]:
    """The text of ``tokens`` as it becomes whole, up to a stop string; says in ``state`` how it ended."""
    try:
        for token in tokens:
            yield from text.push(stream.push(token))
            if text.hit:
                state.finish = "stop"
                return
    except Stopped:
        state.finish = "cancelled"
    except GeneratorExit:
        state.finish = state.finish or "cancelled"
        raise
    yield from text.push(stream.rest())
    if text.hit:
        state.finish = "stop"
    else:
        yield from text.rest()


def _tokens(
    state: Generation, decoder: Decoder, asked: Prompt, count: int, sampling: Sampling, lookup: int
) -> Iterator[int]:
    """New tokens until the model ends, ``count`` is reached or the context is full; keeps ``state``."""
    random, ids = np.random.default_rng(sampling.seed), asked.ids
    rules = EncoderInfo((), ()) if decoder.info.encoder is None else decoder.info.encoder
    never = list(rules.suppressed_tokens)
    began = time.perf_counter()
    if asked.translated:
        ids = told_language(decoder, asked.source, ids, asked.languages)
    features = decoder.see(asked.source["pixel_values"]) if "pixel_values" in asked.source else None
    begun = max(decoder.length, state.reused_tokens)
    logits = decoder.run(np.array([ids[begun:]], np.int64), features=features)[0, -1]
    logits[[*never, *rules.begin_suppressed_tokens]] = -np.inf
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
            logits = decoder.step(token)
            logits[never] = -np.inf
            following = [draw(logits, sampling, random, [*ids, *state.tokens])]
        else:
            following = next_tokens(decoder, known, token)
            for drawn in following:
                known.push(drawn)
            state.proposed_tokens, state.accepted_tokens = known.proposed, known.accepted
        state.decode_seconds += time.perf_counter() - began
    state.finish = "stop"


def _best(state: Generation, decoder: Decoder, asked: Prompt, count: int, beams: Beams) -> Iterator[int]:
    """The tokens of the answer that beam search finds; keeps ``state``."""
    rules = decoder.info.encoder
    assert rules is not None
    began = time.perf_counter()
    ids = told_language(decoder, asked.source, asked.ids, asked.languages, beams.count)
    most = min(count, decoder.max_length - len(ids) + 1)
    tokens = search(decoder, ids, beams, most, rules.suppressed_tokens, rules.begin_suppressed_tokens)
    ended = tokens[-1] in decoder.info.eos_token_ids
    state.decode_seconds = time.perf_counter() - began
    for token in tokens[:-1] if ended else tokens:
        state.tokens.append(token)
        yield token
    state.finish = "stop" if ended else "length"
