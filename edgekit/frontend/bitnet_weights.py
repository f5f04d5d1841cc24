"""BitNet checkpoints in the forms that transformers 5 knows, each turned into plain ``nn.Linear``.

A quantized layer arrives as an ``nn.Linear`` whose weight is exactly code * scale in float32, codes in {-1, 0, 1}, one
scale per tensor, and stays in the file (``streamed``), with the attribute ``activation_block_size = 0``: its input is
to be quantized to int8 per token.

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
rounding of bfloat16, the only dtype in which transformers runs it. Tested in tests/e2e/test_ternary.py.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import nn

from edgekit import absmean
from edgekit.errors import SourceError
from edgekit.frontend import streamed
from edgekit.frontend.allocator import trim_heap
from edgekit.frontend.checkpoint import Checkpoint, unpickled
from edgekit.lowbit.weights import RowWeight

_PLAUSIBLE = 8.0  # Weights of mean |w| 8 would make a layer multiply its input by hundreds.
_ONLINE_HINT = '{"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}'


@dataclass(frozen=True)
class _Reader:
    """Access to a checkpoint's tensors: whole, a few rows at a time, or the first columns."""

    names: tuple[str, ...]
    whole: Callable[[str], torch.Tensor]
    rows: Callable[[str, int, int], torch.Tensor]
    columns: Callable[[str, int], torch.Tensor]
    shape: Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class _Layer:
    """A quantized layer: its weight, its bias or None, and the size of a nonzero weight."""

    weight: RowWeight
    bias: torch.Tensor | None
    scale: float


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
    """A BitNet checkpoint as a model of plain linear layers, whose weights stay in the file (``streamed``), its other
    weights as stored; and transformers' report on keys.

    ``quantization`` is quantization_config of config.json, ``skeleton`` the model on the meta device, unquantized,
    ``common`` further arguments of ``from_pretrained``. Raises SourceError for a scale of the wrong convention, weights
    that are not in the declared form, or missing tensors.
    """
    model_class = type(skeleton)
    weights = streamed.streamable(checkpoint.tensors, skeleton)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear)
    }
    form = _form(checkpoint, quantization)
    layers = [name for name in _quantized_layers(skeleton, quantization) if name in shapes]
    with _reader(checkpoint) as reader:
        linears = {}
        for name in layers:
            linears[name] = _linear(reader, name, shapes[name], form, checkpoint.directory)
            trim_heap()
        _check_convention([layer.scale for layer in linears.values()], form, checkpoint.directory)
        weights = {name: weight for name, weight in weights.items() if not _belongs_to(name, layers)}
        weights |= {f"{name}.weight": layer.weight for name, layer in linears.items()}
        given = {name: streamed.placeholder(weight.shape) for name, weight in weights.items()}
        others = [name for name in reader.names if name not in given and not _belongs_to(name, layers)]
        state = {name: reader.whole(name) for name in others} | given
        state |= {f"{name}.bias": layer.bias for name, layer in linears.items() if layer.bias is not None}
        model, info = model_class.from_pretrained(None, state_dict=state, dtype=torch.float32, **common)
        if not streamed.attach(model, given, weights):
            raise SourceError(
                f"{checkpoint.directory}: transformers {transformers.__version__} rearranges {model_class.__name__}'s "
                "weights when it loads them, and BitNet's cannot be; please report it with the model's config.json"
            )
        for name, layer in linears.items():
            norm = reader.whole(f"{name}.rms_norm.weight") if quantization.get("use_rms_norm") else None
            _finish(model, name, layer.bias, norm, quantization.get("rms_norm_eps", 1e-6))
    return model, info


