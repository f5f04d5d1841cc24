"""A small random language model as a GGUF file of one type, written with gguf, and the codes and scales that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

WIDTH, INNER, HEADS, LAYERS = 64, 96, 2, 2
SHAPES = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
}  # fmt: skip


def write(path: Path, kind: gguf.GGMLQuantizationType, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes the model; its matrices [N, K] by name, as gguf itself reads them back."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(seed)
    tokens = [*bytes_to_unicode().values(), "th", "<|endoftext|>"]
    _describe(writer, tokens)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    stored = {"token_embd": _add(writer, "token_embd", rng.normal(0, 1, (len(tokens), WIDTH)), kind)}
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
        for name, shape in SHAPES.items():
            name = f"blk.{layer}.{name}"
            stored[name] = _add(writer, name, rng.normal(0, shape[1] ** -0.5, shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    packed = gguf.quants.quantize(values.astype(np.float32), kind)
    writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    return np.asarray(gguf.quants.dequantize(packed, kind), np.float32)


def _describe(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    values: dict[str, Any] = {
        "context_length": 512, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
        "head_count": HEADS, "head_count_kv": HEADS, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0,
        "vocab_size": len(tokens), "tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2", "token_list": tokens,
        "token_types": [1] * (len(tokens) - 1) + [3], "token_merges": ["t h"], "eos_token_id": len(tokens) - 1,
        "bos_token_id": len(tokens) - 1,
    }  # fmt: skip
    for name, value in values.items():
        getattr(writer, f"add_{name}")(value)
