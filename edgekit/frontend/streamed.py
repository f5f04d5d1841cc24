"""Weights that stay in the checkpoint: a module's linear and embedding layers read a few rows of theirs at a time.

A streamed layer's ``weight`` is a float32 placeholder of the right shape that takes four bytes; what it stands for is
the layer's attribute ``stored_weight`` (:class:`edgekit.lowbit.weights.RowWeight`). Within :func:`streaming` the layers
compute with that. The placeholder holds NaN, so that code which goes past ``torch.nn.functional`` gives no plausible
numbers. Small tensors (norms, biases) and weights that are no linear or embedding layer's are ordinary float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.frontend.checkpoint import StoredTensor
from edgekit.lowbit.weights import RowWeight

CHUNK = 1 << 23
"""Elements of a weight in float32 at a time: 32 MiB."""
_KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "U8": torch.uint8}

Layer = nn.Linear | nn.Embedding


def read_rows(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of a tensor of at least one dimension, from its file, in the dtype it is stored in."""
    kind = _KINDS[stored.dtype]
    width = int(np.prod(stored.shape[1:], dtype=np.int64)) * kind.itemsize
    data = np.fromfile(stored.file, np.uint8, (stop - start) * width, offset=stored.offset + start * width)
    return torch.from_numpy(data).view(kind).reshape(stop - start, *stored.shape[1:])


def read_columns(stored: StoredTensor, count: int) -> Tensor:
    """The first columns of all rows of a matrix, in the dtype it is stored in; the rest of the file is not read."""
    kind = _KINDS[stored.dtype]
    rows, columns = stored.shape
    shape, width = (rows, columns * kind.itemsize), min(count, columns) * kind.itemsize
    data = np.array(np.memmap(stored.file, np.uint8, "r", stored.offset, shape)[:, :width])
    return torch.from_numpy(data).view(kind)


def _stored_rows(stored: StoredTensor) -> RowWeight:
    """A matrix in a file as float32."""
    return RowWeight(
        (stored.shape[0], stored.shape[1]),
        lambda start, stop: read_rows(stored, start, stop).float().numpy(),
        first=lambda count: read_columns(stored, count).float().numpy(),
    )


def _wide_rows(weight: Tensor) -> RowWeight:
    """A matrix of half precision as float32."""
    return RowWeight(
        (weight.shape[0], weight.shape[1]),
        lambda start, stop: weight[start:stop].detach().float().numpy(),
        first=lambda count: weight[:, :count].detach().float().numpy(),
    )


def streamable(tensors: Mapping[str, StoredTensor], skeleton: nn.Module) -> dict[str, RowWeight]:
    """By parameter name, the checkpoint's tensors that are exactly a linear or embedding layer's weight.

    A tied pair of which the checkpoint holds both is left out: the loader compares them.
    """
    weights = {}
    for name, module in skeleton.named_modules():
        stored = tensors.get(f"{name}.weight")
        if not isinstance(module, Layer) or stored is None or stored.dtype not in ("BF16", "F16", "F32"):
            continue
        if stored.shape == tuple(module.weight.shape):
            weights[f"{name}.weight"] = _stored_rows(stored)
    tied = _tied_names(skeleton)
    return {n: w for n, w in weights.items() if n not in tied} if len(tied & tensors.keys()) > 1 else weights


def _tied_names(skeleton: Any) -> set[str]:
    if not getattr(skeleton.config.get_text_config(), "tie_word_embeddings", False):
        return set()
    ends = [skeleton.get_input_embeddings(), skeleton.get_output_embeddings()]
    return {f"{name}.weight" for name, module in skeleton.named_modules() if any(module is end for end in ends)}


