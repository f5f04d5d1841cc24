"""A checkpoint of random ternary weights in the shape of BitNet b1.58 2B4T, for measuring at full size.

    python -m benchmarks.llm.ternary_checkpoint build/llm/checkpoint [--form packed | bf16] [--layers 30]

2.4 billion parameters: hidden 2560, 30 layers, feed-forward 6912, 20 query and 5 key-value heads, vocabulary 128,256, tied
head (config of microsoft/bitnet-b1.58-2B-4T, as in methods of arXiv 2504.12285). ``packed`` holds 2-bit codes and scales as
that release does (1.2 GB), ``bf16`` a full-precision master whose absmean quantization they are (4.8 GB). Tokenizer and
text are SmolLM2's, whose ids are all below the vocabulary's size. Shards are written one tensor at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.demo_models import smollm2

CONFIG: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2", "hidden_size": 2560,
    "intermediate_size": 6912, "num_attention_heads": 20, "num_key_value_heads": 5, "num_hidden_layers": 30,
    "vocab_size": 128256, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0",
}  # fmt: skip
SHARD = 1 << 30
Tensor = tuple[str, str, tuple[int, ...]]  # name, safetensors dtype, shape
SIZE = {"U8": 1, "BF16": 2}


def main() -> None:
    """Writes the checkpoint unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--form", choices=["packed", "bf16"], default="packed")
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    options = parser.parse_args()
    print(make(options.output, options.form, options.layers))


def make(output: Path, form: str = "packed", layers: int = CONFIG["num_hidden_layers"]) -> Path:
    """The checkpoint directory; made when it is not there, and whole when it is."""
    if output.is_dir():
        return output
    part = output.with_name(f"{output.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2() / name, part / name)
    linear = {"packed": "autobitlinear", "bf16": "autobitlinear"}[form]
    mode = {"packed": "offline", "bf16": "online"}[form]
    quantization = {"quant_method": "bitnet", "linear_class": linear, "quantization_mode": mode}
    config = {**CONFIG, "num_hidden_layers": layers, "quantization_config": quantization}
    (part / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    _write(part, list(_tensors(form, layers)), np.random.default_rng(0))
    return part.rename(output)


def _tensors(form: str, layers: int) -> Iterator[Tensor]:
    hidden, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    narrow = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden, "self_attn.attn_sub_norm": hidden, "mlp.ffn_sub_norm": wide}  # fmt: skip
    yield "model.embed_tokens.weight", "BF16", (CONFIG["vocab_size"], hidden)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for name, (n, k) in linears.items():
            if form == "packed":
                yield f"{stem}.{name}.weight", "U8", (n // 4, k)
                yield f"{stem}.{name}.weight_scale", "BF16", (1,)
            else:
                yield f"{stem}.{name}.weight", "BF16", (n, k)
        for name, size in norms.items():
            yield f"{stem}.{name}.weight", "BF16", (size,)
    yield "model.norm.weight", "BF16", (hidden,)


def _write(directory: Path, tensors: list[Tensor], random: np.random.Generator) -> None:
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(map(_nbytes, shards[-1])) + _nbytes(tensor) > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        ends = np.cumsum([_nbytes(t) for t in shard]).tolist()
        header = {
            t: {"dtype": kind, "shape": shape, "data_offsets": [end - _nbytes((t, kind, shape)), end]}
            for (t, kind, shape), end in zip(shard, ends, strict=True)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in shard:
                _values(tensor, random).tofile(file)
    index = {
        "metadata": {},
        "weight_map": {t[0]: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _nbytes(tensor: Tensor) -> int:
    return SIZE[tensor[1]] * int(np.prod(tensor[2]))


def _values(tensor: Tensor, random: np.random.Generator) -> np.ndarray:
    """Packed codes -1, 0, 1 at a third each; masters whose absmean quantization is ternary; small normal embeddings."""
    name, kind, shape = tensor
    if kind == "U8":
        every = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)])  # fmt: skip
        return every.astype(np.uint8)[random.integers(0, 81, shape, dtype=np.uint8)]
    if name.endswith("weight_scale"):
        return _bfloat16(np.full(shape, 0.02, np.float32))
    if len(shape) == 1:
        return _bfloat16(1 + 0.1 * random.standard_normal(shape, np.float32))
    return _bfloat16(0.02 * random.standard_normal(shape, np.float32))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as the upper halves of its bits, truncated."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
