"""GGUF files: the ternary checkpoint as llama.cpp's architecture "bitnet", and llama.cpp's own quantization of a file.

Weights of the checkpoint are codes times one scale a matrix. They are written out as float16, which holds them exactly, and
so does TQ2_0 (codes and a float16 scale for each 256). llama.cpp's graph of "bitnet" has the same layers, shapes and inner
norms as BitNet b1.58 2B4T but SiLU where that has a squared ReLU: as fast, with other results.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llm.llama_worker import llama
from edgekit.benchmark.machine import usable_cores

INNER_NORMS = {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}
"""Tensors of a layer that the table of names in the package gguf does not have."""


def write_float16(checkpoint: Path, file: Path) -> None:
    """Writes the packed ternary checkpoint to ``file`` in float16, one tensor at a time."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BITNET])
    _describe(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BITNET, config["num_hidden_layers"])
    with ExitStack() as stack:
        tensors = dict(sorted(_open(checkpoint, stack)))
        weights = [name for name in tensors if name.endswith(".weight")]
        for name in weights:
            shape, kind = _form(tensors[name].get_slice(name))
            writer.add_tensor_info(_gguf_name(name, names), shape, kind, int(np.prod(shape)) * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in weights:
            writer.write_tensor_data(_values(tensors, name))
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """llama.cpp's quantization to ``kind`` (its name, for instance TQ2_0), with its own choice for the head."""
    llama_cpp = llama()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.allow_requantize = usable_cores(), True
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    part = target.with_suffix(".partial")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(settings))
    if code:
        raise SystemExit(f"{source}: llama_model_quantize answers {code}; its messages are above")
    part.rename(target)


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """The keys that llama.cpp asks of this architecture; there is no tokenizer, token ids go in and out."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _open(checkpoint: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Each tensor's name and the opened shard that holds it."""
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        shard = stack.enter_context(safe_open(file, "pt"))
        yield from ((name, shard) for name in shard.keys())  # noqa: SIM118  (a shard is no mapping)


def _gguf_name(name: str, names: Any) -> str:
    for suffix, inner in INNER_NORMS.items():
        if name.endswith(f"{suffix}.weight"):
            return f"blk.{name.split('.')[2]}.{inner}.weight"
    return str(names.get_name(name, try_suffixes=(".weight",)))


def _form(stored: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type in the GGUF file: matrices float16, four codes a byte unpacked; vectors float32."""
    shape = tuple(stored.get_shape())
    if stored.get_dtype() == "U8":
        shape = (4 * shape[0], *shape[1:])
    return shape, np.dtype(np.float32 if len(shape) == 1 else np.float16)


def _values(tensors: dict[str, Any], name: str) -> np.ndarray:
    import torch

    value: torch.Tensor = tensors[name].get_tensor(name)
    if value.dtype != torch.uint8:
        return value.to(torch.float32 if value.ndim == 1 else torch.float16).numpy()
    scale = float(tensors[f"{name}_scale"].get_tensor(f"{name}_scale"))
    codes = (value[None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None, None]) & 3
    return ((codes.to(torch.float32) - 1) * scale).reshape(-1, value.shape[1]).to(torch.float16).numpy()
