"""BitNet b1.58: training with ternary weights and int8 activations (arXiv 2402.17764; Training Tips, Code and FAQ,
2024).

    model = convert(model, BitNet(ramp=500))     # linear layers become BitLinear
    ternary = BitNetTraining(model, BitNet(ramp=500))
    for batch in batches:
        loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
        ternary.step()                            # after the optimizer
    save(model, directory)                        # edgekit.methods.bitnet_checkpoint

or give ``BitNetCallback`` to a transformers Trainer. Weights stay float32 masters; each pass multiplies by what they
are rounded to, and gradients go straight through the rounding. In eval mode a layer computes, bit for bit, what
transformers' AutoBitLinear does online.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from edgekit import absmean
from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.selection import without
from edgekit.methods.training import Training, set_rates

FORMS = ("online", "autobitlinear", "bitlinear")
"""Of saved weights: float masters, or codes in either of transformers' conventions
(edgekit.methods.bitnet_checkpoint)."""
SUB_NORMS = ("none", "block", "layer")
SUB_NORMED = ("llama", "mistral", "bitnet")
"""Model types whose blocks are BitNet's but for the sub-norms."""


@dataclass(frozen=True)
class BitNet:
    """How a model becomes ternary.

    ramp: over so many steps the share of the rounding rises from 0 to 1, a warm start of a trained model; 0 rounds at
    once.
    sub_norms: "block" puts an RMSNorm before each block's last layer (o_proj, down_proj) as BitNet b1.58 2B4T has, the
    model becomes a BitNetForCausalLM; "layer" one before every ternary layer, as the b1.58 paper's BitLinear has;
    "none" leaves the model's own norms. A new norm changes a trained model, so a warm start is warmer without.
    exclude: globs over layer names that stay as they are; the output head and embeddings always do.
    form: how `edgekit compress` saves it, "online" (to train on), "bitlinear" or "autobitlinear" (2 bits a weight).
    """

    ramp: int = 0
    sub_norms: str = "none"
    exclude: tuple[str, ...] = ()
    form: str = "online"

    def __post_init__(self) -> None:
        if self.ramp < 0:
            raise UsageError(f"ramp: {self.ramp} is negative; give the steps of the warm start, 0 for none")
        if self.sub_norms not in SUB_NORMS:
            raise UsageError(f"sub_norms: '{self.sub_norms}' is not one of {', '.join(SUB_NORMS)}")
        if self.form not in FORMS:
            raise UsageError(f"form: '{self.form}' is not one of {', '.join(FORMS)}")

    def amount_at(self, step: int) -> float:
        """The share of the rounding in step 0, 1, ..."""
        return min(1.0, step / self.ramp) if self.ramp else 1.0


def codes(weight: Tensor) -> Tensor:
    """-1, 0 or 1 for each weight of a whole matrix (absmean), float32."""
    return absmean.codes(weight, absmean.inverse_scale(weight))


def ternary_weights(weight: Tensor) -> Tensor:
    """Each weight as code times the mean magnitude of all of them (absmean, per tensor)."""
    return codes(weight) / absmean.inverse_scale(weight)


def int8_activations(x: Tensor) -> Tensor:
    """``x`` [..., K] rounded to 255 steps of each row's largest magnitude (per-token absmax)."""
    scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=absmean.LEAST)
    return (x * scale).round().clamp(-128, 127) / scale


class _StraightThrough(torch.autograd.Function):
    """Forward ``x + amount (rounded - x)``, exactly ``rounded`` at 1; backward as if it were ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, amount: float) -> Tensor:
        return rounded if amount == 1.0 else torch.lerp(x, rounded, amount)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class BitLinear(nn.Linear):
    """A linear layer that computes with ternary weights and int8 activations; ``weight`` is the float master [N, K].

    ``amount`` of the rounding acts in training mode, all of it in eval mode. ``rms_norm`` comes before it, or is None.
    """

    amount: float = 1.0
    rms_norm: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` float [..., K] -> [..., N]."""
        amount = self.amount if self.training else 1.0
        if self.rms_norm is not None:
            x = self.rms_norm(x)
        with torch.no_grad():
            rounded, weight = int8_activations(x), ternary_weights(self.weight)
        return functional.linear(
            _StraightThrough.apply(x, rounded, amount),  # type: ignore[no-untyped-call]
            _StraightThrough.apply(self.weight, weight, amount),  # type: ignore[no-untyped-call]
            self.bias,
        )


