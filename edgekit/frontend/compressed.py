"""The compressed PyTorch model: the original modules, computing from the bundle's own bytes.

This is what *parity* compares a device with. Weights are unpacked from what was written to the bundle, activations are
rounded as the format says, everything else stays PyTorch float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.lowbit.formats import FORMATS, PackedTensor
from edgekit.lowbit.reference import quantize_activations

CHUNK_ROWS = 4096
"""Rows of a weight unpacked at a time, so that a large head never exists in float32."""


@contextmanager
def compressed(
    module: nn.Module, weights: Mapping[str, PackedTensor], activation_blocks: Mapping[str, int]
) -> Iterator[None]:
    """Within the block, the named layers of ``module`` compute from their packed weights.

    ``weights`` maps module paths of linear, Conv1D and embedding layers to packed tensors of shape [N, K];
    ``activation_blocks`` gives for each the block in which its input is rounded to int8 (0 = per token, -1 = not).
    """
    modules = dict(module.named_modules())
    by_weight = {id(modules[name].weight): (packed, activation_blocks[name]) for name, packed in weights.items()}
    plain_linear, plain_embedding = functional.linear, functional.embedding

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = by_weight.get(id(weight))
        return plain_linear(x, weight, bias) if found is None else multiply(x, *found, bias)

    def embedding(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = by_weight.get(id(weight))
        return plain_embedding(ids, weight, *args, **kwargs) if found is None else look_up(ids, found[0])

    conv1d = [m for name in weights if type(m := modules[name]).__name__ == "Conv1D"]
    functional.linear, functional.embedding = linear, embedding  # type: ignore[assignment]
    for layer in conv1d:
        layer.forward = _conv1d(layer, *by_weight[id(layer.weight)])  # type: ignore[method-assign]
    try:
        yield
    finally:
        functional.linear, functional.embedding = plain_linear, plain_embedding  # type: ignore[assignment]
        for layer in conv1d:
            del layer.forward


def _conv1d(layer: nn.Module, packed: PackedTensor, block: int) -> Callable[[Tensor], Tensor]:
    return lambda x: multiply(x, packed, block, layer.bias)  # type: ignore[arg-type]


def multiply(x: Tensor, packed: PackedTensor, block: int, bias: Tensor | None) -> Tensor:
    """``x`` float [..., K], rounded in blocks of ``block``, times the packed weight [N, K]; float32 [..., N]."""
    rows = np.ascontiguousarray(x.detach().float().reshape(-1, x.shape[-1]).numpy())
    flat = torch.from_numpy(quantize_activations(rows, block) if block >= 0 else rows)
    out = torch.empty(flat.shape[0], packed.shape[0])
    for start in range(0, packed.shape[0], CHUNK_ROWS):
        part = packed.rows(start, min(start + CHUNK_ROWS, packed.shape[0]))
        out[:, start : start + CHUNK_ROWS] = flat @ torch.from_numpy(FORMATS[packed.format].dequantize(part)).t()
    if bias is not None:
        out += bias.detach().float()
    return out.reshape(*x.shape[:-1], packed.shape[0])


def look_up(ids: Tensor, packed: PackedTensor) -> Tensor:
    """Rows of a packed table [V, K] at int64 ``ids`` [...], float32 [..., K]."""
    index = ids.reshape(-1).numpy()
    arrays = {f: getattr(packed, f) for f in ("data", "scales", "zero_points")}
    taken = {f: None if a is None else np.ascontiguousarray(a[index]) for f, a in arrays.items()}
    some = dataclasses.replace(packed, shape=(len(index), packed.shape[1]), **taken)
    return torch.from_numpy(FORMATS[packed.format].dequantize(some)).reshape(*ids.shape, -1)
