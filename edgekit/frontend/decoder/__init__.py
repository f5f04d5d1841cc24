"""Decoders: substitute, prove, trace, translate."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import nn

from edgekit.frontend.decoder.tracing import decoder_layers, trace
from edgekit.frontend.decoder.translate import to_onnx
from edgekit.frontend.streamed import stored_weights

__all__ = ["build", "decoder_layers"]


def build(model: nn.Module) -> ir.Model:
    """The decoder graph of a transformers causal language model, float32, before any pass.

    Weights are referred to, not copied. Raises UnsupportedError naming the layer or operator that cannot be exported,
    CheckFailed when the substituted model does not give the original's logits.
    """
    with torch.no_grad():
        traced = trace(model)
    blocks = {
        name: int(m.activation_block_size) for name, m in model.named_modules() if hasattr(m, "activation_block_size")
    }
    return to_onnx(traced, blocks, stored_weights(model), traced.max_length)
