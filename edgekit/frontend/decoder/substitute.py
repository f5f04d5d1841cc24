"""Replaces what a transformers decoder computes by edgekit's torch operators, for as long as a context lasts.

Nothing is guessed from class names alone: a norm or a rotary embedding is replaced only when the replacement gave the
same numbers on the module itself, and the whole model is run beside the untouched one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder import ops
from edgekit.frontend.decoder.attention import Context, attention
from edgekit.frontend.decoder.cross import cross_attentions, has_encoder, relative_bias
from edgekit.frontend.decoder.mixture import check_experts, experts_forward, mixtures_of
from edgekit.frontend.decoder.own_attention import OWN, kind_of
from edgekit.frontend.decoder.positions import Place, looked_up
from edgekit.frontend.decoder.recurrence import States, gated_norm, substitutes
from edgekit.frontend.decoder.rotary import Rotary, close, rotate, rotates


def check_supported(model: nn.Module) -> None:
    """Refuses by name what no substitution exists for. Raises UnsupportedError."""
    check_experts(model)
    if attention_free(model) and not any(substitutes(States(), file) for file in _modeling_modules(model)):
        raise UnsupportedError(
            f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot be "
            "replaced; architectures that do (Llama, Qwen, Gemma, Phi-3, Mistral, OLMo, GPT-2, ...) can be exported"
        )
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Indexer"):
            raise UnsupportedError(
                f"{name} ({type(module).__name__}): attention to the tokens that an indexer chooses has no substitution"
            )
    config = getattr(model, "config", None)
    if getattr(config, "is_causal", True) is False:
        raise UnsupportedError(
            "config.is_causal is false: a bidirectional model is not a decoder; pass --task feature-extraction"
        )
    if has_encoder(model):
        cross_attentions(model)


def attention_free(model: nn.Module) -> bool:
    """Whether no attention of the model's code can be replaced; a model of states alone has none."""
    return not _has_interface(model) and not any(kind_of(module) in OWN for module in model.modules())


