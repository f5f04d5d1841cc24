"""Replaces what a transformers decoder computes by edgekit's torch operators, for as long as a context lasts.

Nothing is guessed from class names alone: a norm or a rotary embedding is replaced only when the replacement gave the
same numbers on the module itself; an attention argument that edgekit does not know is refused by name, because
swallowing it would give a model that runs and is wrong.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder import ops
from edgekit.frontend.decoder.mixture import check_experts, experts_forward, mixtures_of

MAX_POSITIONS = 32768
"""Rotary tables are cut here: a 131072-position table costs 67 MB. The bundle's ``max_length`` says what was kept."""

HARMLESS = {
    "dropout", "use_cache", "output_attentions", "output_hidden_states", "position_ids", "cache_position", "is_causal"
}  # fmt: skip
"""Attention arguments that do not change the numbers of an inference pass."""


@dataclass
class Context:
    """What the replaced parts of one model share while it runs."""

    positions: Tensor | None = None
    lengths: Tensor | None = None
    total: Tensor | None = None
    kept: tuple[Tensor, Tensor] | None = None
    past: list[tuple[Tensor, Tensor]] | None = None
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)
    tables: list[tuple[Tensor, str, Rotary]] = field(default_factory=list)
    max_length: int = MAX_POSITIONS
    tracing: bool = False


def check_supported(model: nn.Module) -> None:
    """Refuses by name what no substitution exists for. Raises UnsupportedError."""
    check_experts(model)
    if not any("ALL_ATTENTION_FUNCTIONS" in vars(file) for file in _modeling_modules(model)):
        raise UnsupportedError(
            f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot be "
            "replaced; architectures that do (Llama, Qwen, Gemma, Phi-3, Mistral, OLMo, GPT-2, ...) can be exported"
        )
    config = getattr(model, "config", None)
    if getattr(config, "is_causal", True) is False:
        raise UnsupportedError(
            "config.is_causal is false: a bidirectional model is not a decoder; pass --task feature-extraction"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{type(model).__name__}: encoder-decoder models are not supported; export encoder and decoder as modules"
        )


