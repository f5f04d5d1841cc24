"""Sound from WAV files as speech models read it: one channel, at their rate."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.spec.names import RATES

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
LARGEST = 1 << 30
"""Bytes of a file at most."""
LONGEST = 1 << 26
"""Samples of a sound at most, as it is and at the wanted rate: over an hour at 16 kHz."""
LARGEST_RATIO = 1 << 16
"""Of two rates, in lowest terms; the low-pass has 20 times as many numbers."""
LOUDEST = 1e6
BLOCK = 1 << 20
CROSSINGS, KAISER = 10, 5.0
"""The low-pass of :func:`resample`: a sinc of so many zero crossings on each side under a Kaiser window of this beta."""
CHUNK = 1 << 14


def read_wav(path: Path, rate: int, error: type[EdgekitError]) -> np.ndarray:
    """A file's sound float32 [n], -1 to 1, at ``rate`` Hz; channels are averaged.

    PCM of 8, 16, 24 or 32 bits and float32 or float64. Raises ``error`` for a file that is no WAV or holds nothing.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise error(f"{path}: is no regular file; give a .wav file")
        if path.stat().st_size > LARGEST:
            raise error(
                f"{path}: {path.stat().st_size:,} bytes; {LARGEST:,} are read at most, cut it into shorter files"
            )
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); give a .wav file") from None
    chunks = dict(_chunks(data)) if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else {}
    form = chunks.get(b"fmt ", b"")
    if len(form) < 16 or b"data" not in chunks:
        raise error(f"{path}: is no WAV file with sound in it; convert it, for instance: ffmpeg -i FILE sound.wav")
    kind, channels, given, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack("<H", form[24:26])[0]
    if (kind, bits) not in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)):
        raise error(
            f"{path}: samples of kind {kind} with {bits} bits; PCM (1) of 8, 16, 24 or 32 and float (3) of 32 or 64 are read, "
            "convert it, for instance: ffmpeg -i FILE -c:a pcm_s16le sound.wav"
        )
    if not 1 <= channels <= 64 or given not in RATES:
        raise error(f"{path}: {channels} channels of {given} Hz; 1 to 64 of {RATES[0]} to {RATES[-1]} Hz are read")
    if max(given, rate) // math.gcd(given, rate) > LARGEST_RATIO:
        raise error(f"{path}: {given} Hz cannot be turned into {rate} Hz; convert it, for instance to 48000 Hz")
    count = len(chunks[b"data"]) // (bits // 8 * channels)
    if count * max(given, rate) > LONGEST * given:
        raise error(
            f"{path}: {count / given:,.0f} s of sound; {LONGEST / max(given, rate):,.0f} are read at most, cut it"
        )
    sound = _averaged(chunks[b"data"], kind, bits, channels)
    if not count or not np.abs(sound).max() < LOUDEST:
        raise error(f"{path}: {'samples that are no numbers' if count else 'holds no sound'}; record it again")
    return resample(sound, given, rate).astype(np.float32)


def _averaged(data: bytes, kind: int, bits: int, channels: int) -> np.ndarray:
    """float64 [n] of so many channels; what is no whole sample at the end is left out."""
    frame = bits // 8 * channels
    blocks = [data[at : at + BLOCK * frame] for at in range(0, len(data) // frame * frame, BLOCK * frame)]
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [_numbers(b[: len(b) // frame * frame], kind, bits).reshape(-1, channels).mean(axis=1) for b in blocks]
    return np.concatenate([np.empty(0), *parts])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each; the last may say that it is longer, as programs write that could not go back."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _numbers(data: bytes, kind: int, bits: int) -> np.ndarray:
    """float64 [n] of whole samples."""
    if kind == FLOAT:
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return np.asarray(wide.view("<i4")[:, 0], np.float64) / 2**31
    return np.asarray(np.frombuffer(data, f"<i{bits // 8}"), np.float64) / 2.0 ** (bits - 1)


def resample(sound: np.ndarray, given: int, wanted: int) -> np.ndarray:
    """float64 [n] at ``given`` Hz -> [ceil(n wanted / given)] at ``wanted`` Hz.

    Raised to the rates' least common multiple, low-passed and thinned out, as scipy.signal.resample_poly does by default.
    """
    if given == wanted:
        return sound
    up, down = wanted // math.gcd(given, wanted), given // math.gcd(given, wanted)
    half = CROSSINGS * max(up, down)
    places = np.arange(-half, half + 1)
    taps = np.sinc(places / max(up, down)) * np.kaiser(len(places), KAISER)
    taps = np.concatenate([np.zeros(up), taps * (up / taps.sum())])
    count = 2 * half // up + 1  # samples that reach into one of the result
    padded = np.concatenate([np.zeros(count), sound, np.zeros(count)])
    result = np.empty(-(-len(sound) * up // down))
    for start in range(0, len(result), CHUNK):
        centres = np.arange(start, min(start + CHUNK, len(result)))[:, None] * down
        sources = -((half - centres) // up) + np.arange(count)
        weights = taps[centres - sources * up + half + up]
        result[start : start + CHUNK] = (padded[np.minimum(sources + count, len(padded) - 1)] * weights).sum(axis=1)
    return result