def bit_linear(linear: nn.Linear, norm: bool = False, eps: float = 1e-5) -> BitLinear:
    """A BitLinear with the parameters of ``linear`` themselves, float32, and with ``norm`` a new RMSNorm in front."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    made = BitLinear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    made.weight, made.bias = linear.weight, linear.bias
    made.rms_norm = LlamaRMSNorm(linear.in_features, eps=eps).to(linear.weight.device) if norm else None
    return made.train(linear.training)


def convert(model: nn.Module, ternary: BitNet) -> nn.Module:
    """Makes the linear layers of a transformer ternary, in place but for ``sub_norms`` "block", which needs another
    class.

    Raises UnsupportedError naming the layer that BitNet has no form for or whose weights are no float32 (masters in
    half precision do not move by small steps), UsageError for a pattern that fits no layer.
    """
    if ternary.sub_norms == "block":
        model = with_sub_norms(model)
    eps = float(getattr(getattr(model, "config", None), "rms_norm_eps", 1e-5))
    for name in convertible(model, ternary.exclude):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if layer.weight.dtype != torch.float32:
            raise UnsupportedError(
                f"{name}: weights are {str(layer.weight.dtype).removeprefix('torch.')}; ternary training moves "
                "float32 masters: call model.float() first (autocast may still compute in half precision)"
            )
        model.set_submodule(name, bit_linear(layer, ternary.sub_norms == "layer", eps))
    return model


def convertible(model: nn.Module, exclude: tuple[str, ...] = ()) -> list[str]:
    """Names of the linear layers that become ternary: all but the head and ``exclude``. Raises as :func:`convert`."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linear = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if hasattr(module, "activation_block_size") or kind in ("BitLinear", "AutoBitLinear"):
            raise UnsupportedError(f"{name}: is ternary already; edgekit export takes the model as it is")
        if isinstance(module, nn.Linear):
            linear += [name] if module is not head else []
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not isinstance(module, nn.Embedding):
                raise UnsupportedError(
                    f"{f'{name}.{key}'.strip('.')}: a {kind} {list(parameter.shape)} is no nn.Linear, which BitNet "
                    "needs; give a Llama-type model, or keep the layers out of training with another method"
                )
    chosen = without(linear, exclude, "linear layer")
    if not chosen:
        raise UnsupportedError("model: no linear layer besides the output head; nothing becomes ternary")
    return chosen


def with_sub_norms(model: Any) -> nn.Module:
    """The same weights as a BitNetForCausalLM, its sub-norms new and all ones.

    Raises UnsupportedError naming what BitNet's blocks do not have.
    """
    from transformers import BitNetConfig, BitNetForCausalLM

    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in SUB_NORMED or getattr(config, "sliding_window", None):
        what = "sliding-window attention" if kind in SUB_NORMED else "blocks of its own"
        raise UnsupportedError(
            f"{type(model).__name__} has {what}; sub_norms: block is for {', '.join(SUB_NORMED)}; use sub_norms: "
            "layer or none"
        )
    assert config is not None
    values = {key: getattr(config, key) for key in BitNetConfig().to_dict() if hasattr(config, key)}
    values = {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
    made: Any = BitNetForCausalLM(BitNetConfig(**values))
    weights, wanted = model.state_dict(), made.state_dict()
    for name, tensor in weights.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            raise UnsupportedError(
                f"{name}: BitNet's blocks have no such parameter of {list(tensor.shape)}; use sub_norms: layer or none"
            )
    made.load_state_dict({**{k: torch.ones_like(v) for k, v in wanted.items() if "sub_norm" in k}, **weights})
    made.generation_config = model.generation_config
    ready: nn.Module = made.to(device=model.device, dtype=model.dtype)
    return ready.train(model.training)


def bit_linears(model: nn.Module) -> dict[str, BitLinear]:
    """The ternary layers by name. Raises UsageError when there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    if not layers:
        raise UsageError("model: has no BitLinear; convert it first (edgekit.methods.bitnet.convert)")
    return layers


class BitNetTraining:
    """Raises the share of the rounding step by step; ``done`` are the steps taken."""

    def __init__(self, model: nn.Module, ternary: BitNet) -> None:
        """Raises UsageError for a model that was not converted."""
        self.ternary, self.layers, self.done = ternary, bit_linears(model), 0
        self._apply()

    def step(self) -> None:
        """After each step of the optimizer."""
        self.done += 1
        self._apply()

    def hold(self) -> None:
        """Ends the ramp where it is: all of the rounding from now on."""
        self.done = max(self.done, self.ternary.ramp)
        self._apply()

    @torch.no_grad()
    def zeros(self) -> float:
        """Share of weights that are rounded to zero."""
        count = sum(layer.weight.numel() for layer in self.layers.values())
        return sum(int((codes(layer.weight) == 0).sum()) for layer in self.layers.values()) / count

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self.done = int(state["done"])
        self._apply()

    def _apply(self) -> None:
        for layer in self.layers.values():
            layer.amount = self.ternary.amount_at(self.done)


class BitNetCallback(TrainerCallback):
    """The ramp in a transformers Trainer, and with ``training`` its learning rate and weight decay in the place of the
    Trainer's own (``schedule: two-stage`` is BitNet's), whose log goes on showing its own. Goes on where the Trainer
    resumes.

    The model was converted before, and is saved with edgekit.methods.bitnet_checkpoint: what ``save_model`` writes has
    no word of ternary layers in its config."""

    def __init__(self, ternary: BitNet, training: Training | None = None) -> None:
        self.ternary, self.training = ternary, training
        self.ramp: BitNetTraining | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Takes the model's layers. Raises UsageError for a Trainer that takes another number of steps."""
        assert model is not None, "the Trainer hands the model over"
        if self.training is not None and self.training.steps != state.max_steps:
            raise UsageError(
                f"training.steps: {self.training.steps}, and the Trainer takes {state.max_steps}; give both the same "
                "number (max_steps)"
            )
        if self.ternary.ramp > state.max_steps:
            raise UsageError(
                f"ramp: {self.ternary.ramp} is more than the Trainer's {state.max_steps} steps; a model that ends "
                "inside the ramp was never ternary"
            )
        self.ramp = BitNetTraining(model, self.ternary)
        self.ramp.load_state_dict({"done": state.global_step})

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Before each step of the optimizer; norms and biases have no weight decay, as in the Trainer."""
        if self.training is not None:
            set_rates(optimizer, self.training, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step of the optimizer."""
        assert self.ramp is not None
        self.ramp.step()