def check_attention(model: nn.Module, context: Context) -> None:
    """Refuses a model some of whose layers never called the substituted attention. Raises UnsupportedError."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    if len(context.shapes) != count:
        raise UnsupportedError(
            f"{type(model).__name__}: {len(context.shapes)} of {count} layers use transformers' attention interface; "
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
        if q.shape[-1] != v.shape[-1]:
            raise UnsupportedError(
                f"{name}: key size {q.shape[-1]}, value size {v.shape[-1]}; latent attention is not supported"
            )
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in context.present:
            raise UnsupportedError(
                f"{name}: layer {layer} has no key-value cache of its own; shared caches are not supported"
            )
        heads, dim = k.shape[1], k.shape[3]
        context.shapes[layer] = (heads, dim)
        past_k, past_v = context.past[layer] if context.past is not None else (k[:, :, :0], v[:, :, :0])
        scale = float(scaling) if scaling is not None else dim**-0.5
        cap, window = float(softcap or 0.0), int(sliding_window or -1)
        out, keys, values = torch.ops.edgekit.gqa(
            q, k, v, past_k, past_v, context.lengths, context.total, scale, cap, window, s_aux
        )
        context.present[layer] = (keys, values)
        return out, None

    return forward


def _true_layout(own: Sequence[Tensor], given: Sequence[Tensor], cos: Tensor, sin: Tensor) -> tuple[str, bool] | None:
    """Which reading of the model's own cos/sin makes ``edgekit::rope`` of [B, H, S, D] give the model's own result."""
    positions = torch.arange(cos.shape[-2]).expand(given[0].shape[0], -1)
    for reading, interleaved in (("half", False), ("half", True), ("even", True), ("whole", False), ("whole", True)):
        c, s = _read(cos[0].float(), reading), _read(sin[0].float(), reading)
        if 2 * c.shape[1] > given[0].shape[-1]:
            continue
        mine = [ops.rope(x.float(), c, s, positions, interleaved) for x in given]
        if all(_close(a, b) for a, b in zip(mine, own, strict=True)):
            return reading, interleaved
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _read(table: Tensor, reading: str) -> Tensor:
    if reading == "whole":
        return table
    return table[:, 0::2] if reading == "even" else table[:, : table.shape[1] // 2]


@dataclass
class Rotary:
    """Stands in for a rotary embedding module: real cos and sin while probing, whole tables while tracing."""

    module: nn.Module
    original: Callable[..., tuple[Tensor, Tensor]]
    context: Context
    layouts: dict[str, tuple[str, bool]] = field(default_factory=dict)  # key: how to read the tables, interleaved
    full: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key = "_".join(str(a) for a in (*args, *kwargs.values())) or "default"
        if self.context.tracing and key not in self.layouts:
            return self.original(x, position_ids, *args, **kwargs)  # no layer rotates with these
        if self.context.tracing:
            cos, sin = getattr(self.module, f"edgekit_cos_{key}"), getattr(self.module, f"edgekit_sin_{key}")
        else:
            cos, sin = self.original(x, position_ids, *args, **kwargs)
            every = torch.arange(self.context.max_length)[None]
            self.full[key] = self.original(x.new_zeros(1, 1, 1), every, *args, **kwargs)
        self.context.tables.append((cos, key, self))
        return cos, sin

    def settle(self) -> list[str]:
        """Writes the tables as buffers, so that the trace sees them; returns their names."""
        names = []
        for key, (reading, _) in self.layouts.items():
            for part, table in zip(("cos", "sin"), self.full[key], strict=True):
                names.append(f"edgekit_{part}_{key}")
                self.module.register_buffer(names[-1], _read(table[0], reading).float().contiguous(), persistent=False)
        return names


def rotate(context: Context, original: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for a modeling file's ``apply_rotary_pos_emb``, of query and key or of one tensor; proves itself while probing."""
    signature = inspect.signature(original)
    names = list(signature.parameters)
    count = names.index("cos") if names[names.index("cos") :][:2] == ["cos", "sin"] else 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        entry = next((t for t in context.tables if t[0] is bound.arguments["cos"]), None)
        if entry is None or not count:
            raise UnsupportedError(
                f"{original.__module__}: rotary tables change before apply_rotary_pos_emb; no substitution exists"
            )
        _, key, rotary = entry
        cos, sin, heads = (bound.arguments.get(name, 1) for name in ("cos", "sin", "unsqueeze_dim"))
        given = [_heads_first(bound.arguments[name], heads) for name in names[:count]]
        if not context.tracing:
            own = original(*args, **kwargs)
            answers = [_heads_first(x, heads) for x in (own if isinstance(own, tuple) else (own,))]
            layout = _true_layout(answers, given, cos, sin)
            if layout is None or rotary.layouts.setdefault(key, layout) != layout:
                raise UnsupportedError(
                    f"{original.__module__}: its rotary embedding matches no known layout; no substitution exists"
                )
            return own
        interleaved = rotary.layouts[key][1]
        turned = [torch.ops.edgekit.rope(x, cos, sin, context.positions, interleaved) for x in given]
        results = tuple(_heads_first(x, heads) for x in turned)
        return results if count > 1 else results[0]

    return forward


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """[B, S, H, D] as [B, H, S, D] and back where the model has ``heads`` = 2; otherwise as it is."""
    return x.transpose(1, 2) if heads == 2 else x


def _causal_only(name: str) -> Callable[..., None]:
    """Stands in for a mask builder: the operator masks by itself, so only causal and sliding masks may be asked for."""

    def forward(*args: Any, **kwargs: Any) -> None:
        if name not in ("create_causal_mask", "create_sliding_window_causal_mask", "create_masks_for_generate"):
            raise UnsupportedError(
                f"{name}: this mask is not supported (only causal and sliding); exporting without it would be wrong"
            )
        for key in ("or_mask_function", "and_mask_function", "block_sequence_ids"):
            if kwargs.get(key) is not None:
                raise UnsupportedError(f"{name}({key}=...): only causal and sliding-window masks are supported")

    return forward