def placeholder(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of ``shape`` that takes the memory of one element and is NaN throughout."""
    return torch.full((), float("nan"), dtype=dtype).expand(shape)


def attach(model: nn.Module, given: Mapping[str, Tensor], weights: Mapping[str, RowWeight]) -> bool:
    """Makes streamed layers of those whose weight is one of the placeholders ``given`` (both by parameter name).

    False, and nothing is changed, when a parameter did not arrive as its placeholder: the loader made something of it.
    """
    names = {tensor.data_ptr(): name for name, tensor in given.items()}
    layers = [m for m in model.modules() if isinstance(m, Layer) and m.weight.data_ptr() in names]
    arrived = {names[m.weight.data_ptr()] for m in layers}
    present = {name for name, _ in model.named_parameters()}  # of tied ones the first
    if (given.keys() - arrived) & present:
        return False
    mine: dict[str, nn.Parameter] = {}
    for layer in layers:
        name = names[layer.weight.data_ptr()]
        _stream(layer, weights[name], mine.setdefault(name, _parameter(weights[name].shape)))
    return True


def _parameter(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(placeholder(shape), requires_grad=False)


def _stream(layer: nn.Module, weight: RowWeight, parameter: nn.Parameter) -> None:
    layer.weight = parameter
    layer.__dict__["stored_weight"] = weight


def widen(model: nn.Module) -> nn.Module:
    """Makes a model compute in float32 without a float32 copy of weights of half precision: those are streamed."""
    narrow: dict[int, nn.Parameter] = {}
    kept = []  # ids must stay unique
    for layer in model.modules():
        weight = layer.weight if isinstance(layer, Layer) else None
        if weight is None or weight.dtype not in (torch.float16, torch.bfloat16):
            continue
        kept.append(weight)
        _stream(layer, _wide_rows(weight), narrow.setdefault(id(weight), _parameter(tuple(weight.shape))))
    return model.float()


def materialize(model: nn.Module) -> nn.Module:
    """Reads all streamed weights into memory, float32; tied ones stay tied."""
    whole: dict[int, nn.Parameter] = {}  # by weight: a tied one is read once
    layers = [(layer, weight) for layer in model.modules() if (weight := stored_weight(layer)) is not None]
    for layer, weight in layers:
        if id(weight) not in whole:
            whole[id(weight)] = nn.Parameter(torch.from_numpy(weight[:]), requires_grad=False)
        layer.weight = whole[id(weight)]
        del layer.__dict__["stored_weight"]
    return model


def stored_weight(layer: nn.Module) -> RowWeight | None:
    """What a streamed layer's placeholder stands for; None for other layers."""
    stored = layer.__dict__.get("stored_weight")
    return stored if isinstance(stored, RowWeight) else None


def stored_weights(model: nn.Module) -> dict[int, RowWeight]:
    """What each placeholder of a model stands for, by its address."""
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    return {layer.weight.data_ptr(): w for layer in layers if (w := stored_weight(layer)) is not None}


@contextmanager
def streaming(model: nn.Module) -> Iterator[None]:
    """Within the block, streamed layers compute: ``x`` float32 times the rows of their weight, 32 MiB at a time."""
    layers = [m for m in model.modules() if stored_weight(m) is not None]
    # The table also keeps the placeholders alive, so that no other tensor gets an id of theirs.
    by_weight = {id(m.weight): (m.weight, m.__dict__["stored_weight"]) for m in layers}
    plain_linear, plain_embedding = functional.linear, functional.embedding

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        stored = by_weight.get(id(weight))
        return plain_linear(x, weight, bias) if stored is None else multiply(x, stored[1], bias)

    def embedding(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        stored = by_weight.get(id(weight))
        return plain_embedding(ids, weight, *args, **kwargs) if stored is None else _look_up(ids, stored[1])

    with layer_functions(linear=linear, embedding=embedding):
        yield


@contextmanager
def layer_functions(**replaced: Callable[..., Tensor]) -> Iterator[None]:
    """Within the block, ``torch.nn.functional`` has these functions instead of its own."""
    plain = {name: getattr(functional, name) for name in replaced}
    vars(functional).update(replaced)
    try:
        yield
    finally:
        vars(functional).update(plain)


def multiply(x: Tensor, weight: RowWeight, bias: Tensor | None) -> Tensor:
    """``x`` float32 [..., K] times a weight [N, K], 32 MiB of it at a time; float32 [..., N]."""
    flat = x.reshape(-1, x.shape[-1])
    rows, columns = weight.shape
    step = max(1, CHUNK // max(1, columns))
    out = torch.empty(flat.shape[0], rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        out[:, start:stop] = flat @ torch.from_numpy(weight[start:stop]).t()
    if bias is not None:
        out += bias.detach().float()
    return out.reshape(*x.shape[:-1], rows)


def _look_up(ids: Tensor, weight: RowWeight) -> Tensor:
    unique, inverse = ids.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    table = torch.empty(len(unique), weight.shape[1])
    for index, row in enumerate(unique.tolist()):
        table[index] = torch.from_numpy(weight[row : row + 1])[0]
    return table[inverse]
