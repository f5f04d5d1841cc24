"""Layers that carry a state instead of keys and values, as edgekit's operators compute them, for as long as a context lasts.

transformers writes all of them alike: a causal convolution and perhaps a scan, each a function of the modeling file, whose
states go through the cache. The functions are replaced and the cache stands in; a state that went another way is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder import ops as _operators  # noqa: F401 (defines them)


@dataclass
class States:
    """The states of one run: what it began with, what it left, and what the functions share."""

    dims: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # by name: "conv.0", "recurrent.0"; kept between runs
    past: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None  # of ``ops.real``
    left: Tensor | None = None
    right: Tensor | None = None
    matrix: str = "recurrent"  # what the model family calls its state in exports to ONNX
    waiting: tuple[Tensor, str] | None = None  # the input of a convolution that is about to come
    asked: Tensor | None = None  # what the layer got as its state so far; None before any
    scanned: Tensor | None = None  # the state that edgekit's operator returned last

    def begin(self, ids: Tensor, mask: Tensor, past: dict[str, Tensor]) -> None:
        """A new run on ``ids`` int64 [B, S] with the padding that ``mask`` [B, T] says."""
        self.mask, self.left, self.right = torch.ops.edgekit.real(ids, mask)
        self.past, self.present, self.waiting, self.asked, self.scanned = past, {}, None, None, None

    def layers(self) -> set[int]:
        """The layers that have some state."""
        return {int(name.split(".")[1]) for name in self.dims}

    def leave(self, name: str, state: Tensor) -> None:
        """What a layer has at the end of the run."""
        if name in self.present:
            raise UnsupportedError(f"{name}: a state that is replaced twice in one step has no substitution")
        self.present[name] = state
        self.dims[name] = tuple(int(size) for size in state.shape[1:])


def cache(blocks: dict[str, nn.Module], states: States) -> Any:
    """A transformers cache for the layers ``blocks`` that hands keys, values and windows on: the operators own the real ones."""
    from transformers.cache_utils import Cache, DynamicLayer

    class PassThrough(Cache):
        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0

        def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
            return False

        def is_recording_past(self, *args: Any, **kwargs: Any) -> bool:
            return False

        def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
            """Never there, or the model would take its own way for a single token."""

        def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
            states.waiting = conv_states, _name("conv", layer_idx, state_idx)
            return conv_states

        def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
            states.asked = states.past.get(_name(states.matrix, layer_idx, state_idx))
            return states.asked

        def update_recurrent_state(
            self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
        ) -> Tensor:
            if recurrent_states is not states.scanned:
                name = true_name(blocks, layer_idx)
                raise UnsupportedError(f"{name}: the way its recurrent state comes about has no substitution")
            states.leave(_name(states.matrix, layer_idx, state_idx), recurrent_states)
            return recurrent_states

    return PassThrough(layers=[DynamicLayer() for _ in blocks])


def true_name(blocks: dict[str, nn.Module], layer: int) -> str:
    """A layer's path, and the classes in it that are neither norm nor feed-forward."""
    path, block = list(blocks.items())[layer]
    kinds = [type(part).__name__ for part in block.children()]
    return f"{path} ({', '.join(k for k in kinds if not any(w in k.lower() for w in ('norm', 'mlp', 'dropout')))})"


def _name(kind: str, layer: int, index: int) -> str:
    return f"{kind}.{layer}.{index}" if index else f"{kind}.{layer}"


def substitutes(states: States, file: Any) -> dict[str, Callable[..., Any]]:
    """What replaces the functions of a modeling file, by name."""
    replaced = {name: make(states) for name, make in FUNCTIONS.items() if callable(vars(file).get(name))}
    if not replaced.keys().isdisjoint(SELECTIVE):
        states.matrix = "ssm"
    return replaced


def convolutions(model: nn.Module) -> int:
    """How many convolutions the model has, an encoder's left out; each must have gone through the operator."""
    config: Any = model.config
    decoder: Any = model.get_decoder() if config.is_encoder_decoder else model  # type: ignore[operator]
    return sum(isinstance(module, nn.Conv1d) for module in decoder.modules())


def _convolution(states: States) -> Callable[..., Tensor]:
    """``causal_conv1d_fn`` on [B, C, S] with weights [C, K]."""

    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs: Any
    ) -> Tensor:
        _check(kwargs, "causal_conv1d_fn")
        if states.waiting is None or states.waiting[0] is not x or activation not in (None, "silu", "swish"):
            raise UnsupportedError(
                f"causal_conv1d_fn(activation={activation!r}): only convolutions of what the cache was given, with SiLU or "
                "nothing behind them, have a substitution"
            )
        (_, name), states.waiting = states.waiting, None
        past = states.past.get(name)
        if past is None:
            past = x.new_zeros(x.shape[0], x.shape[1], weight.shape[1] - 1)
        out, present = torch.ops.edgekit.conv(
            x, weight, bias, past, states.mask, states.left, states.right, activation is not None
        )
        states.leave(name, present)
        return out  # type: ignore[no-any-return]

    return forward


