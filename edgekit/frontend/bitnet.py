"""BitNet checkpoints in the forms that transformers 5 knows, each turned into plain ``nn.Linear``.

A quantized layer arrives as an ``nn.Linear`` whose float32 weight is exactly code * scale, codes in {-1, 0, 1}, one
scale per tensor, with the attribute ``activation_block_size = 0``: its input is to be quantized to int8 per token.

========================  ===========================================  ===================================
form                      stored weight                                weight here
========================  ===========================================  ===================================
online (bf16 master)      float [N, K]                                 absmean quantization of it, float32
autobitlinear, offline    uint8 [ceil(N/4), K], or float codes [N, K]  code * weight_scale
bitlinear                 uint8 [ceil(N/4), K]                         code * (1 / weight_scale)
========================  ===========================================  ===================================

Four rows share a byte, ``ceil(N/4)`` rows apart: byte (r, c) holds row r + i * ceil(N/4) at bits 2i and 2i+1, as
code + 1. transformers itself cannot load N % 4 != 0; here it is cut to N rows.

*Bias.* AutoBitLinear multiplies ``x @ codes + bias`` by weight_scale, so its bias is scaled too when offline, and
not when online. Here the bias is multiplied beforehand.

*Scale convention.* weight_scale is the mean |w| for autobitlinear and its reciprocal for bitlinear, and the wrong
pairing raises no error anywhere. The codes are the same in both conventions, so only the size of the scale can
tell: weights of trained or freshly initialised layers have a mean |w| well below ``_PLAUSIBLE``, its reciprocal is
well above. A checkpoint whose median layer exceeds ``_PLAUSIBLE`` as declared, and would not the other way round, is
refused. Scales between 1 / ``_PLAUSIBLE`` and ``_PLAUSIBLE`` fit either convention: there the declared class is
believed, and only the model's perplexity can tell.

*Which transformers these weights reproduce.* Online, with the model in float32: bit for bit. Packed bitlinear in
float32: to rounding (the division by the scale moves from the output to the weight). Packed autobitlinear: to the
rounding of bfloat16, the only dtype in which transformers runs it. Tested in tests/unit/test_bitnet.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import nn

from edgekit.errors import SourceError
from edgekit.frontend.checkpoint import Checkpoint
from edgekit.frontend.weights import unpickled

_PLAUSIBLE = 8.0  # Weights of mean |w| 8 would make a layer multiply its input by hundreds.
_ONLINE_HINT = '{"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}'


class _Read(Protocol):
    def __call__(self, name: str) -> torch.Tensor: ...


def missing_quantization_config(path: Path) -> str:
    """Message for a "bitnet" config that does not say how its weights are quantized."""
    return (
        f"{path}: model_type bitnet without quantization_config: transformers would run it as an ordinary "
        f'full-precision model, silently not ternary; for a master checkpoint add "quantization_config": {_ONLINE_HINT}, '
        "for a packed one copy the field from the model it was made from"
    )


def load(
    checkpoint: Checkpoint, quantization: dict[str, Any], skeleton: Any, common: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Load a BitNet checkpoint as a model of plain linear layers.

    Args:
        checkpoint: its checked weight files.
        quantization: quantization_config of config.json.
        skeleton: the model on the meta device, unquantized.
        common: further arguments of ``from_pretrained``.

    Returns:
        The model, its other weights as stored, and transformers' report on keys.

    Raises:
        SourceError: a scale of the wrong convention, weights that are not in the declared form, missing tensors.
    """
    model_class = type(skeleton)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear)
    }
    form = _form(checkpoint, quantization)
    layers = [name for name in _quantized_layers(skeleton, quantization) if name in shapes]
    with _reader(checkpoint) as (names, read):
        linears = {name: _linear(read, names, name, shapes[name], form, checkpoint.directory) for name in layers}
        state = {name: read(name) for name in names if not _belongs_to(name, layers)}
        _check_convention([scale for _, _, scale in linears.values()], form, checkpoint.directory)
        for name, (_, bias, _) in linears.items():
            # A placeholder of no size of its own: the real weight is float32, this model may not be.
            state[f"{name}.weight"] = torch.zeros((), dtype=torch.float32).expand(shapes[name])
            if bias is not None:
                state[f"{name}.bias"] = bias
        dtype = getattr(torch, checkpoint.dtype)
        model, info = model_class.from_pretrained(None, state_dict=state, dtype=dtype, **common)
        for name, (weight, bias, _) in linears.items():
            norm = read(f"{name}.rms_norm.weight") if quantization.get("use_rms_norm") else None
            epsilon = quantization.get("rms_norm_eps", 1e-6)
            _replace(model, name, weight, bias, norm, epsilon)
    return model, info


