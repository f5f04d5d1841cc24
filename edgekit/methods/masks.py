"""Zeros that stay: which weights take part in a method, and the masks that hold their zeros while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.selection import without

Masks = dict[str, Tensor]
"""By parameter name, bool tensors of the weight's shape; False where a weight is held at zero."""


def matrices(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The trainable matrices and convolutions of a model by name, each once however often it is shared.

    Norms, biases and other vectors are left alone: they are few and not sparse. ``exclude`` are globs over names, such
    as "*embed*". Raises UnsupportedError when none is left, UsageError for a pattern that fits no name.
    """
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    chosen = {name: weights[name] for name in without(weights, exclude, "weight")}
    if not chosen:
        raise UnsupportedError("model: no trainable matrix or convolution; nothing to constrain")
    return chosen


def nonzero(weights: Mapping[str, Tensor]) -> Masks:
    """Masks that hold what is zero now."""
    return {name: weight.detach() != 0 for name, weight in weights.items()}


@torch.no_grad()
def apply(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Puts held zeros back."""
    for name, mask in masks.items():
        masks[name] = mask.to(weights[name].device)  # once: a model may have moved since
        weights[name].mul_(masks[name])


def restored(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Masks:
    """Masks out of a checkpoint. Raises UsageError for those of another model."""
    for name, mask in state.items():
        if name not in weights or mask.shape != weights[name].shape:
            raise UsageError(f"masks: {name} {list(mask.shape)} is no weight of this model; resume with the same model")
    return {name: mask.to(weights[name].device) for name, mask in state.items()}


def zero_share(weights: Mapping[str, Tensor]) -> float:
    """Share of weights that are exactly zero."""
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())
