"""What the encoder of an encoder-decoder is fed, by its inputs' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.spec.names import SHORTEST_SOUND, SOUND
from edgekit.spec.records import EncoderInfo
from edgekit.wav import LOUDEST, read_wav


def text_source(bundle: Bundle, encoder: EncoderInfo, prompt: str, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """A prompt for an encoder, int64 [1, T]. Raises UsageError for more tokens than it reads."""
    source = np.array([tokenizer.encode(prompt)], np.int64)
    if encoder.max_length and source.shape[1] > encoder.max_length:
        raise UsageError(
            f"prompt: {source.shape[1]} tokens; the encoder of {bundle.directory} reads {encoder.max_length} at most, "
            "give a shorter one"
        )
    return {"input_ids": source, "attention_mask": np.ones_like(source)}


def sound_source(bundle: Bundle, encoder: EncoderInfo, audio: str | Path | np.ndarray) -> dict[str, np.ndarray]:
    """A sound for an encoder, float32 [1, n]. Raises UsageError for one that is too long, too short or none."""
    rate, most = encoder.sampling_rate, encoder.max_length
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1 or audio.dtype != np.float32 or not (np.abs(audio) < LOUDEST).all():
            raise UsageError(
                f"audio: {audio.dtype} {list(audio.shape)} given; float32 [n] at {rate} Hz expected, of numbers"
            )
        sound, name = audio, "audio"
    else:
        sound, name = read_wav(Path(audio), rate, UsageError), str(audio)
    seconds = len(sound) / rate
    if seconds < SHORTEST_SOUND:
        raise UsageError(f"{name}: {seconds:.3f} s of sound; give {SHORTEST_SOUND} s or more")
    if most and len(sound) > most:
        raise UsageError(
            f"{name}: {seconds:.1f} s of sound; {bundle.directory} reads {most / rate:g} s at most, cut it where nobody speaks"
        )
    return {SOUND: sound[None]}


def told_language(
    decoder: Decoder, source: Mapping[str, np.ndarray], start: Sequence[int], languages: Sequence[int], copies: int = 1
) -> list[int]:
    """Encodes a source for ``copies`` rows; what its answer begins with, the likeliest of ``languages``, if any, being second.

    Where there are any, the first token has been fed then.
    """
    decoder.encode(source, copies)
    if not languages:
        return list(start)
    chances = decoder.run(np.full((copies, 1), start[0], np.int64))[0, -1, list(languages)]
    return [start[0], languages[int(chances.argmax())], *start[2:]]