def _scan(
    states: States, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """It goes on from what the layer asked for, also where transformers' own function for several tokens begins anew."""
    past, states.asked = states.asked, None
    if past is None:
        past = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    out, states.scanned = torch.ops.edgekit.scan(q, k, v, decay, beta, past, states.mask, scale)
    return out, states.scanned


def _delta_rule(states: States) -> Callable[..., tuple[Tensor, Tensor]]:
    """``torch_chunk_gated_delta_rule`` on queries and keys [B, S, G, K], values [B, S, H, V]; arXiv 2412.06464."""

    def forward(
        query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, chunk_size: int = 64,
        initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _check(kwargs, "torch_chunk_gated_delta_rule")
        if use_qk_l2norm_in_kernel:
            query, key = torch.ops.edgekit.l2norm(query, 1e-6), torch.ops.edgekit.l2norm(key, 1e-6)
        return _scan(states, query, key, value, g, beta, key.shape[-1] ** -0.5)

    return forward


def _selective(states: States) -> Callable[..., tuple[Tensor, Tensor]]:
    """``mamba2_chunk_scan`` on [B, S, H, P] with one decay a head, B and C [B, S, G, N]; arXiv 2405.21060."""

    def forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None,
        dt_bias: Tensor | None = None, initial_states: Tensor | None = None, dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")), return_final_states: bool = False, **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _check(kwargs, "mamba2_chunk_scan")
        dt = dt if dt_bias is None else dt + dt_bias
        dt = functional.softplus(dt) if dt_softplus else dt
        if not dt_softplus or tuple(dt_limit) != (0.0, float("inf")):
            dt = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1])
        out, state = _scan(states, C, B, x * dt.unsqueeze(-1), dt * A, None, 1.0)
        return (out if D is None else out + x * D.unsqueeze(-1)), state

    return forward


def _selective_channels(states: States) -> Callable[..., tuple[Tensor, Tensor]]:
    """``mamba_selective_scan`` on [B, C, S] with a decay for each channel and state, B and C [B, N, S]; arXiv 2312.00752."""

    def forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
        delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _check({k: v for k, v in kwargs.items() if not k.startswith("use_")}, "mamba_selective_scan")
        steps = dt.transpose(1, 2)
        steps = steps if delta_bias is None else steps + delta_bias
        steps = (functional.softplus(steps) if delta_softplus else steps).unsqueeze(-1)
        values = x.transpose(1, 2).unsqueeze(-1)
        q, k = C.transpose(1, 2).unsqueeze(2), B.transpose(1, 2).unsqueeze(2)
        out, state = _scan(states, q, k, values * steps, steps * A, None, 1.0)
        out = out.squeeze(-1).transpose(1, 2)
        out = out if D is None else out + x * D.unsqueeze(-1)
        return (out if z is None else out * functional.silu(z)), state

    return forward


def _check(kwargs: dict[str, Any], function: str) -> None:
    for key, value in kwargs.items():
        if key not in HARMLESS and value is not None and value is not False:
            raise UnsupportedError(
                f"{function}: argument {key!r} is not supported; exporting without it would be wrong"
            )


HARMLESS = {
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "cache_position",
    "output_router_logits",
}
"""Arguments that do not change the numbers of an inference pass."""
FUNCTIONS: dict[str, Callable[[States], Callable[..., Any]]] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "mamba2_chunk_scan": _selective,
    "mamba_selective_scan": _selective_channels,
}
"""A modeling file's function -> what stands in for it."""
SELECTIVE = ("mamba2_chunk_scan", "mamba_selective_scan")


def gated_norm(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What computes a norm that is multiplied by SiLU of a gate, before or after it, with the operator; None when nothing does."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if "NormGated" not in type(module).__name__ or not isinstance(weight, Tensor) or not isinstance(eps, float):
        return None
    x = torch.linspace(-2.0, 3.0, 2 * weight.numel()).reshape(1, 2, -1).to(weight.dtype)
    gate = x.flip(-1)

    def after(x: Tensor, gate: Tensor) -> Tensor:
        return torch.ops.edgekit.rmsnorm(x, module.weight, eps) * functional.silu(gate)  # type: ignore[no-any-return]

    def before(x: Tensor, gate: Tensor) -> Tensor:
        return torch.ops.edgekit.rmsnorm(x * functional.silu(gate), module.weight, eps)  # type: ignore[no-any-return]

    own = module(x, gate)
    for candidate in (after, before):
        if torch.allclose(candidate(x, gate), own, rtol=1e-4, atol=1e-5):
            return candidate
    return None
