"""What a token costs at least: bytes of weights and of the cache that one step of decoding has to read.

*Weights* are all stored tensors that a step reads whole, each byte of a file counted once: codes, scales and zero points of
linear layers, the head, norms. Tables of which a step reads a row or two are left out: rotary tables always, the embedding
where it is not the head as well. A tied head counts once. *Cache* is keys and values of all layers for one position, as the
engine stores them (float32 in edgekit and onnxruntime-genai, float16 in llama.cpp).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from edgekit.bundle import Bundle

LOOKED_UP = ("Gather", "GatherBlockQuantized", "CachedAttention", "GroupQueryAttention", "RotaryEmbedding")
"""Operators that read rows of a stored table; attention reads rows of the rotary tables."""
F16 = 2


@dataclass(frozen=True)
class Cost:
    """Bytes, and how many layers are stored in which format."""

    weight_bytes: int
    cache_bytes: int  # of one position
    formats: dict[str, int]

    def token_bytes(self, context: float) -> float:
        """Bytes that one token reads whose cache holds ``context`` positions."""
        return self.weight_bytes + context * self.cache_bytes


def of_bundle(directory: Path) -> Cost:
    """Of an edgekit bundle."""
    bundle = Bundle.open(directory)
    info = bundle.manifest.decoder
    assert info is not None
    model = onnx.load(bundle.graph_path, load_external_data=False).graph
    elements = sum(heads * size for heads, size in zip(info.kv_heads, info.head_dim, strict=True))
    formats = Counter(layer.format for layer in bundle.manifest.layers)
    return Cost(_weight_bytes(model), 2 * _cache_width(model) * elements, dict(formats))


def of_genai(directory: Path) -> Cost:
    """Of a directory that onnxruntime-genai's builder made."""
    model = onnx.load(directory / "model.onnx", load_external_data=False).graph
    facts = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    elements = facts["num_hidden_layers"] * facts["num_key_value_heads"] * facts["head_size"]
    bits = [a.i for node in model.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "bits"]
    return Cost(_weight_bytes(model), 2 * _cache_width(model) * elements, dict(Counter(f"int{b}" for b in bits)))


def of_gguf(file: Path) -> Cost:
    """Of a GGUF file of a llama-like architecture."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    head = "output.weight" if any(t.name == "output.weight" for t in reader.tensors) else "token_embd.weight"
    read = [t for t in reader.tensors if t.name == head or t.name != "token_embd.weight"]
    kinds = {t.name: t.tensor_type.name for t in read if len(t.shape) > 1}
    formats = Counter(f"{kind} head" if name == head else kind for name, kind in kinds.items())
    stem = reader.fields["general.architecture"].contents()
    layers, width, heads, kv_heads = (
        int(reader.fields[f"{stem}.{key}"].contents())
        for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    return Cost(sum(int(t.n_bytes) for t in read), 2 * F16 * layers * kv_heads * (width // heads), dict(formats))


def _weight_bytes(graph: Any) -> int:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read = {name for node in graph.node if node.op_type not in LOOKED_UP for name in node.input if name in stored}
    return sum(dict(_place(stored[name]) for name in read).values())


def _place(tensor: Any) -> tuple[tuple[str, str], int]:
    """Where a tensor is stored, and its bytes: one place under two names is one."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if where:
        return (where["location"], where.get("offset", "0")), int(where["length"])
    return ("", tensor.name), math.prod(tensor.dims) * _width(tensor.data_type)


def _cache_width(graph: Any) -> int:
    """Bytes of an element of the key-value cache."""
    past = next(i for i in graph.input if i.name.startswith("past_key_values."))
    return _width(past.type.tensor_type.elem_type)


def _width(element: int) -> int:
    return tensor_dtype_to_np_dtype(element).itemsize
