"""LoRA adapters as PEFT saves them, merged into the weights or kept beside them.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685): W + (alpha / r) B A, or alpha /
sqrt(r) where the adapter was trained with use_rslora. Merging must come before rounding, and each merged weight is
rounded anew; beside a compressed weight the adapter keeps its own precision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.low_rank import BranchedLinear, attach
from edgekit.methods.eora import FORMATS, OF, stored
from edgekit.strict import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OTHER_KINDS = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication", "use_qalora", "alora_invocation_tokens"
)  # fmt: skip
RESIDUAL = ("pissa", "olora", "corda", "loftq")
"""Ways to begin that change the base model's weights too: such an adapter belongs to those."""
_KEY = re.compile(r"(?P<layer>.+)\.(?P<part>lora_[AB])(\.default)?\.weight")


@dataclass(frozen=True)
class Lora:
    """``adapter``: a PEFT directory; ``merge`` adds it to the weights, else it is a low-rank branch in ``format``."""

    adapter: str
    merge: bool = False
    format: str = "int8"
    of: str = "none"  # how the weights are compressed, as in eora

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"lora.format: '{self.format}' is not one of {', '.join(FORMATS)}")
        if self.of not in OF:
            raise UsageError(f"lora.of: '{self.of}' is not one of {', '.join(OF)}")


@dataclass(frozen=True)
class Adapter:
    """B [N, r], already scaled, and A [r, K] of one layer, float32."""

    up: Tensor
    down: Tensor


def read_adapter(directory: Path) -> dict[str, Adapter]:
    """The adapters in a PEFT directory by the layer's name in the model.

    Raises SourceError when it is missing, damaged or incomplete, UnsupportedError for kinds that are no plain LoRA.
    """
    config = _config(directory / CONFIG)
    path = directory / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SourceError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); give a PEFT directory"
        ) from error
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        matched = _KEY.fullmatch(key)
        if matched is None:
            raise UnsupportedError(
                f"{path}: '{key}' is no lora_A or lora_B of a linear layer; only those can be taken over"
            )
        parts.setdefault(matched["layer"].removeprefix(PREFIX), {})[matched["part"]] = tensor
    bad = next((key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
    if bad is not None:
        raise SourceError(f"{path}: '{bad}' holds NaN or infinity; train or save the adapter again")
    return {layer: _adapter(layer, tensors, config, path) for layer, tensors in parts.items()}


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(path, SourceError, "give a directory that PEFT saved")
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"{path}: peft_type is {config.get('peft_type')!r}, not 'LORA'; only LoRA adapters can be taken over"
        )
    unsupported = [key for key in OTHER_KINDS if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        unsupported.append("init_lora_weights")
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    if unsupported:
        raise UnsupportedError(
            f"{path}: {unsupported[0]} is set ({config[unsupported[0]]!r}), which is no plain LoRA; merge the adapter "
            "with PEFT and give the merged model"
        )
    return config


def _adapter(layer: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> Adapter:
    down, up = parts.get("lora_A"), parts.get("lora_B")
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down):
        shapes = {part: list(tensor.shape) for part, tensor in parts.items()}
        raise SourceError(f"{path}: {layer} has {shapes}; expected lora_A [r, K] and lora_B [N, r]")
    alpha = _pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"), path.with_name(CONFIG))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise SourceError(f"{path.with_name(CONFIG)}: lora_alpha is {alpha!r}, not a number")
    rank = len(down)
    if not rank:
        raise SourceError(f"{path}: {layer} has rank 0; there is nothing to add")
    return Adapter(up * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)), down)


def _pattern(patterns: Any, layer: str, default: Any, path: Path) -> Any:
    """PEFT's alpha_pattern: keys are whole names or their ends, as regular expressions."""
    if not isinstance(patterns or {}, dict):
        raise SourceError(f"{path}: alpha_pattern is a {type(patterns).__name__}; expected names with numbers")
    for pattern, value in (patterns or {}).items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({pattern})", layer)
        except re.error as error:
            raise SourceError(f"{path}: alpha_pattern '{pattern}' is no regular expression ({error})") from error
        if fits:
            return value
    return default


@torch.no_grad()
def merge(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Adds adapters to the weights. Raises SourceError for a layer that the model does not have, UnsupportedError for
    one that shares its weight."""
    for name, adapter in adapters.items():
        layer = _layer(model, name, adapter)
        others = [n for n, m in model.named_modules() if m is not layer and m._parameters.get("weight") is layer.weight]
        if others:
            raise UnsupportedError(
                f"{name}: shares its weight with {others[0]}, which merging would change; set merge: false"
            )
        layer.weight += adapter.up @ adapter.down


def beside(
    model: nn.Module, adapters: Mapping[str, Adapter], groups: Sequence[Mapping[str, nn.Linear]], name: str = "int8"
) -> None:
    """Puts adapters beside the weights, rounded to the format ``name``.

    In each of ``groups`` (layers that read one input) the A of all are stacked and computed once; a layer's B has zeros
    for the others'. Raises SourceError for a layer that the model does not have or that has a low-rank branch.
    """
    for layer, adapter in adapters.items():
        if isinstance(linear := _layer(model, layer, adapter), BranchedLinear) and linear.lora_A is not None:
            raise SourceError(
                f"{layer}: has a low-rank branch already; merge the adapter before the model is compressed"
            )
    alone = [{layer: None} for layer in adapters if not any(layer in group for group in groups)]
    for group in [*groups, *alone]:
        members = {layer: adapters[layer] for layer in group if layer in adapters}
        if not members:
            continue
        down = torch.cat([adapter.down for adapter in members.values()])
        shared = nn.Parameter(stored(down, name), requires_grad=False)
        start = 0
        for layer, adapter in members.items():
            up = torch.zeros(len(adapter.up), len(down))
            up[:, start : start + len(adapter.down)] = adapter.up
            start += len(adapter.down)
            attach(model, layer, {"lora_A": shared, "lora_B": stored(up, name)})


def _layer(model: nn.Module, name: str, adapter: Adapter) -> nn.Linear:
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        what = "nothing" if module is None else f"a {type(module).__name__}"
        raise SourceError(f"adapter: '{name}' is {what} in {type(model).__name__}; it belongs to another model")
    wanted = (module.out_features, module.in_features)
    if (len(adapter.up), adapter.down.shape[1]) != wanted:
        raise SourceError(
            f"adapter: '{name}' is for [{len(adapter.up)}, {adapter.down.shape[1]}], the model has {list(wanted)}; "
            "it belongs to another model"
        )
    return module