def unpack(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """int8 [rows, K] of codes -1, 0, 1 from uint8 [ceil(rows/4), K]; ValueError on the unused code 3."""
    _check_bytes(packed)
    return _codes_between(lambda start, stop: packed[start:stop], packed.shape[0], 0, rows)


def _check_bytes(packed: torch.Tensor) -> None:
    if bool(((packed & (packed >> 1) & 0x55) != 0).any()):
        raise ValueError("a byte holds code 3, which stands for nothing")


def _codes_between(read: Callable[[int, int], torch.Tensor], quarter: int, start: int, stop: int) -> torch.Tensor:
    """Codes of rows ``start`` to ``stop``; ``read`` gives rows of the packed bytes, of which there are ``quarter``."""
    parts = []
    for i in range(4):
        first, last = max(start - i * quarter, 0), min(stop - i * quarter, quarter)
        if first < last:
            parts.append(((read(first, last) >> (2 * i)) & 3).to(torch.int8) - 1)
    return torch.cat(parts)


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
def _reader(checkpoint: Checkpoint) -> Iterator[_Reader]:
    """The stored tensors, read from the files when they are asked for."""
    from safetensors import safe_open

    if checkpoint.pickled:
        state = unpickled(checkpoint.files)
        yield _Reader(
            tuple(state),
            lambda name: state[name],
            lambda name, start, stop: state[name][start:stop],
            lambda name, count: state[name][:, :count],
            lambda name: tuple(state[name].shape),
        )
        return
    tensors = checkpoint.tensors
    with ExitStack() as stack:
        files = {f: stack.enter_context(safe_open(f, framework="pt")) for f in checkpoint.files}
        yield _Reader(
            tuple(tensors),
            lambda name: files[tensors[name].file].get_tensor(name),
            lambda name, start, stop: streamed.read_rows(tensors[name], start, stop),
            lambda name, count: streamed.read_columns(tensors[name], count),
            lambda name: tensors[name].shape,
        )


def _belongs_to(name: str, layers: list[str]) -> bool:
    parents = name.removesuffix(".rms_norm.weight"), name.rpartition(".")[0]
    return any(parent in layers for parent in parents)


def _linear(reader: _Reader, name: str, shape: tuple[int, int], form: str, directory: Path) -> _Layer:
    """One layer of the declared form, checked; its weight is not kept."""
    needed = ["weight"] if form == "online" else ["weight", "weight_scale"]
    for field in needed:
        if f"{name}.{field}" not in reader.names:
            raise SourceError(
                f"{directory}: no tensor '{name}.{field}', which the declared form ({form}) needs; "
                "quantization_config and weights do not belong together"
            )
    bias = reader.whole(f"{name}.bias") if f"{name}.bias" in reader.names else None
    codes, first, inverse = _codes(reader, name, shape, form, directory)
    if inverse is not None:
        scale = 1.0 / inverse
    else:
        scale = torch.tensor(_scale(reader.whole(f"{name}.weight_scale"), name, form, directory))
        if form == "autobitlinear" and bias is not None:
            bias = bias.float() * scale
    weight = RowWeight(
        shape,
        lambda start, stop: (codes(start, stop).float() * scale).numpy(),
        lambda start, stop: codes(start, stop).numpy(),
        scale.reshape(1).numpy(),
        lambda count: first(count).numpy(),
    )
    return _Layer(weight, bias, float(scale))


def _codes(
    reader: _Reader, name: str, shape: tuple[int, int], form: str, directory: Path
) -> tuple[Callable[[int, int], torch.Tensor], Callable[[int], torch.Tensor], torch.Tensor | None]:
    """Reads codes int8 of a layer's rows; its first columns; and, rounded from a master, the inverse of their scale."""
    columns = functools.partial(reader.columns, f"{name}.weight")
    stored, quarter = f"{name}.weight", (shape[0] + 3) // 4
    stored_shape, example = reader.shape(stored), reader.rows(stored, 0, 1)
    floats = example.is_floating_point() and stored_shape == shape
    if form == "online":
        if not floats:
            wanted = "the full-precision master of quantization_mode online"
            raise _wrong_form(directory, name, example.dtype, stored_shape, shape, wanted)
        inverse = absmean.inverse_scale(
            reader.rows(stored, 0, shape[0])
        )  # read, not mapped: so it is given back at once
        return (
            lambda start, stop: absmean.codes(reader.rows(stored, start, stop), inverse).to(torch.int8),
            lambda count: absmean.codes(columns(count), inverse),
            inverse,
        )
    if stored_shape == (quarter, shape[1]) and example.dtype == torch.uint8:
        read = functools.partial(reader.rows, stored)
        try:
            _check_bytes(read(0, quarter))
        except ValueError as error:
            raise SourceError(f"{directory}: tensor '{stored}': {error}; fetch the checkpoint again") from error
        return (
            lambda start, stop: _codes_between(read, quarter, start, stop),
            lambda count: unpack(columns(count), shape[0]),
            None,
        )
    # transformers writes codes as floats after unpacking.
    if form == "autobitlinear" and floats:
        whole = reader.rows(stored, 0, shape[0])
        if bool(((whole == 0) | (whole.abs() == 1)).all()):
            return lambda start, stop: reader.rows(stored, start, stop).to(torch.int8), columns, None
    wanted = f"2-bit codes, uint8 {[quarter, shape[1]]}"
    raise _wrong_form(directory, name, example.dtype, stored_shape, shape, wanted)


def _wrong_form(
    directory: Path, name: str, dtype: torch.dtype, stored: tuple[int, ...], shape: tuple[int, int], wanted: str
) -> SourceError:
    return SourceError(
        f"{directory}: tensor '{name}.weight' is {dtype} {list(stored)} for a layer of {list(shape)}; "
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
    if form == "online" or not scales or (typical := median(scales)) <= _PLAUSIBLE:
        return
    other = "bitlinear" if form == "autobitlinear" else "autobitlinear"
    raise SourceError(
        f"{directory}: weight_scale is of the other convention: read as {form} the median layer has weights of "
        f"+-{typical:.4g}, read as {other} of +-{1 / typical:.4g}; set quantization_config.linear_class to '{other}' in "
        f"{directory}/config.json if that is how the weights were packed"
    )


def _finish(model: Any, name: str, bias: torch.Tensor | None, norm: torch.Tensor | None, epsilon: float) -> None:
    """Put in the real bias and the mark of a quantized layer; with ``norm``, in front of it the RMSNorm that it has."""
    linear: nn.Linear = model.get_submodule(name)
    if bias is not None:
        linear.bias = nn.Parameter(bias.float(), requires_grad=False)
    linear.__dict__["activation_block_size"] = 0
    if norm is None:
        return
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    rms = LlamaRMSNorm(linear.in_features, eps=epsilon)
    rms.weight = nn.Parameter(norm.float(), requires_grad=False)
    model.set_submodule(name, nn.Sequential(OrderedDict(rms_norm=rms, linear=linear)))
