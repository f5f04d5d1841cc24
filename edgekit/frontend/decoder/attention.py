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

MAX_POSITIONS = 32768
"""Rotary tables are cut here: a 131072-position table costs 67 MB. The bundle's ``max_length`` says what was kept."""

HEAD = 8
"""ONNX Runtime's operator has heads of a multiple of it."""

HARMLESS = {
    "dropout", "use_cache", "output_attentions", "output_hidden_states", "position_ids", "cache_position", "is_causal"
}  # fmt: skip
"""Attention arguments that do not change the numbers of an inference pass."""


@dataclass(frozen=True)
class Cached:
    """One cache: the new keys and values as a layer gives them, and all there are then."""

    new: tuple[Tensor, Tensor]
    present: tuple[Tensor, Tensor]


@dataclass
class Context:
    """What the replaced parts of one model share while it runs."""

    positions: Tensor | None = None
    lengths: Tensor | None = None
    total: Tensor | None = None
    kept: tuple[Tensor, Tensor] | None = None
    past: list[tuple[Tensor, Tensor]] | None = None
    caches: list[Cached] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    tables: list[tuple[tuple[Tensor, ...], str, Any]] = field(default_factory=list)
    max_length: int = MAX_POSITIONS
    tracing: bool = False


def check_attention(model: nn.Module, context: Context) -> None:
    """Refuses a model some of whose layers never called the substituted attention. Raises UnsupportedError."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    if len(context.layers) != count:
        raise UnsupportedError(
            f"{type(model).__name__}: {len(context.layers)} of {count} layers use transformers' attention interface; "
            "the others (convolution or recurrent state) have no substitution"
        )


def attention(context: Context) -> Callable[..., tuple[Tensor, None]]:
    """The function registered with transformers' attention interface; q, k, v float32 [B, heads, S, D]."""

    def forward(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scaling: float | None = None,
        sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        name = type(module).__name__
        for key, value in kwargs.items():
            if key not in HARMLESS and value is not None and value is not False:
                raise UnsupportedError(
                    f"{name}: attention argument {key!r} is not supported; exporting without it would be wrong"
                )
        if mask is not None or not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
            raise UnsupportedError(f"{name}: attention with its own mask or without causality is not supported")
        scale = float(scaling) if scaling is not None else k.shape[3] ** -0.5
        cap, window = float(softcap or 0.0), int(sliding_window or -1)
        return attend(context, module, q, k, v, scale, cap, window, s_aux), None

    return forward


def attend(
    context: Context, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float = 0.0, window: int = -1,
    sink: Tensor | None = None,
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
        q, k, v, past_k, past_v, context.lengths, context.total, scale, softcap, window, sink
    )
    if shared is None:
        context.caches.append(Cached(given, (present[0], present[1])))
    return cast(Tensor, out if wanted == size else out[..., :wanted])