def norm_weight(module: nn.Module) -> tuple[Tensor, float] | None:
    """The weight and epsilon that make ``rmsnorm`` compute what ``module`` does; None when no known form does."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    other = isinstance(module, nn.LayerNorm) or getattr(module, "bias", None) is not None
    if other or "Norm" not in type(module).__name__:
        return None
    sample = torch.linspace(-2.0, 3.0, 2 * weight.numel()).reshape(1, 2, -1).to(weight.dtype)
    try:
        own = module(sample)
    except (RuntimeError, TypeError):
        return None
    for candidate in (weight.detach(), 1.0 + weight.detach()):
        if _close(ops.rmsnorm(sample, candidate, eps), own):
            return candidate, eps
    return None


def gelu_approximation(module: nn.Module) -> str | None:
    """``"tanh"`` when an activation module computes the tanh form of GELU by hand, else None."""
    if "GELU" not in type(module).__name__.upper() or next(module.parameters(), None) is not None:
        return None
    sample = torch.linspace(-6, 6, 97)
    same = torch.allclose(module(sample), functional.gelu(sample, approximate="tanh"), rtol=1e-5, atol=1e-6)
    return "tanh" if same else None


class _Patches:
    """Attributes replaced for a while; undone last to first."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        missing = name not in vars(owner)
        old = vars(owner).get(name)
        setattr(owner, name, value)
        self.undo.append((lambda: delattr(owner, name)) if missing else (lambda: setattr(owner, name, old)))

    def restore(self) -> None:
        while self.undo:
            self.undo.pop()()


def _replace_modules(model: nn.Module, context: Context, patches: _Patches, has_rope: bool) -> list[Rotary]:
    rotaries = []
    for module in model.modules():
        kind = type(module).__name__
        if has_rope and "RotaryEmbedding" in kind:
            rotaries.append(Rotary(module, module.forward, context))
            patches.set(module, "forward", rotaries[-1])
        elif (norm := norm_weight(module)) is not None:
            weight, eps = norm
            if not torch.equal(weight, cast(Tensor, module.weight)):
                module.register_buffer("edgekit_weight", weight, persistent=False)
                patches.undo.append(lambda m=module: delattr(m, "edgekit_weight"))  # type: ignore[misc]
            patches.set(module, "forward", _norm_forward(module, eps))
        elif gelu_approximation(module):
            patches.set(module, "forward", lambda x: functional.gelu(x, approximate="tanh"))
        elif kind == "Conv1D" and hasattr(module, "nf"):
            patches.set(module, "forward", _conv1d_forward(module))
    return rotaries


def _norm_forward(module: nn.Module, eps: float) -> Callable[[Tensor], Tensor]:
    name = "edgekit_weight" if hasattr(module, "edgekit_weight") else "weight"
    return lambda x: torch.ops.edgekit.rmsnorm(x, getattr(module, name), eps)


def _conv1d_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
    return lambda x: functional.linear(x, weight.t(), bias)


def _modeling_modules(model: nn.Module) -> set[Any]:
    return {sys.modules[type(m).__module__] for m in model.modules() if ".modeling_" in type(m).__module__}


def _attend(model: nn.Module, implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)  # type: ignore[operator]
    except (ValueError, ImportError) as error:
        raise UnsupportedError(
            f"{type(model).__name__} does not use transformers' attention interface: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def substituted(model: nn.Module, context: Context) -> Iterator[list[Rotary]]:
    """Runs ``model`` with edgekit's operators inside the block and puts everything back afterwards.

    Yields the rotary stand-ins; call ``settle`` on each between the probing run and the trace.
    """
    from transformers import AttentionInterface

    config: Any = model.config
    patches, before = _Patches(), config._attn_implementation
    modeling = _modeling_modules(model)
    has_rope = any("apply_rotary_pos_emb" in vars(m) for m in modeling)
    AttentionInterface.register("edgekit", attention(context))
    try:
        _attend(model, "edgekit")
        for mixture in mixtures_of(model):
            patches.set(mixture, "forward", experts_forward(mixture))
        for file in modeling:
            for name in [n for n in vars(file) if n.startswith("create_") and ("_mask" in n)]:
                patches.set(file, name, _causal_only(name))
            if "apply_rotary_pos_emb" in vars(file):
                patches.set(file, "apply_rotary_pos_emb", rotate(context, file.apply_rotary_pos_emb))
        yield _replace_modules(model, context, patches, has_rope)
    finally:
        patches.restore()
        model.set_attn_implementation(before)  # type: ignore[operator]
