"""Attention of a decoder's layers as ``edgekit::gqa``, each with its cache.

An attention argument that edgekit does not know is refused by name, because swallowing it would give a model that runs
and is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.recurrence import States, convolutions, true_name

MAX_POSITIONS = 32768
"""Rotary tables are cut here: a 131072-position table costs 67 MB. The bundle's ``max_length`` says what was kept."""

HEAD = 8
"""ONNX Runtime's operator has heads of a multiple of it."""

HARMLESS = {
    "dropout", "use_cache", "output_attentions", "output_hidden_states", "position_ids", "cache_position", "is_causal",
    "logits_to_keep",
}  # fmt: skip
"""Attention arguments that do not change the numbers of an inference pass."""


@dataclass(frozen=True)
class Cached:
    """One cache: the new keys and values as a layer gives them, and all there are then."""

    new: tuple[Tensor, Tensor]
    present: tuple[Tensor, Tensor]
    layer: int | None  # what transformers calls it


@dataclass
class Context:
    """What the replaced parts of one model share while it runs."""

    positions: Tensor | None = None
    lengths: Tensor | None = None
    total: Tensor | None = None
    kept: tuple[Tensor, Tensor] | None = None
    past: list[tuple[Tensor, Tensor]] | None = None
    mask: Tensor | None = None
    cross: list[Tensor] = field(default_factory=list)  # of an encoder: its mask, then keys and values by layer
    features: list[Tensor] = field(default_factory=list)  # of pictures, where the model takes them
    biases: list[Tensor] = field(default_factory=list)  # edgekit's own, which grow with the cache
    states: States = field(default_factory=States)
    caches: list[Cached] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    tables: list[tuple[tuple[Tensor, ...], str, Any]] = field(default_factory=list)
    max_length: int = MAX_POSITIONS
    tracing: bool = False


def check_layers(model: nn.Module, blocks: dict[str, nn.Module], context: Context) -> None:
    """Refuses a model some of whose layers called no substituted attention, convolution or scan. Raises UnsupportedError."""
    kinds = getattr(model.config.get_text_config(), "layers_block_type", None) or [""] * len(blocks)  # type: ignore[operator, union-attr]
    for layer, block in enumerate(blocks.values()):
        attends = any(id(part) in context.layers for part in block.modules())
        if not attends and layer not in context.states.layers() and kinds[layer] not in ("mlp", "moe"):
            raise UnsupportedError(
                f"{true_name(blocks, layer)}: uses neither transformers' attention interface nor its functions for "
                "convolution and recurrent state, so it has no substitution"
            )
    seen = sum(name.startswith("conv.") for name in context.states.dims)
    if seen != convolutions(model):
        raise UnsupportedError(
            f"{type(model).__name__}: {convolutions(model)} convolutions, {seen} of them with a state that edgekit knows; "
            "the others have no substitution"
        )


def kv_shapes(context: Context, count: int) -> tuple[tuple[int, int], ...]:
    """Heads and head size of every cache; beside states, of every one of ``count`` layers, 0 and 0 where it has none."""
    sizes = [(cached.present[0].shape[1], cached.present[0].shape[3]) for cached in context.caches]
    if not context.states.dims:
        return tuple(sizes)
    layers = [-1 if cached.layer is None else cached.layer for cached in context.caches]
    if layers != sorted({layer for layer in layers if 0 <= layer < count}):
        raise UnsupportedError(
            f"keys and values of layers {layers} of {count}: each of a layer of its own is supported"
        )
    known = dict(zip(layers, sizes, strict=True))
    return tuple(known.get(layer, (0, 0)) for layer in range(count))


def attention(context: Context) -> Callable[..., tuple[Tensor, None]]:
    """The function registered with transformers' attention interface; q, k, v float32 [B, heads, S, D]."""

    def forward(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scaling: float | None = None,
        sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
        position_bias: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        name = type(module).__name__
        scale = float(scaling) if scaling is not None else k.shape[3] ** -0.5
        if any(k is keys for keys in context.cross[1::2]):
            return torch.ops.edgekit.cross(q, k, v, context.cross[0], scale), None
        if position_bias is not None and not any(position_bias is bias for bias in context.biases):
            raise UnsupportedError(f"{name}: attention with its own position_bias is not supported")
        for key, value in kwargs.items():
            if key not in HARMLESS and value is not None and value is not False:
                raise UnsupportedError(
                    f"{name}: attention argument {key!r} is not supported; exporting without it would be wrong"
                )
        if mask is not None or not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
            raise UnsupportedError(f"{name}: attention with its own mask or without causality is not supported")
        cap, window = float(softcap or 0.0), int(sliding_window or -1)
        return attend(context, module, q, k, v, scale, cap, window, s_aux, position_bias), None

    return forward


def attend(
    context: Context, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float = 0.0, window: int = -1,
    sink: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention of the new tokens to all so far, [B, S, heads, D]; q, k, v float32 [B, heads, S, D] of the new tokens.

    Every call has a cache of its own, but for one that is given an earlier call's keys and values: it reads that one's.
    """
    if k.shape[2] != q.shape[2]:
        raise UnsupportedError(f"{type(module).__name__}: attention to other tokens than its own is not supported")
    context.layers.add(id(module))
    given = (k, v)
    shared = next((i for i, c in enumerate(context.caches) if c.new[0] is k and c.new[1] is v), None)
    place = len(context.caches) if shared is None else shared
    wanted = v.shape[-1]
    size = -(-max(q.shape[-1], wanted) // HEAD) * HEAD
    # Latent attention has keys and values of two sizes, the operator one; zeros change no sum.
    q, k, v = (x if x.shape[-1] == size else functional.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    past_k, past_v = context.past[place] if context.past is not None else (k[:, :, :0], v[:, :, :0])
    out, *present = torch.ops.edgekit.gqa(
        q, k, v, past_k, past_v, context.lengths, context.total, scale, softcap, window, sink, bias
    )
    if shared is None:
        context.caches.append(Cached(given, (present[0], present[1]), getattr(module, "layer_idx", None)))
    return cast(Tensor, out if wanted == size else out[..., :wanted])