def expand_latent(module: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Stands in for latent attention's ``expand_kv``, which writes keys into an empty tensor."""

    def forward(latent: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, length, _ = latent.shape
        sizes = [module.qk_nope_head_dim, module.v_head_dim]
        both = module.kv_b_proj(latent).view(batch, length, -1, sum(sizes)).transpose(1, 2)
        plain, values = torch.split(both, sizes, dim=-1)
        return torch.cat((plain, turned.expand(-1, plain.shape[1], -1, -1)), dim=-1), values

    return forward


RECURRENT_MASK = "create_recurrent_attention_mask"
KNOWN_MASKS = (
    "create_causal_mask",
    "create_sliding_window_causal_mask",
    "create_masks_for_generate",
    RECURRENT_MASK,
)


def _causal_only(name: str, mask: Tensor | None, crossing: bool) -> Callable[..., Tensor | None]:
    """Stands in for a mask builder: the operator masks by itself, so only causal and sliding masks may be asked for."""

    def forward(*args: Any, **kwargs: Any) -> Tensor | None:
        if "encoder_hidden_states" in kwargs and (kwargs["encoder_hidden_states"] is None or crossing):
            return None  # of an attention to an encoder that is not there, or that edgekit's operator masks
        if name not in KNOWN_MASKS:
            raise UnsupportedError(
                f"{name}: this mask is not supported (only causal and sliding); exporting without it would be wrong"
            )
        for key in ("or_mask_function", "and_mask_function", "block_sequence_ids"):
            if kwargs.get(key) is not None:
                raise UnsupportedError(f"{name}({key}=...): only causal and sliding-window masks are supported")
        return None if name == RECURRENT_MASK else mask  # which would zero what is padding: the operators do

    return forward


def norm_weight(module: nn.Module) -> tuple[Tensor, float] | None:
    """The weight and epsilon that make ``rmsnorm`` compute what ``module`` does; None when no known form does."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return None  # a weight that is no parameter may be there for show, and of another size
    other = isinstance(module, nn.LayerNorm) or getattr(module, "bias", None) is not None
    if other or "Norm" not in type(module).__name__:
        return None
    sample = torch.linspace(-2.0, 3.0, 2 * weight.numel()).reshape(1, 2, -1).to(weight.dtype)
    try:
        own = module(sample)
    except (RuntimeError, TypeError, AttributeError):  # it takes something else than one tensor
        return None
    for candidate in (weight.detach(), 1.0 + weight.detach()):
        if close(ops.rmsnorm(sample, candidate, eps), own):
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
        elif "NormGated" in kind:
            if (gated := gated_norm(module)) is not None:
                patches.set(module, "forward", gated)
        elif (norm := norm_weight(module)) is not None:
            weight, eps = norm
            if not torch.equal(weight, cast(Tensor, module.weight)):
                module.register_buffer("edgekit_weight", weight, persistent=False)
                patches.undo.append(lambda m=module: delattr(m, "edgekit_weight"))  # type: ignore[misc]
            patches.set(module, "forward", _norm_forward(module, eps))
        elif gelu_approximation(module):
            patches.set(module, "forward", lambda x: functional.gelu(x, approximate="tanh"))
        elif kind_of(module) in OWN:
            name, stand_in = OWN[kind_of(module)]
            patches.set(module, name, stand_in(module, context))
        elif hasattr(
            module, "_maybe_slice_kv_shared_inputs"
        ):  # only before its prompt's last token: ours has every one
            patches.set(module, "_maybe_slice_kv_shared_inputs", lambda *args, **kwargs: args[:4])
        elif getattr(module, "has_relative_attention_bias", False) and getattr(module, "is_decoder", False):
            patches.set(module, "compute_bias", relative_bias(module, context))
        elif getattr(module, "head_dim_padding", 0):  # Moonshine's, which makes other tensors of an encoder's keys
            patches.set(module, "head_dim_padding", 0)
        elif hasattr(module, "expand_kv"):
            patches.set(module, "expand_kv", expand_latent(module))
        elif kind == "Conv1D" and hasattr(module, "nf"):
            patches.set(module, "forward", _conv1d_forward(module))
    return rotaries


def _norm_forward(module: nn.Module, eps: float) -> Callable[[Tensor], Tensor]:
    name = "edgekit_weight" if hasattr(module, "edgekit_weight") else "weight"
    return lambda x: torch.ops.edgekit.rmsnorm(x, getattr(module, name), eps)


def _conv1d_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
    return lambda x: functional.linear(x, weight.t(), bias)


def _has_interface(model: nn.Module) -> bool:
    return any("ALL_ATTENTION_FUNCTIONS" in vars(file) for file in _modeling_modules(model))


def _modeling_modules(model: nn.Module) -> set[Any]:
    return {sys.modules[type(m).__module__] for m in model.modules() if ".modeling_" in type(m).__module__}


def _rotations(file: Any) -> dict[str, Any]:
    return {name: f for name, f in vars(file).items() if name.startswith("apply_rotary") and rotates(f)}


def _attend(model: nn.Module, implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)  # type: ignore[operator]
    except (ValueError, ImportError) as error:
        raise UnsupportedError(
            f"{type(model).__name__} does not use transformers' attention interface: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def substituted(model: nn.Module, context: Context, places: dict[nn.Module, Place]) -> Iterator[list[Rotary]]:
    """Runs ``model`` with edgekit's operators inside the block and puts everything back afterwards.

    ``places`` are its tables of positions, as ``watched`` found them.

    Yields the rotary stand-ins; call ``settle`` on each between the probing run and the trace.
    """
    from transformers import AttentionInterface

    config: Any = model.config
    patches, before = _Patches(), config._attn_implementation
    modeling = _modeling_modules(model)
    turning = {file: _rotations(file) for file in modeling}
    AttentionInterface.register("edgekit", attention(context))
    try:
        if _has_interface(model):
            _attend(model, "edgekit")
        for table, place in places.items():
            patches.set(table, "forward", looked_up(table, place, context))
        for mixture in mixtures_of(model):
            patches.set(mixture, "forward", experts_forward(mixture))
        for file in modeling:
            for name in [n for n in vars(file) if n.startswith("create_") and ("_mask" in n)]:
                # What writes its attention out may look at its mask before it is not used.
                patches.set(
                    file,
                    name,
                    _causal_only(name, None if _has_interface(model) else torch.zeros(()), has_encoder(model)),
                )
            for name, function in turning[file].items():
                patches.set(file, name, rotate(context, function))
            for name, function in substitutes(context.states, file).items():
                patches.set(file, name, function)
        yield _replace_modules(model, context, patches, any(turning.values()))
    finally:
        patches.restore()
        if _has_interface(model):
            model.set_attn_implementation(before)  # type: ignore[operator]
