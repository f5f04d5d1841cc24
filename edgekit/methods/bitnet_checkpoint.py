"""Saves a model of BitLinear layers in the Hugging Face ``bitnet`` formats that transformers and edgekit load.

==============  ==================================  ============  ==================================================
form            weight                              weight_scale  for
==============  ==================================  ============  ==================================================
online          float32 master [N, K]               none          training on; bit for bit what was trained
autobitlinear   uint8 [N/4, K]                      mean |w|      as microsoft/bitnet-b1.58-2B-4T
bitlinear       uint8 [N/4, K]                      1 / mean |w|  transformers' other class; true int8 activations
==============  ==================================  ============  ==================================================

All else is written in the model's dtype; transformers 5.24 runs the packed forms in that dtype and no other.
Four rows share a byte, N/4 rows apart: byte (r, c) holds row r + i N/4 at bits 2i and 2i + 1, as code + 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.absmean import inverse_scale
from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.bitnet import FORMS, BitLinear, bit_linears, codes


@torch.no_grad()
def save(model: Any, directory: Path, form: str = "online") -> None:
    """Writes config.json, generation_config.json and model.safetensors into an existing ``directory``.

    Raises UsageError for an unknown form or a model that was not converted, UnsupportedError naming a layer that the
    form cannot hold.
    """
    if form not in FORMS:
        raise UsageError(f"form: '{form}' is not one of {', '.join(FORMS)}")
    layers = bit_linears(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    check_rows(layers, form)
    if form != "online":
        for name, layer in layers.items():
            state |= _packed(name, layer, form)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, directory / "model.safetensors", {"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=True))
    config |= {
        "architectures": [type(model).__name__],
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization_config": quantization_config(model, form),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(directory)


def quantization_config(model: nn.Module, form: str) -> dict[str, Any]:
    """The field of config.json that says how the weights are stored."""
    layers = bit_linears(model)
    fields: dict[str, Any] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if form == "bitlinear" else "autobitlinear",
        "quantization_mode": "online" if form == "online" else "offline",
    }
    plain = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    if plain != ["lm_head"]:
        fields["modules_to_not_convert"] = plain
    norms = [layer.rms_norm for layer in layers.values() if layer.rms_norm is not None]
    if norms:
        fields |= {"use_rms_norm": True, "rms_norm_eps": norms[0].variance_epsilon}
    return fields


def pack(trits: Tensor) -> Tensor:
    """uint8 [N/4, K] from codes -1, 0, 1 [N, K], N a multiple of 4."""
    quarters = (trits + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def check_rows(layers: Mapping[str, nn.Module], form: str) -> None:
    """Raises UnsupportedError for a layer whose rows ``form`` cannot hold: better before a training than after it."""
    for name, layer in layers.items():
        if form != "online" and isinstance(layer, nn.Linear) and layer.out_features % 4:
            raise UnsupportedError(
                f"{name}: {layer.out_features} rows do not fill bytes of four, which transformers needs; save it as "
                "online or exclude the layer"
            )


def _packed(name: str, layer: BitLinear, form: str) -> dict[str, Tensor]:
    inverse = inverse_scale(layer.weight)
    scale = inverse if form == "bitlinear" else 1.0 / inverse
    tensors = {f"{name}.weight": pack(codes(layer.weight)), f"{name}.weight_scale": scale.reshape(1)}
    if form == "autobitlinear" and layer.bias is not None:
        tensors[f"{name}.bias"] = layer.bias * inverse  # it is added before the scale, and so multiplied by it
    return tensors
