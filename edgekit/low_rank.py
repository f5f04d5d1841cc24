"""Linear layers with branches: further products of the same input, added to what they give.

    y = x W^T + bias  +  x S^T  +  (x A^T) B^T

S is the second plane of a ternary weight, B A a low-rank correction or a LoRA adapter. Layers that read the same input
(query, key and value; gate and up) may share one A, which is then computed once. In a model directory they are the file
``side_paths.safetensors`` (an older word for branches; the name stays, so that saved models stay readable): tensors
``LAYER.second``, ``LAYER.lora_A``, ``LAYER.lora_B``, and in its header who shares whose A.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import SourceError, one_line
from edgekit.strict import parse_json

FILE = "side_paths.safetensors"
PARTS = ("second", "lora_A", "lora_B")
VERSION = "1"


class BranchedLinear(nn.Linear):
    """A linear layer [N, K] with ``second`` [N, K], or ``lora_A`` [r, K] and ``lora_B`` [N, r], or all of them."""

    second: nn.Linear | None
    lora_A: nn.Linear | None
    lora_B: nn.Linear | None

    def __init__(self, plain: nn.Linear) -> None:
        """Takes over the weight and bias of ``plain``."""
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.second = self.lora_A = self.lora_B = None
        if "stored_weight" in plain.__dict__:
            self.__dict__["stored_weight"] = plain.__dict__["stored_weight"]
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        """x float [..., K] -> [..., N]."""
        y = functional.linear(x, self.weight, self.bias)
        if self.second is not None:
            y = y + self.second(x)
        if self.lora_A is not None and self.lora_B is not None:
            y = y + self.lora_B(self.lora_A(x))
        return y


def attach(model: nn.Module, name: str, parts: Mapping[str, Tensor]) -> BranchedLinear:
    """Gives the linear layer called ``name`` branches, some of PARTS; what it has already and is not given stays.

    A parameter given as ``lora_A`` is used as it is, so that several layers can share it.
    """
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    layer = linear if isinstance(linear, BranchedLinear) else BranchedLinear(linear)
    for part, tensor in parts.items():
        branch = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
        branch.weight = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        setattr(layer, part, branch)
    _put(model, name, layer)
    return layer


def branched_layers(model: nn.Module) -> dict[str, BranchedLinear]:
    """A model's layers with branches, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BranchedLinear)}


def branch_names(model: nn.Module, parts: Sequence[str] = PARTS) -> set[str]:
    """The names of a model's branches, those of ``parts``."""
    return {
        f"{name}.{part}" for name, layer in branched_layers(model).items() for part in parts if getattr(layer, part)
    }


@torch.no_grad()
def fold_branches(model: nn.Module) -> None:
    """Makes plain linear layers of a model's BranchedLinears, each with the sum of its weight and its branches."""
    for name, layer in branched_layers(model).items():
        weight = layer.weight.detach().float().clone()
        if layer.second is not None:
            weight += layer.second.weight
        if layer.lora_A is not None and layer.lora_B is not None:
            weight += layer.lora_B.weight @ layer.lora_A.weight
        _put(model, name, _plain(layer, weight))


def take_branches(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Makes plain linear layers of a model's BranchedLinears again; gives their branches, as :func:`write_branches`
    wants them.

    Tensors by name, and for each layer whose A is another's that other one.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, layer in branched_layers(model).items():
        for part in PARTS:
            branch = getattr(layer, part)
            if branch is None:
                continue
            owner = first.setdefault(id(branch.weight), name)
            if owner == name:
                tensors[f"{name}.{part}"] = branch.weight.detach().contiguous()
            else:
                shared[name] = owner
        _put(model, name, _plain(layer, layer.weight))
    return tensors, shared


def _plain(layer: BranchedLinear, weight: Tensor) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    plain.bias = layer.bias
    return plain.train(layer.training)


def write_branches(tensors: dict[str, Tensor], shared: Mapping[str, str], directory: Path) -> None:
    """Writes what :func:`take_branches` gave as ``side_paths.safetensors``; nothing where there is nothing."""
    if tensors:
        save_file(tensors, directory / FILE, {"edgekit": VERSION, "shared": json.dumps(dict(shared))})


def read_branches(model: nn.Module, directory: Path) -> None:
    """Attaches what ``side_paths.safetensors`` in ``directory`` holds, where there is one.

    Raises SourceError when it is damaged or is not this model's.
    """
    path = directory / FILE
    if not path.is_file():
        return
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shared = parse_json(header.get("shared", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise SourceError(f"{path}: damaged ({one_line(error, 120)}); compress the model again") from error
    if header.get("edgekit") != VERSION or not isinstance(shared, dict):
        raise SourceError(
            f"{path}: version {header.get('edgekit')!r}, expected {VERSION!r}; it was made by another edgekit"
        )
    layers = _by_layer(tensors, shared, path)
    for name, parts in layers.items():
        _check(model, name, parts, path)
    for name, parts in layers.items():
        attach(model, name, parts)


def _by_layer(tensors: Mapping[str, Tensor], shared: Mapping[str, Any], path: Path) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    parameters = {name: nn.Parameter(tensor.float(), requires_grad=False) for name, tensor in tensors.items()}
    for name, tensor in parameters.items():
        layer, _, part = name.rpartition(".")
        if part not in PARTS:
            raise SourceError(f"{path}: tensor '{name}' is none of {', '.join(PARTS)} of a layer")
        layers.setdefault(layer, {})[part] = tensor
    for layer, owner in shared.items():
        down = layers.get(str(owner), {}).get("lora_A")
        if layer not in layers or down is None:
            raise SourceError(f"{path}: '{layer}' shares the lora_A of '{owner}', and one of them is not there")
        layers[layer]["lora_A"] = down
    return layers


def _check(model: nn.Module, name: str, parts: Mapping[str, Tensor], path: Path) -> None:
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        what = "nothing" if module is None else f"a {type(module).__name__}"
        raise SourceError(f"{path}: '{name}' is {what} in {type(model).__name__}, not a linear layer")
    rows, columns = module.out_features, module.in_features
    down, up, second = (parts.get(part) for part in ("lora_A", "lora_B", "second"))
    shapes = {part: list(tensor.shape) for part, tensor in parts.items()}
    fits = all(t.ndim == 2 for t in parts.values()) and (second is None or second.shape == (rows, columns))
    if (down is None) != (up is None) or (fits and down is not None and up is not None):
        fits = fits and down is not None and up is not None and (down.shape[1], *up.shape) == (columns, rows, len(down))
    if not fits or not all(bool(torch.isfinite(t).all()) for t in parts.values()):
        raise SourceError(
            f"{path}: '{name}' [{rows}, {columns}] has {shapes} beside it, which do not fit or are not finite"
        )


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
