"""Rate-constrained training: weights are pulled towards zero by what they cost to store (BackSlash, arXiv 2504.16968).

The rate of weights theta_1 ... theta_N is R = 1/N sum |theta_i|^nu, nu the shape of their distribution, estimated anew
at every step. Use it in a plain loop:

    rate = Backslash(model, Rate(steps=1000))
    for batch in batches:
        loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
        rate.step()          # after the optimizer, as the authors do
    rate.hold()              # from now on, zeros stay zero
    for batch in batches:
        ...; optimizer.step(); rate.step()

or give ``BackslashCallback`` to a transformers Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from edgekit.errors import UsageError
from edgekit.methods import masks
from edgekit.methods.gaussian import shape_of_moments

VARIANTS = ("decoupled", "proximal", "bits")
SCOPES = ("global", "tensor")
GROUPS = ("", "row", "column")


@dataclass(frozen=True)
class Rate:
    """How strongly, and in which form, weights are pulled towards zero.

    ``steps`` T and ``strength`` c set the size of a step whatever the model's size, shape and epsilon: in each step
    weights move by c / T standard deviations (of the weights at the beginning) on average, so that over T steps one
    that no gradient defends moves by about c of them. ``lam`` gives the authors' lambda itself instead.

    variant: "decoupled" is the authors' update, theta -= lambda nu / N sign(theta) (|theta| + epsilon)^(nu - 1), not
    multiplied by the learning rate; weights end near zero. "proximal" takes the same step but stops at zero, so zeros
    are exact. "bits" follows the gradient of R_bits = 1/nu log2 mean |theta|^nu, averaged over tensors by their size,
    whose lambda is loss per bit and parameter, and stops at zero too.

    epsilon: the authors use 1, with which the adaptive shape has hardly an effect (constant steps, as L1); at 0.01
    small weights are pulled more strongly than large ones. shape: fixed instead of estimated; 1 is L1 and 2 is L2
    regularization.
    """

    steps: int
    strength: float = 2.0
    lam: float | None = None
    variant: str = "proximal"
    epsilon: float = 0.01
    scope: str = "global"  # one shape for the model, or one for each tensor
    least_shape: float = 0.1  # shapes fall while they are used; 0.5 is steadier
    shape: float | None = None
    group: str = ""  # "row" or "column": whole ones are pulled to zero too, by their norm
    group_strength: float = 0.0
    group_size: int = 1  # rows (columns) that go together: a head's size on v_proj (o_proj), for whole heads
    group_only: tuple[str, ...] = ("*",)  # globs over the parameter names that have groups
    exclude: tuple[str, ...] = ()  # globs over parameter names

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(
                f"steps: {self.steps} is less than 1; give the number of training steps with the rate term"
            )
        if self.variant not in VARIANTS or self.scope not in SCOPES or self.group not in GROUPS:
            raise UsageError(
                f"variant {self.variant!r}, scope {self.scope!r}, group {self.group!r}: give one of "
                f"{', '.join(VARIANTS)}; of {', '.join(SCOPES)}; and row, column or nothing"
            )
        if self.shape is not None and not 0 < self.shape <= 3:
            raise UsageError(f"shape: {self.shape} is not above 0 and at most 3; leave it out to have it estimated")
        if self.group_size < 1:
            raise UsageError(f"group_size: {self.group_size} is less than 1; give a head's size, or 1 for single rows")
        if not self.epsilon > 0 or not self.strength >= 0 or not self.group_strength >= 0:
            raise UsageError(
                f"epsilon {self.epsilon}, strength {self.strength}, group_strength {self.group_strength}: epsilon "
                "must be above 0, strengths not negative"
            )


class Backslash:
    """The rate term of a model's weights: matrices and convolutions, each once however often it is shared.

    Norms, biases and other vectors are left alone: they are few and not sparse. ``shape`` is the last shape estimated
    (of all weights), ``done`` the steps taken.
    """

    def __init__(self, model: nn.Module, rate: Rate) -> None:
        """Raises UnsupportedError for a model without trainable matrices, UsageError for groups that do not fit it."""
        self.rate = rate
        self.weights = masks.matrices(model, rate.exclude)
        self.grouped = self._grouped()
        self.count = sum(weight.numel() for weight in self.weights.values())
        self.done = 0
        self.masks: masks.Masks = {}
        moments = self._moments()
        self.shape = self._shape(moments.values())
        self.deviation = math.sqrt(sum(square for _, _, square in moments.values()) / self.count)

    @torch.no_grad()
    def step(self) -> None:
        """One step of the rate term, after the optimizer's; past :meth:`hold`, zeros are put back instead."""
        if self.masks:
            masks.apply(self.masks, self.weights)
            return
        moments = self._moments()
        self.shape = self._shape(moments.values())
        pulls = {}
        for name, weight in self.weights.items():
            pulls[name] = self._pull(
                weight, self.shape if self.rate.scope == "global" else self._shape([moments[name]])
            )
        factor = self._factor(pulls)
        for name, weight in self.weights.items():
            self._shrink(weight, pulls[name] * factor)
            if name in self.grouped:
                self._shrink_groups(weight)
        self.done += 1

    def hold(self) -> None:
        """Ends the rate term: what is zero now stays zero."""
        self.masks = masks.nonzero(self.weights)

    def zeros(self) -> float:
        """Share of weights that are exactly zero."""
        return masks.zero_share(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs; masks as bool tensors by name."""
        return {"done": self.done, "deviation": self.deviation, "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken. Raises UsageError for another model's masks."""
        self.masks = masks.restored(state["masks"], self.weights)
        self.done, self.deviation = int(state["done"]), float(state["deviation"])

    def _moments(self) -> dict[str, tuple[float, float, float]]:
        """Number of values, sum of magnitudes and of squares by tensor."""
        with torch.no_grad():
            return {
                name: (float(w.numel()), float(w.abs().sum(dtype=torch.float64)), float((w.double() ** 2).sum()))
                for name, w in self.weights.items()
            }

    def _shape(self, moments: Iterable[tuple[float, float, float]]) -> float:
        if self.rate.shape is not None:
            return self.rate.shape
        count, absolute, square = (sum(values) for values in zip(*moments, strict=True))
        return max(self.rate.least_shape, shape_of_moments(count, absolute, square))

    def _pull(self, weight: Tensor, nu: float) -> Tensor:
        """N times the derivative of the rate by each weight's magnitude (of bits: with each tensor's own mean)."""
        size = weight.abs() + self.rate.epsilon
        if self.rate.variant != "bits":
            return nu * size ** (nu - 1)
        powers = (size**nu).sum(dtype=torch.float64)
        return size ** (nu - 1) / (float(powers) / weight.numel() * math.log(2))

    def _factor(self, pulls: Mapping[str, Tensor]) -> float:
        """What derivatives are multiplied by: lambda / N, or what makes the average step the one of ``strength``."""
        if self.rate.lam is not None:
            return self.rate.lam / self.count
        mean = sum(float(pull.sum(dtype=torch.float64)) for pull in pulls.values()) / self.count
        return self.rate.strength * self.deviation / self.rate.steps / mean if mean > 0 else 0.0

    def _shrink(self, weight: Tensor, pull: Tensor) -> None:
        if self.rate.variant == "decoupled":
            weight.sub_(weight.sign() * pull)
        else:
            weight.copy_(weight.sign() * (weight.abs() - pull).clamp_(min=0.0))

    def _shrink_groups(self, weight: Tensor) -> None:
        """The proximal step of the sum of the groups' norms, so that whole ones become zero."""
        lines = weight.flatten(1) if self.rate.group == "row" else weight.flatten(1).T
        groups = lines.reshape(-1, self.rate.group_size * lines.shape[1])
        norms = groups.norm(dim=1, keepdim=True)
        # In the same units as single weights: a group of weights of the typical size loses group_strength of them over
        # T steps.
        pull = self.rate.group_strength * float(norms.mean()) / self.rate.steps
        shrunk = (groups * (1 - pull / norms.clamp_min(1e-30)).clamp_(min=0.0)).view(lines.shape)
        weight.copy_((shrunk if self.rate.group == "row" else shrunk.T).reshape(weight.shape))

    def _grouped(self) -> list[str]:
        """Names of the weights with a group rate. Raises UsageError when groups do not fit them."""
        rate = self.rate
        if not rate.group:
            return []
        names = [name for name in self.weights if any(fnmatchcase(name, pattern) for pattern in rate.group_only)]
        if not names:
            raise UsageError(
                f"group_only {list(rate.group_only)}: fits no weight; they are named like "
                f"{', '.join(list(self.weights)[:3])}"
            )
        for name in names:
            weight = self.weights[name]
            count = weight.shape[0] if rate.group == "row" else weight[0].numel()
            if count % rate.group_size:
                raise UsageError(
                    f"group_size {rate.group_size}: {name} has {count} {rate.group}s, no multiple of it; name others "
                    "in group_only"
                )
        return names


class BackslashCallback(TrainerCallback, ExportableState):
    """The rate term in a transformers Trainer: ``Rate.steps`` steps, the rest with zeros held; resumes with it."""

    def __init__(self, rate: Rate, deviation: float | None = None) -> None:
        """``deviation`` is of a training that goes on: that of the weights when it began."""
        self.rate, self.deviation = rate, deviation
        self.backslash: Backslash | None = None

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoints."""
        return {"args": {"rate": asdict(self.rate), "deviation": self.deviation}, "attributes": {}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BackslashCallback:
        """The callback of a checkpoint."""
        rate = dict(state["args"]["rate"])  # out of JSON, which has no tuples
        return cls(
            Rate(**{**rate, **{key: tuple(rate[key]) for key in ("exclude", "group_only")}}), state["args"]["deviation"]
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Takes the model's weights."""
        assert model is not None, "the Trainer hands the model over"
        self.backslash = Backslash(model, self.rate)
        if self.deviation is None:
            self.deviation = self.backslash.deviation
        self.backslash.deviation = self.deviation
        self.backslash.done = min(int(state.global_step), self.rate.steps)
        if state.global_step >= self.rate.steps:
            self.backslash.hold()  # goes on after the constrained part

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step of the optimizer."""
        assert self.backslash is not None
        self.backslash.step()
        if self.backslash.done >= self.rate.steps and not self.backslash.masks:
            self.backslash.hold()
