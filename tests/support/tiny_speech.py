"""Tiny random speech models: Whisper, in English alone and in several languages, and Moonshine; their directories; real speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.errors import UsageError
from edgekit.wav import read_wav
from tests.support.tiny_translators import byte_tokenizer
from tests.support.tooling import require

SPOKEN = Path("/usr/share/sounds/alsa")
RATE = 16_000
WHISPER: dict[str, Any] = {
    "vocab_size": 259, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "num_mel_bins": 80,
    "max_source_positions": 150, "max_target_positions": 72, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None, "tie_word_embeddings": False,
}  # fmt: skip
MOONSHINE: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 144, "intermediate_size": 96, "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 3, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "max_position_embeddings": 72, "pad_head_dim_to_multiple_of": 8, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
LANGUAGES = {"<|en|>": 250, "<|de|>": 251, "<|fr|>": 252}
SEVERAL: dict[str, Any] = {
    "lang_to_id": LANGUAGES, "task_to_id": {"transcribe": 253, "translate": 254}, "no_timestamps_token_id": 255,
    "forced_decoder_ids": [[1, None], [2, 253]], "suppress_tokens": [90, 91], "begin_suppress_tokens": [92, 2],
    "is_multilingual": True, "return_timestamps": False,
}  # fmt: skip
"""What generation_config.json of a multilingual Whisper says."""


def speech(name: str = "Front_Center") -> np.ndarray:
    """A woman says where the loudspeaker stands: float32 [n], 16 kHz, 1.4 s."""
    return read_wav(speech_file(name), RATE, UsageError)


def speech_file(name: str = "Front_Center") -> Path:
    """The same as a WAV file of 48 kHz, of the Debian package alsa-utils."""
    path = SPOKEN / f"{name}.wav"
    require(path.is_file(), f"{path} is not there; as root: apt-get install alsa-utils")
    return path


def speech_model(name: str, **settings: Any) -> Any:
    """ "whisper" or "moonshine", with weights large enough that its answers change from token to token."""
    import transformers

    kind, known = ("Whisper", WHISPER) if name == "whisper" else ("Moonshine", MOONSHINE)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**known, **settings})
    made = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if parameter.dim() == 2 and "encoder.embed_positions" not in path:
                torch.nn.init.normal_(
                    parameter,
                    std=((6.0 if name == "whisper" else 24.0) if "embed" in path else 1.0) / parameter.shape[1] ** 0.5,
                )
    return made


def speech_directory(directory: Path, name: str, config: dict[str, Any] | None = None, **generation: Any) -> Any:
    """Saves a model with a tokenizer and settings of generation; the model."""
    model = speech_model(name, **(config or {}))
    model.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    path = directory / "generation_config.json"
    settings = {**json.loads(path.read_text()), **generation}
    settings.pop("_from_model_config", None)  # or transformers makes them anew from config.json
    path.write_text(json.dumps(settings))
    return model
