"""The compressed PyTorch model: the original modules, computing from the bundle's own bytes.

This is what *parity* compares a device with. Weights are unpacked from what was written to the bundle, activations are
rounded as the format says, everything else stays PyTorch float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.frontend import streamed
from edgekit.frontend.decoder import ops
from edgekit.frontend.decoder.mixture import gate_of, stack
from edgekit.frontend.streamed import layer_functions, stored_weight, streaming
from edgekit.lowbit.formats import CODECS, PackedTensor
from edgekit.lowbit.reference import quantize_activations
from edgekit.lowbit.weights import RowWeight
from edgekit.spec.records import Surviving


def _layer_modules(module: nn.Module) -> dict[str, Any]:
    """Modules by path; torch's own attention computes with its last layer's weight and has that layer's products as its own."""
    return {n: m.out_proj if isinstance(m, nn.MultiheadAttention) else m for n, m in module.named_modules()}


def replaceable(module: nn.Module, weights: Mapping[str, PackedTensor]) -> bool:
    """Whether :func:`compressed` can: each layer is some module's ``weight`` or experts', none a parameter of another name."""
    modules = _layer_modules(module)

    def owned(name: str) -> bool:
        if name in modules:
            return isinstance(getattr(modules[name], "weight", None), nn.Parameter)
        return hasattr(modules.get(name.rpartition(".")[0]), "is_concatenated")

    return all(map(owned, weights))


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Within the block, torch's encoder layers call their parts one by one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def compressed(
    module: nn.Module,
    weights: Mapping[str, PackedTensor],
    activation_blocks: Mapping[str, int],
    surviving: Mapping[str, Surviving] | None = None,
) -> Iterator[None]:
    """Within the block, the named layers of ``module`` compute from their packed weights.

    ``weights`` maps module paths of linear, Conv1D and embedding layers to packed tensors of shape [N, K]; their own
    weights are let go for good. ``activation_blocks`` gives for each the block in which its input is rounded to int8 (0
    = per token, -1 = not), ``surviving`` what is left of layers whose dead units were removed: [N, K] is then less than
    the module's.
    """
    modules = _layer_modules(module)
    mixtures = {name.rpartition(".")[0] for name in weights if name not in modules}
    stacks, weights = weights, {name: packed for name, packed in weights.items() if name in modules}
    if weights:
        _let_go(module, [modules[name] for name in weights])
    by_weight = {
        id(modules[name].weight): (packed, activation_blocks[name], (surviving or {}).get(name))
        for name, packed in weights.items()
    }
    plain_linear, plain_embedding = functional.linear, functional.embedding

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        packed = by_weight.get(id(weight))
        return plain_linear(x, weight, bias) if packed is None else multiply(x, *packed[:2], bias, packed[2])

    def embedding(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        packed = by_weight.get(id(weight))
        return plain_embedding(ids, weight, *args, **kwargs) if packed is None else look_up(ids, packed[0], packed[2])

    conv1d: list[Any] = [m for name in weights if type(m := modules[name]).__name__ == "Conv1D"]
    for layer in conv1d:
        packed, block, left = by_weight[id(layer.weight)]
        layer.forward = partial(multiply, packed=packed, block=block, bias=layer.bias, left=left)
    for name in mixtures:
        modules[name].forward = _mixture(modules[name], name, stacks, activation_blocks)
    try:
        with layer_functions(linear=linear, embedding=embedding), _no_fast_path():
            yield
    finally:
        for layer in (*conv1d, *(modules[name] for name in mixtures)):
            del layer.forward


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Experts' packed weight [E N, K], of which one expert's [N, K] is unpacked at a time."""

    packed: PackedTensor
    rows: int

    def __getitem__(self, expert: int, /) -> Tensor:
        part = self.packed.rows(expert * self.rows, (expert + 1) * self.rows)
        return torch.from_numpy(CODECS[part.format].dequantize(part))


def _mixture(
    module: Any, name: str, weights: Mapping[str, PackedTensor], activation_blocks: Mapping[str, int]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A module of experts that computes from its packed weights."""
    gate = gate_of(module)
    assert gate is not None  # it was exported
    count = int(module.gate_up_proj.shape[0])
    up, down = weights[f"{name}.gate_up_proj"], weights[f"{name}.down_proj"]
    stacks = (
        _Stack(up, up.shape[0] // count), stack(module, "gate_up_proj_bias"),
        _Stack(down, down.shape[0] // count), stack(module, "down_proj_bias"),
    )  # fmt: skip
    block = activation_blocks[f"{name}.gate_up_proj"]
    return lambda x, index, mixed: ops.experts(
        x, index, mixed, *stacks, *gate, rounded=lambda values: round_activations(values, block)
    )


def _let_go(module: nn.Module, packed: Sequence[nn.Module]) -> None:
    """Replaces packed layers' weights by empty placeholders (tied ones by the same); copies what is left of the file."""
    weights = [cast(nn.Parameter, layer.weight) for layer in packed]  # kept until the end: ids must stay unique
    empty = {id(weight): nn.Parameter(torch.empty(0), requires_grad=False) for weight in weights}
    for layer in module.modules():  # all that share it, also those that became one node and have no name in the bundle
        replacement = empty.get(id(layer._parameters.get("weight")))
        if replacement is not None:
            layer.weight = replacement
            layer.__dict__.pop("stored_weight", None)
    elsewhere = {id(m.weight) for m in module.modules() if stored_weight(m) is not None}
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in elsewhere:
            tensor.data = tensor.data.clone()


@contextmanager
def native_activations(module: nn.Module) -> Iterator[None]:
    """Within the block, layers that quantize their own input (BitNet: attribute ``activation_block_size``) do so.

    Streamed layers compute with their stored weights.
    """
    with streaming(module), _rounded(module):
        yield


@contextmanager
def _rounded(module: nn.Module) -> Iterator[None]:
    layers = [m for m in module.modules() if hasattr(m, "activation_block_size")]
    kept = [m.weight for m in layers]  # ids must stay unique
    blocks = {id(w): cast(int, m.activation_block_size) for w, m in zip(kept, layers, strict=True)}
    plain = functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        block = blocks.get(id(weight), -1)
        return plain(x if block < 0 else round_activations(x, block), weight, bias)

    with layer_functions(linear=linear):
        yield


def round_activations(x: Tensor, block: int) -> Tensor:
    """``x`` float [..., K] rounded to int8 steps in blocks of ``block`` (0 = per token), as float32."""
    rows = np.ascontiguousarray(x.detach().float().reshape(-1, x.shape[-1]).numpy())
    return torch.from_numpy(quantize_activations(rows, block)).reshape(x.shape)


def multiply(x: Tensor, packed: PackedTensor, block: int, bias: Tensor | None, left: Surviving | None = None) -> Tensor:
    """``x`` float [..., K], rounded in blocks of ``block``, times the packed weight [N, K]; float32 [..., N].

    Where only some rows and columns are ``left``, ``x`` and the result have those of the whole layer: columns that are
    not there are not read, rows that are not there are their bias.
    """
    if left is not None:
        some = multiply(x[..., torch.tensor(left.columns)], packed, block, None)
        whole = some.new_zeros(*some.shape[:-1], left.size)
        whole[..., torch.tensor(left.rows)] = some
        return whole if left.bias is None else whole + torch.tensor(left.bias)
    dequantize = CODECS[packed.format].dequantize
    # torch wants no read-only memory
    rows = RowWeight(packed.shape, lambda a, b: np.require(dequantize(packed.rows(a, b)), requirements="W"))
    return streamed.multiply(x.detach().float() if block < 0 else round_activations(x, block), rows, bias)


def look_up(ids: Tensor, packed: PackedTensor, left: Surviving | None = None) -> Tensor:
    """Rows of a packed table [V, K] at int64 ``ids`` [...], float32 [..., K]; those that are not ``left`` are zeros."""
    index = ids.reshape(-1).numpy()
    if left is not None:
        rows = np.array(left.rows)
        place = np.minimum(np.searchsorted(rows, index), len(rows) - 1)
        there = torch.from_numpy(rows[place] == index).reshape(*ids.shape, 1)
        return look_up(torch.from_numpy(place).reshape(ids.shape), packed) * there
    scales = None if packed.scales is None else packed.scales[index]
    some = dataclasses.replace(packed, shape=(len(index), packed.shape[1]), data=packed.data[index], scales=scales)
    return torch.from_numpy(CODECS[packed.format].dequantize(some)).reshape(*ids.shape, -1)
