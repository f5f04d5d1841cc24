"""WAV files of every kind, and their resampling."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.wav import read_wav, resample

RATE = 16_000


def write(
    path: Path, data: bytes, kind: int, bits: int, channels: int = 1, rate: int = RATE, extended: bool = False
) -> Path:
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    if extended:
        form = b"\xfe\xff" + form[2:] + struct.pack("<HHIH", 22, bits, 0, kind) + bytes(14)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body += b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


SOUND = np.sin(np.arange(400) / 9) * 0.7


def packed(kind: int, bits: int, sound: np.ndarray) -> bytes:
    if kind == 3:
        return bytes(sound.astype(f"<f{bits // 8}"))
    whole = np.round(sound * 2 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return bytes((whole + 128).astype(np.uint8).tobytes())
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_every_kind_is_read(kind: int, bits: int, extended: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "s.wav", packed(kind, bits, SOUND), kind, bits, extended=extended)
    sound = read_wav(path, RATE, UsageError)
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, SOUND, atol=2.0**-bits + 1e-7)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([SOUND, 0.5 * SOUND], axis=1).ravel()
    path = write(tmp_path / "s.wav", packed(1, 16, both), 1, 16, channels=2)
    np.testing.assert_allclose(read_wav(path, RATE, UsageError), 0.75 * SOUND, atol=4e-5)


def test_a_stream_whose_length_was_not_known_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s.wav", packed(1, 16, SOUND), 1, 16)
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert len(read_wav(path, RATE, UsageError)) == len(SOUND)


@pytest.mark.parametrize("given", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 15_999])
def test_a_tone_stays_the_tone_it_was(given: int) -> None:
    """As scipy.signal.resample_poly makes it, to 1e-14 (compared once); here with what a tone is at the other rate."""

    def tone(rate: int) -> np.ndarray:
        time = np.arange(rate // 2) / rate
        return np.sin(2 * np.pi * 440 * time) + 0.3 * np.sin(2 * np.pi * 1730 * time)

    made, expected = resample(tone(given), given, RATE), tone(RATE)
    assert len(made) == -(-(given // 2) * RATE // given)
    middle = slice(200, min(len(made), len(expected)) - 200)
    np.testing.assert_allclose(made[middle], expected[middle], atol=2e-3)


def test_what_is_above_half_the_rate_is_gone() -> None:
    high = np.sin(2 * np.pi * 11_000 * np.arange(24_000) / 48_000)
    assert np.abs(resample(high, 48_000, RATE)[100:-100]).max() < 1e-2


@pytest.mark.parametrize(
    ("kind", "bits", "channels", "rate", "data", "message"),
    [
        (7, 8, 1, RATE, b"abc", r"samples of kind 7 with 8 bits; PCM \(1\) of 8, 16, 24 or 32 and float"),
        (1, 16, 1, RATE, b"", "holds no sound; record it again"),
        (1, 16, 1, RATE, b"a", "holds no sound; record it again"),
        (1, 16, 0, RATE, b"abcd", "0 channels of 16000 Hz; 1 to 64 of 1000 to 768000 Hz are read"),
        (1, 16, 1, 10, b"abcd", "1 channels of 10 Hz"),
        (3, 32, 1, RATE, struct.pack("<f", float("nan")), "samples that are no numbers; record it again"),
        (3, 64, 2, RATE, struct.pack("<2d", 1.7e308, 1.7e308), "samples that are no numbers; record it again"),
        (3, 64, 1, RATE, struct.pack("<d", 1e300), "samples that are no numbers; record it again"),
        (1, 16, 1, 767_999, b"abcd", "767999 Hz cannot be turned into 16000 Hz; convert it, for instance to 48000 Hz"),
        (1, 8, 1, 1000, bytes(4_200_000), r"4,200 s of sound; 4,194 are read at most, cut it"),
    ],
)
def test_what_cannot_be_read_is_refused(
    kind: int, bits: int, channels: int, rate: int, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        read_wav(write(tmp_path / "s.wav", data, kind, bits, channels, rate), RATE, UsageError)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.wav")
    with pytest.raises(UsageError, match=r"s\.wav: is no regular file; give a \.wav file"):
        read_wav(tmp_path / "s.wav", RATE, UsageError)


def test_blocks_are_one_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.wav.BLOCK", 7)
    both = np.stack([SOUND, 0.5 * SOUND], axis=1).ravel()
    path = write(tmp_path / "s.wav", packed(1, 24, both) + b"ab", 1, 24, channels=2)
    np.testing.assert_allclose(read_wav(path, RATE, UsageError), 0.75 * SOUND, atol=1e-6)


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF1234WAVE", b"RIFF1234WAVEfmt \x04\0\0\0abcddata\0\0\0\0", b"ID3 an mp3"]
)
def test_what_is_no_wav_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.wav").write_bytes(data)
    with pytest.raises(UsageError, match="is no WAV file with sound in it; convert it, for instance: ffmpeg -i FILE"):
        read_wav(tmp_path / "s.wav", RATE, UsageError)
