"""llama.cpp's own quantizations of a GGUF file, for benchmarks/accuracy.py.

llama.cpp rounds the weights. Its logits are not asked for, llama-cpp-python gives some 60 tokens a second: gguf-py
dequantizes the file, torch runs the model as it runs the others, and what each layer reads is rounded as llama.cpp's
kernels round it, to int8 in blocks of 32, beside K-quants of 256.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor, nn

TYPES = ("Q4_0", "IQ4_NL", "Q3_K_M", "Q4_K_S", "Q8_0") if importlib.util.find_spec("llama_cpp") else ()
"""llama.cpp's names; none where llama-cpp-python is not installed."""
FLOAT = "F32"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def quantized(source: Path, name: str, moments: Mapping[str, Tensor]) -> tuple[nn.Module, float, int]:
    """The weights of ``source`` in the type ``name``, embedding and head in Q8_0: the model, bits a weight of its blocks'
    linear layers, bytes of the file. ``moments`` [K] of the layers' inputs are its importance matrix; none where empty."""
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / f"{name}.gguf"
        quantize(source, target, name, moments)
        tensors = {t.name: t for t in GGUFReader(target).tensors}
        inside = [t for t in tensors.values() if t.name.startswith("blk.") and len(t.shape) == 2]
        bits = 8 * sum(int(t.n_bytes) for t in inside) / sum(int(t.n_elements) for t in inside)
        module = opened(target)
        sizes = {}
        for layer in (name for name, linear in module.named_modules() if isinstance(linear, nn.Linear)):
            tensor = tensors.get(f"{gguf_name(layer)}.weight")
            k_quant = tensor is not None and GGMLQuantizationType(tensor.tensor_type).name.endswith("_K")
            sizes[layer] = 256 if k_quant else 32
        round_inputs(module, sizes)
        return module, bits, target.stat().st_size


def round_inputs(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """Has the layers named round what they read to int8 in blocks of these sizes, a tensor that several read once."""
    last: list[tuple[Tensor, int, Tensor]] = []

    def once(x: Tensor, size: int) -> Tensor:
        if not last or last[0][0] is not x or last[0][1] != size:
            last[:] = [(x, size, round_activations(x, size))]
        return last[0][2]

    for name, size in sizes.items():
        layer = module.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, size=size: (once(args[0], size), *args[1:]))


def round_activations(x: Tensor, size: int) -> Tensor:
    """edgekit.lowbit.reference.quantize_activations in torch, several times as fast: float32 [..., K], K a multiple of size."""
    blocks = x.reshape(-1, size)
    largest = torch.maximum(blocks.amax(1, keepdim=True), -blocks.amin(1, keepdim=True)).clamp(min=1e-30)
    return (blocks * (torch.tensor(127.0) / largest)).round_().mul_(largest / 127).view(x.shape)


def quantize(source: Path, target: Path, name: str, moments: Mapping[str, Tensor]) -> None:
    """Writes ``source`` in the type ``name``, or as floats."""
    import llama_cpp

    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, "LLAMA_FTYPE_ALL_F32" if name == FLOAT else f"LLAMA_FTYPE_MOSTLY_{name}")
    settings.allow_requantize, settings.nthread = True, 1
    if name != FLOAT:
        settings.token_embedding_type = settings.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    arrays = {layer: np.ascontiguousarray(moment.numpy(), np.float32) for layer, moment in moments.items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()  # the last one stays empty: the end
    for entry, (layer, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = f"{gguf_name(layer)}.weight".encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        settings.imatrix = entries
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings)
    assert status == 0, f"{name}: llama.cpp's quantize gave {status}"


def dithered(source: Path, target: Path) -> None:
    """Writes a file of Q4_1 as floats, uniform noise of half a step to either side added to each weight."""
    quantize(source, target, FLOAT, {})
    draw = np.random.default_rng(0)
    lattice = {t.name: t for t in GGUFReader(source).tensors}
    for tensor in GGUFReader(target, "r+").tensors:
        coded = lattice[tensor.name]
        if coded.tensor_type == GGMLQuantizationType.Q4_1:
            steps = coded.data.reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32)  # of each block of 32
            noise = draw.uniform(-0.5, 0.5, (len(steps), 32)).astype(np.float32) * steps
            tensor.data[:] += noise.reshape(tensor.data.shape)


def opened(path: Path) -> nn.Module:
    """A GGUF file as a float32 model of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **options
    )
    return model.eval()


def gguf_name(layer: str) -> str:
    """model.layers.3.mlp.up_proj -> blk.3.ffn_up; other names as they are."""
    parts = layer.split(".", 3)
    return f"blk.{parts[2]}.{NAMES[parts[3]]}" if layer.startswith("model.layers.") else layer