def quantize_master(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Absmean quantization of a full-precision weight, the very operations of transformers' WeightQuant.

    Args:
        weight: float [N, K].

    Returns:
        float32 [N, K] of code * scale, and that scale.
    """
    weight = weight.float()
    inverse = 1.0 / weight.abs().mean().clamp_(min=1e-5)
    return (weight * inverse).round().clamp_(-1, 1) / inverse, float(1.0 / inverse)


def unpack(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """int8 [rows, K] of codes -1, 0, 1 from uint8 [ceil(rows/4), K]; ValueError on the unused code 3."""
    if bool(((packed & (packed >> 1) & 0x55) != 0).any()):
        raise ValueError("a byte holds code 3, which stands for nothing")
    parts = [((packed >> (2 * i)) & 3).to(torch.int8) for i in range(4)]
    return torch.cat(parts)[:rows] - 1


def _form(checkpoint: Checkpoint, quantization: dict[str, Any]) -> str:
    """ "online", "autobitlinear" (packed or codes) or "bitlinear"; transformers' own defaults where nothing is said."""
    linear_class = quantization.get("linear_class", "bitlinear")
    mode = quantization.get("quantization_mode", "offline")
    if linear_class not in ("bitlinear", "autobitlinear") or mode not in ("online", "offline"):
        raise SourceError(
            f"{checkpoint.directory}/config.json: quantization_config: linear_class '{linear_class}' with "
            f"quantization_mode '{mode}'; known are bitlinear, autobitlinear and online, offline"
        )
    return "online" if (linear_class, mode) == ("autobitlinear", "online") else str(linear_class)


def _quantized_layers(skeleton: Any, quantization: dict[str, Any]) -> list[str]:
    """Names of the layers that transformers itself would replace; ``skeleton`` is changed."""
    from transformers import BitNetQuantConfig
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear
    from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer

    settings = {key: value for key, value in quantization.items() if key != "quant_method"}
    quantizer = BitNetHfQuantizer(BitNetQuantConfig(**settings), pre_quantized=True)
    quantizer.preprocess_model(model=skeleton)
    return [name for name, module in skeleton.named_modules() if isinstance(module, AutoBitLinear | BitLinear)]


@contextmanager
def _reader(checkpoint: Checkpoint) -> Iterator[tuple[list[str], _Read]]:
    """Names of the stored tensors, and a function that reads one (memory-mapped where the file allows)."""
    from safetensors import safe_open

    if checkpoint.pickled:
        state = unpickled(checkpoint.files)
        yield list(state), lambda name: state[name]
        return
    with ExitStack() as stack:
        files = {f: stack.enter_context(safe_open(f, framework="pt")) for f in checkpoint.files}
        yield list(checkpoint.tensors), lambda name: files[checkpoint.tensors[name].file].get_tensor(name)


def _belongs_to(name: str, layers: list[str]) -> bool:
    parents = name.removesuffix(".rms_norm.weight"), name.rpartition(".")[0]
    return any(parent in layers for parent in parents)


def _linear(
    read: _Read, names: list[str], name: str, shape: tuple[int, int], form: str, directory: Path
) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """Weight float32 [N, K], bias [N] or None, and the size of a nonzero weight, of one layer."""
    needed = ["weight"] if form == "online" else ["weight", "weight_scale"]
    for field in needed:
        if f"{name}.{field}" not in names:
            raise SourceError(
                f"{directory}: no tensor '{name}.{field}', which the declared form ({form}) needs; "
                "quantization_config and weights do not belong together"
            )
    stored = read(f"{name}.weight")
    bias = read(f"{name}.bias") if f"{name}.bias" in names else None
    if form == "online":
        if tuple(stored.shape) != shape or not stored.is_floating_point():
            raise _wrong_form(directory, name, stored, shape, "the full-precision master of quantization_mode online")
        weight, scale = quantize_master(stored)
        return weight, bias, scale
    codes = _codes(stored, shape, name, form, directory)
    scale = _scale(read(f"{name}.weight_scale"), name, form, directory)
    if form == "autobitlinear" and bias is not None:
        bias = bias.float() * scale
    return codes.float() * scale, bias, scale


def _codes(stored: torch.Tensor, shape: tuple[int, int], name: str, form: str, directory: Path) -> torch.Tensor:
    """Codes [N, K] of a packed weight, or of one stored as codes, which transformers writes after unpacking."""
    packed_shape = ((shape[0] + 3) // 4, shape[1])
    if tuple(stored.shape) == packed_shape and stored.dtype == torch.uint8:
        try:
            return unpack(stored, shape[0])
        except ValueError as error:
            raise SourceError(f"{directory}: tensor '{name}.weight': {error}; fetch the checkpoint again") from error
    plain = form == "autobitlinear" and tuple(stored.shape) == shape and stored.is_floating_point()
    if plain and bool(((stored == 0) | (stored.abs() == 1)).all()):
        return stored
    raise _wrong_form(directory, name, stored, shape, f"2-bit codes, uint8 {list(packed_shape)}")


def _wrong_form(directory: Path, name: str, stored: torch.Tensor, shape: tuple[int, int], wanted: str) -> SourceError:
    return SourceError(
        f"{directory}: tensor '{name}.weight' is {stored.dtype} {list(stored.shape)} for a layer of {list(shape)}; "
        f"quantization_config promises {wanted}; correct linear_class and quantization_mode in config.json"
    )


def _scale(stored: torch.Tensor, name: str, form: str, directory: Path) -> float:
    """Size of a nonzero weight, whichever way round it was stored."""
    value = float(stored.float().item()) if stored.numel() == 1 else float("nan")
    if not 0 < value < float("inf"):
        raise SourceError(
            f"{directory}: tensor '{name}.weight_scale' is {stored.flatten()[:4].tolist()}, expected one positive number; "
            "fetch the checkpoint again"
        )
    return value if form == "autobitlinear" else float(torch.tensor(1.0) / torch.tensor(value))


def _check_convention(scales: list[float], form: str, directory: Path) -> None:
    if form == "online" or not scales:
        return
    typical = median(scales)
    if typical <= _PLAUSIBLE:
        return
    other = "bitlinear" if form == "autobitlinear" else "autobitlinear"
    raise SourceError(
        f"{directory}: weight_scale is of the other convention: read as {form} the median layer has weights of "
        f"+-{typical:.4g}, read as {other} of +-{1 / typical:.4g}; set quantization_config.linear_class to '{other}' in "
        f"{directory}/config.json if that is how the weights were packed"
    )


def _replace(
    model: Any, name: str, weight: torch.Tensor, bias: torch.Tensor | None, norm: torch.Tensor | None, epsilon: float
) -> None:
    """Put the real weight in; with ``norm``, in front of it the RMSNorm that such layers have."""
    linear: nn.Linear = model.get_submodule(name)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.float(), requires_grad=False)
    linear.__dict__["activation_block_size"] = 0
    if norm is None:
        return
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    rms = LlamaRMSNorm(weight.shape[1], eps=epsilon)
    rms.weight = nn.Parameter(norm, requires_grad=False)
    model.set_submodule(name, nn.Sequential(OrderedDict(rms_norm=rms, linear=linear)))
