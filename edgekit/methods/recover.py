"""Recovery: a rounded model learns to answer as the float model that it was made of.

    loss = T^2 KL(original_T || rounded_T)

In every pass a weight is what its format stores, code * step; in the rounding gradients go straight through. Trained are the
steps alone, with the gradient sum g * code; a low-rank branch that EoRA began (:mod:`edgekit.methods.eora`), its own rounding
simulated too; or all weights: float masters and steps, whose gradient is then LSQ's (Esser et al., arXiv 1902.08153), and
norms and biases. Steps have 16 significant bits, so that an export finds every code and step again bit for bit
(edgekit.lowbit.grid).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from edgekit.errors import UsageError
from edgekit.low_rank import branched_layers
from edgekit.lowbit.formats import CODECS
from edgekit.methods.distill import check_targets, entropy, predictions, soft_cross_entropy, targets
from edgekit.methods.eora import Compensation, stored
from edgekit.methods.examples import Batch, Objective
from edgekit.methods.fitted_recipe import Option
from edgekit.methods.gptq import SMALLEST, Gptq, halved, shortened
from edgekit.methods.layerwise import Method
from edgekit.methods.ternarize import Ternary
from edgekit.spec.formats import NATIVE_BLOCK
from edgekit.strict import suggest

FORMATS = {"int4": 4, "int3": 3, "int2": 2, "ternary": 0, "ternary-row": 0}
"""Bits of whole numbers; those with 3 and 2 are stored as int4 and code smaller. Ternary: a step for each 128 or each row."""
STARTS = ("searched", "gptq")
TRAINED = ("weights", "scales", "branch")
BRANCH_FORMAT = "int8"
INSIDE = 0.49
"""How far a master may begin from its code, in steps: at a half it would be rounded to the next one."""


@dataclass(frozen=True)
class Recovery:
    """What a model is rounded to, and what of it is trained then.

    format: one of FORMATS, int* in blocks of ``group_size``. start: "searched" steps with plain rounding, or "gptq"; ternary
    formats begin as in ternarize, one plane. train: "weights" (all), "scales" or "branch", which has ``rank``. temperature:
    T. top: classes kept of each answer of the original, on disk (``cache``: where, for further runs); 0 keeps none and asks
    the original in each step, for all of them.
    """

    format: str = "int4"
    group_size: int = 64
    start: str = "gptq"
    train: str = "weights"
    rank: int = 0
    temperature: float = 1.0
    top: int = 64
    cache: str = ""

    def __post_init__(self) -> None:
        for name, known in {"format": FORMATS, "start": STARTS, "train": TRAINED}.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"recover.{name}: '{value}' is not one of {', '.join(known)}{suggest(value, known)}")
        check_targets(1.0, self.temperature, self.top or 1)
        if (self.train == "branch") != (self.rank > 0):
            raise UsageError(
                f"recover: train '{self.train}', rank {self.rank}; give rank with train: branch, and only then"
            )
        self.method()

    def method(self) -> Method:
        """How the weights are rounded before they are trained. Raises UsageError for what no format holds."""
        of = "ternarize" if not FORMATS[self.format] else "gptq" if self.start == "gptq" else "int4"
        ternary = Ternary(planes=1, group_size=0 if self.format == "ternary-row" else NATIVE_BLOCK)
        branch = Compensation(of, rank=self.rank, format=BRANCH_FORMAT) if self.rank else None
        return Method(of, Gptq(FORMATS[self.format] or 4, self.group_size), ternary, branch)

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        half = 1 << FORMATS[self.format] >> 1
        return (-half, half - 1) if half > 1 else (-1, 1)


class _Rounded(torch.autograd.Function):
    """code * step of masters [N, B, b] with steps [N, B]; codes from ``low`` to ``high``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
        ratio = weight / steps[..., None]
        codes = ratio.round().clamp_(low, high)
        of_steps = torch.sub(codes, ratio, out=ratio)  # inside the range of codes: at most a half
        ctx.save_for_backward(torch.where(of_steps.abs() > 0.5, codes, of_steps))
        return codes.mul_(steps[..., None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (of_steps,) = ctx.saved_tensors
        return gradient * (of_steps.abs() <= 0.5), (gradient * of_steps).sum(-1), None, None


class Rounding(nn.Module):
    """A weight [N, K] as its format holds it, of ``original``: float masters, or (``fixed``) the codes themselves."""

    def __init__(self, steps: Tensor, size: int, codes: tuple[int, int], fixed: bool) -> None:
        super().__init__()
        # A step moves all of its weights: Adam moves it less. No matrix: weight decay spares it.
        self.slowed = math.sqrt(size)
        self.steps, self.shape = nn.Parameter(self.slowed * steps.flatten()), steps.shape
        self.size, self.codes, self.fixed = size, codes, fixed

    def forward(self, original: Tensor) -> Tensor:
        """float32 [N, K] -> float32 [N, K]."""
        wide = self.steps / self.slowed
        steps = _StraightThrough.apply(wide, self.as_stored(wide.detach())).view(self.shape)  # type: ignore[no-untyped-call]
        blocks = in_blocks(original, self.size)
        made: Tensor = blocks * steps[..., None] if self.fixed else _Rounded.apply(blocks, steps, *self.codes)  # type: ignore[no-untyped-call]
        return made.flatten(1)[:, : original.shape[1]].contiguous()  # a view of padded rows is not saved

    def as_stored(self, steps: Tensor) -> Tensor:
        """As the format holds them: int4-fp16 in float16, t2 in float32."""
        wide = steps.double()
        return (_short(wide) if self.codes == (-1, 1) else halved(wide)).float()


class StoredBranch(nn.Module):
    """A matrix of a low-rank branch as it is stored."""

    def forward(self, original: Tensor) -> Tensor:
        """float32 [n, k] -> float32 [n, k]."""
        return _StraightThrough.apply(original, stored(original.detach(), BRANCH_FORMAT))  # type: ignore[no-untyped-call, no-any-return]


class _StraightThrough(torch.autograd.Function):
    """Forward ``rounded``, backward as if it were ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def in_blocks(matrix: Tensor, size: int) -> Tensor:
    """[N, K] as [N, ceil(K/b), b], padded with zeros."""
    rest = -matrix.shape[1] % size
    return (functional.pad(matrix, (0, rest)) if rest else matrix).view(len(matrix), -1, size)


def _short(steps: Tensor) -> Tensor:
    return shortened(torch.where(steps.abs() < SMALLEST, SMALLEST, steps))


def simulate(model: nn.Module, originals: Mapping[str, Tensor], option: Option, settings: Recovery) -> None:
    """Makes the rounded linear layers of a model trainable in place; ``originals`` are the float weights [N, K] by layer.

    All that is not trained has no gradient any more. ``option``: the format that holds the weights, as
    ``settings.method()`` gives it.
    """
    all_weights = settings.train == "weights"
    for parameter in model.parameters():
        parameter.requires_grad_(all_weights and parameter.ndim < 2)
    if settings.train == "branch":
        for branched in branched_layers(model).values():
            for part in (branched.lora_A, branched.lora_B):
                assert part is not None
                part.weight.requires_grad_()
                parametrize.register_parametrization(part, "weight", StoredBranch())
        return
    for name, original in originals.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        codes, steps, size = codes_of(layer.weight.detach(), option, settings)
        if all_weights:
            codes = _masters(original, codes, steps, size)
        layer.weight = nn.Parameter(codes, requires_grad=all_weights)
        parametrize.register_parametrization(layer, "weight", Rounding(steps, size, settings.codes, not all_weights))


def codes_of(weight: Tensor, option: Option, settings: Recovery) -> tuple[Tensor, Tensor, int]:
    """Codes [N, K] and steps [N, B], float32, of a weight that lies on the grid of a format, and columns of a step."""
    name, columns = option[0], weight.shape[1]
    packed = CODECS[name].quantize(weight.numpy(), option[1])
    size = columns if settings.format == "ternary-row" else packed.block_size
    assert packed.scales is not None
    steps = torch.from_numpy(packed.scales).float().reshape(-1, 1 if packed.scales.ndim < 2 else packed.scales.shape[1])
    steps = steps.expand(len(weight), -(-columns // size)).clone()
    blocks = in_blocks(weight, size)
    codes = (blocks / steps[..., None]).round()
    turned = codes.amax(-1) > settings.codes[1]  # a format may find the step with the other sign
    steps, codes = torch.where(turned, -steps, steps), torch.where(turned[..., None], -codes, codes)
    return codes.flatten(1)[:, :columns].contiguous(), steps, size


def _masters(original: Tensor, codes: Tensor, steps: Tensor, size: int) -> Tensor:
    """The floats nearest to the original's that are rounded to ``codes``."""
    wide = steps.repeat_interleave(size, 1)[:, : codes.shape[1]]
    return (original / wide).clamp_(codes - INSIDE, codes + INSIDE).mul_(wide)


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Ends the simulation in place: every weight is what it was simulated as."""
    for layer in [module for module in model.modules() if parametrize.is_parametrized(module, "weight")]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    for parameter in model.parameters():
        parameter.requires_grad_()


def recovering(objective: Objective, settings: Recovery, original: nn.Module | None) -> Objective:
    """The same objective with the loss of this module, and "kl" among its scores (nats, at T).

    Batches hold the original's answers, unless it is given itself and asked. Raises as ``distill.predictions``.
    """
    heat = settings.temperature

    def divergence(logits: Tensor, batch: Batch) -> Tensor:
        if original is not None:
            with torch.no_grad():
                whole = functional.log_softmax(predictions(objective, original, batch)[0] / heat, -1)
            ours = functional.log_softmax(logits / heat, -1)
            return functional.kl_div(ours, whole, reduction="none", log_target=True).sum(-1)
        indices, logs = targets(batch)
        complete = indices.shape[-1] == logits.shape[-1]
        return soft_cross_entropy(logits, indices, logs, heat) - entropy(logs, complete)

    def score(model: nn.Module, batch: Batch) -> tuple[dict[str, float], int]:
        logits, wanted = predictions(objective, model, batch)
        hits, nats = int((logits.argmax(1) == wanted).sum()), functional.cross_entropy(logits, wanted, reduction="sum")
        return {"loss": float(nats), "accuracy": hits, "kl": float(divergence(logits, batch).sum())}, len(wanted)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return heat**2 * divergence(predictions(objective, model, batch)[0], batch).mean()

    return replace(objective, loss=loss, score=score)
