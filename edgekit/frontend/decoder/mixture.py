"""A transformers module of experts, as ``edgekit::experts`` computes it: stacked weights, whose gate it has, what is refused.

transformers keeps all experts of a layer in two stacked weights behind one interface; the router stays as the model writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError

MIXTURE = re.compile("(Experts(MLP|Gemm)?|M[Oo][Ee](Block)?)$")
"""What classes of mixtures are called; experts that every token goes through are ordinary layers."""

SWIGLU = (1.0, 0.0, 0.0)
"""alpha, beta and limit of the usual gate."""


def mixtures_of(model: nn.Module) -> list[nn.Module]:
    """The modules that stand behind transformers' interface for experts."""
    return [m for m in model.modules() if hasattr(m, "is_concatenated")]


def check_experts(model: nn.Module) -> None:
    """Refuses mixtures that do not stand behind transformers' interface, or compute something else. Raises UnsupportedError."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if MIXTURE.search(kind) and "Shared" not in kind and not mixtures_of(module):
            raise UnsupportedError(
                f"{name or 'model'} ({kind}): a mixture-of-experts that does not use transformers' interface for experts has "
                "no substitution; a newer transformers may use it"
            )
        if module in mixtures_of(module) and (
            module.has_post_expert_norm or not module.has_gate or gate_of(module) is None
        ):
            raise UnsupportedError(
                f"{name} ({kind}): experts other than down(g · sigmoid(alpha · g) · (u + beta)) have no substitution yet"
            )


def gate_of(module: Any) -> tuple[float, float, float] | None:
    """alpha, beta and limit with which ``edgekit::experts`` computes what the module's own gate does; None without such."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.linspace(-9.0, 9.0, 64).reshape(4, 16)[:, torch.randperm(16, generator=generator)]
    gate, up = sample.chunk(2, dim=-1) if module.is_concatenated else (sample[:, ::2], sample[:, 1::2])
    candidates = [SWIGLU]
    if hasattr(module, "alpha") and hasattr(module, "limit"):
        candidates.append((float(module.alpha), 1.0, float(module.limit)))
    own = module._apply_gate(sample)
    for alpha, beta, limit in candidates:
        g, u = (gate.clamp(max=limit), up.clamp(-limit, limit)) if limit else (gate, up)
        if torch.allclose(own, g * torch.sigmoid(alpha * g) * (u + beta), rtol=1e-4, atol=1e-5):
            return alpha, beta, limit
    return None


def stack(module: Any, name: str) -> Tensor | None:
    """All experts' ``gate_up_proj`` [E, 2 I, K], ``down_proj`` [E, K, I] or a bias of them [E, N], a gate's rows before the others.

    None where the module has no biases.
    """
    bias = name.endswith("_bias")
    if bias and not module.has_bias:
        return None
    stacked: Tensor = getattr(module, name)
    if module.is_transposed and not bias:
        stacked = stacked.transpose(1, 2)
    if module.is_concatenated or not name.startswith("gate"):
        return stacked
    in_turn = stacked.reshape(len(stacked), -1, 2, *stacked.shape[2:])
    return in_turn.transpose(1, 2).reshape(stacked.shape)


def experts_forward(module: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What stands in for the forward of a module of experts; takes x float32 [T, K], index and weights [T, k]."""
    gate = gate_of(module)
    assert gate is not None  # check_experts has seen it

    def forward(hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        names = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        stacks = [stack(module, name) for name in names]
        return cast(Tensor, torch.ops.edgekit.experts(hidden_states, index, weights, *stacks, *gate))

    return forward
