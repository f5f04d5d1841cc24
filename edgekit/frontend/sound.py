"""What comes before a speech encoder: Whisper's log-mel spectrum as part of its graph, so that every runtime feeds plain sound.

Its Fourier transform is a convolution with sines and cosines under a Hann window (docs/adr/0027-speech.md).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import SourceError, UnsupportedError
from edgekit.frontend.source import Hearing
from edgekit.strict import read_json

SPEECH = ("WhisperForConditionalGeneration", "MoonshineForConditionalGeneration")
LARGEST_WINDOW = 1 << 14


SETTINGS = (("sampling_rate", 16_000), ("hop_length", 160), ("n_fft", 400))
"""Keys of preprocessor_config.json, and what they are where it is not there."""


class LogMel(nn.Module):
    """What transformers' WhisperFeatureExtractor computes of sound."""

    def __init__(self, bins: int, size: int, hop: int, rate: int, frames: int) -> None:
        """``bins`` mel filters up to 8 kHz over windows of ``size`` samples, one every ``hop``, for ``frames`` of them."""
        from transformers.audio_utils import mel_filter_bank

        super().__init__()
        self.size, self.hop, self.samples = size, hop, frames * hop
        half = size // 2 + 1
        turns = np.outer(np.arange(half), np.arange(size)) % size * (2 * np.pi / size)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        waves = np.concatenate([np.cos(turns), np.sin(turns)]) * window
        filters = mel_filter_bank(half, bins, 0.0, 8000.0, rate, norm="slaney", mel_scale="slaney")
        self.waves = nn.Buffer(torch.from_numpy(waves).float()[:, None], persistent=False)
        self.filters = nn.Buffer(torch.from_numpy(filters.T).float()[..., None].contiguous(), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """float32 [B, samples], ``self.samples`` at most -> [B, bins, frames]; what is missing at the end is silence."""
        whole = functional.pad(sound, (0, self.samples - sound.shape[1]))[:, None]
        around = functional.pad(whole, (self.size // 2, self.size // 2), mode="reflect")
        real, imaginary = functional.conv1d(around, self.waves, stride=self.hop)[..., :-1].chunk(2, dim=1)
        # A convolution, not a linear layer: recipes would round one.
        energy = functional.conv1d(real * real + imaginary * imaginary, self.filters)
        log = energy.clamp(min=1e-10).log10()
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def prepare(model: Any, directory: Path) -> Hearing:
    """What sound a model of :data:`SPEECH` reads; Whisper's encoder takes such sound from now on, as well as spectra.

    Raises SourceError for a preprocessor_config.json that does not fit the model, UnsupportedError where it asks for what the
    graph does not do.
    """
    path = directory / "preprocessor_config.json"
    given = read_json(path, SourceError, "fetch the file again") if path.is_file() else {}
    for key in ("dither", "do_normalize"):
        if given.get(key):
            raise UnsupportedError(f"{path}: {key} is {given[key]!r}; edgekit gives sound to the model as it is")
    rate, hop, size = (_whole(path, given, key, usual) for key, usual in SETTINGS)
    encoder = model.get_encoder()
    if not hasattr(encoder, "num_mel_bins"):
        return Hearing(rate, 0)
    bins, frames = int(encoder.num_mel_bins), 2 * int(encoder.max_source_positions)
    if given.get("feature_size", bins) != bins:
        raise SourceError(
            f"{path}: feature_size is {given['feature_size']!r}, config.json has num_mel_bins {bins}; fetch the files again"
        )
    encoder.log_mel = LogMel(bins, size, hop, rate, frames)
    encoder.register_forward_pre_hook(_listen, with_kwargs=True)
    positions = model.get_decoder().embed_positions
    positions.forward = partial(_rows, positions)
    model.config.apply_spec_augment = False  # which looks at the input's shape, also where it changes nothing
    return Hearing(rate, encoder.log_mel.samples)


def _whole(path: Path, given: dict[str, Any], key: str, usual: int) -> int:
    value = given.get(key, usual)
    most = LARGEST_WINDOW if key != "sampling_rate" else 1 << 20
    if type(value) is not int or not 1 < value <= most:
        raise SourceError(f"{path}: {key} is {str(value)[:40]!r}, a whole number from 2 to {most:,} expected")
    return value


def _listen(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = args[0] if args else kwargs["input_features"]
    if given.dim() != 2:
        return args, kwargs
    return (), {**kwargs, "input_features": encoder.log_mel(given.float()).to(encoder.conv1.weight.dtype)}


def _rows(table: Any, input_ids: Tensor, cache_length: int = 0, position_ids: Tensor | None = None) -> Tensor:
    """Stands in for WhisperPositionalEmbedding's forward, which reads its weight itself: one at 8 bits is only looked up."""
    if position_ids is None:
        position_ids = torch.arange(cache_length, cache_length + input_ids.shape[1])
    return functional.embedding(position_ids, table.weight)


def speech_like(seconds: float, rate: int) -> np.ndarray:
    """A made-up sound float32 [n] with the spectrum of speech, for want of a real one: a voice of falling pitch through three
    formants that move, in syllables, with some noise."""
    time = np.arange(int(seconds * rate)) / rate
    pitch = 110 + 25 * np.sin(2 * np.pi * 0.6 * time) - 8 * time
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros_like(time)
    for harmonic in range(1, int(rate / 2 / 150)):
        at = harmonic * pitch
        level = sum(
            gain / (1 + ((at - centre * (1 + swing * np.sin(2 * np.pi * speed * time))) / width) ** 2)
            for centre, width, gain, swing, speed in FORMANTS
        )
        sound += level * np.sin(harmonic * phase)
    noise = np.random.default_rng(0).standard_normal(len(time))
    syllables = np.clip(np.sin(2 * np.pi * 3.3 * time), 0, None) ** 0.5
    sound = syllables * (sound + 0.05 * noise) + 0.002 * noise
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)


FORMANTS = ((600, 80, 1.0, 0.3, 1.7), (1500, 120, 0.5, 0.3, 1.1), (2600, 180, 0.25, 0.1, 0.7))
"""Of :func:`speech_like`: centre and width in Hz, strength, how far the centre swings, and how often a second."""
