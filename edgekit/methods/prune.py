"""Magnitude pruning, the baseline of every sparse method: the smallest weights become zero and stay so.

    pruner = Pruner(model, Pruning(sparsity=0.8, steps=500))
    for batch in batches:
        loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
        pruner.step()        # after the optimizer

Gradual pruning follows the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878); 2:4 keeps
the two largest of four neighbours along a row, the pattern of NVIDIA's sparse tensor cores (arXiv 2104.08378).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods import masks

SCOPES = ("global", "layer")
PATTERNS = ("", "2:4")


@dataclass(frozen=True)
class Pruning:
    """What becomes zero, and when. ``steps`` 1 is one-shot; more raise the sparsity from 0, renewing masks every
    ``every``.

    scope: "global" compares the weights of all layers, "layer" takes the same share from each. pattern: "2:4" instead,
    one-shot, in groups along the input dimension (a convolution's: channel, then kernel); columns that fill no group
    stay.
    """

    sparsity: float = 0.8
    steps: int = 1
    every: int = 10
    scope: str = "global"
    pattern: str = ""
    exclude: tuple[str, ...] = ()  # globs over parameter names

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity: {self.sparsity} is not a share of at least 0 and below 1")
        if self.steps < 1 or self.every < 1:
            raise UsageError(f"steps {self.steps}, every {self.every}: both are at least 1; steps: 1 prunes at once")
        if self.scope not in SCOPES or self.pattern not in PATTERNS:
            raise UsageError(
                f"scope {self.scope!r}, pattern {self.pattern!r}: give one of {', '.join(SCOPES)}; and 2:4 or nothing"
            )


class Pruner:
    """Prunes a model step by step and holds the zeros; ``done`` are the steps taken."""

    def __init__(self, model: nn.Module, pruning: Pruning) -> None:
        """One-shot pruning happens here. Raises UnsupportedError for a model without what could be pruned."""
        self.pruning = pruning
        self.weights = masks.matrices(model, pruning.exclude)
        self.done = 0
        self.masks: masks.Masks = {}
        if pruning.pattern or pruning.steps == 1:
            self._renew(pruning.sparsity)

    def step(self) -> None:
        """After each step of the optimizer: raises the sparsity where it is due, puts zeros back otherwise."""
        self.done += 1
        pruning = self.pruning
        last = pruning.pattern or self.done > pruning.steps
        if pruning.steps > 1 and not last and (self.done % pruning.every == 0 or self.done == pruning.steps):
            self._renew(pruning.sparsity * (1 - (1 - self.done / pruning.steps) ** 3))
        else:
            masks.apply(self.masks, self.weights)

    def hold(self) -> None:
        """Ends a gradual schedule where it is; what is zero now stays zero."""
        self.masks = masks.nonzero(self.weights)
        self.done = max(self.done, self.pruning.steps)

    def zeros(self) -> float:
        """Share of weights that are exactly zero."""
        return masks.zero_share(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs; masks as bool tensors by name."""
        return {"done": self.done, "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken. Raises UsageError for another model's masks."""
        self.masks = masks.restored(state["masks"], self.weights)
        self.done = int(state["done"])

    @torch.no_grad()
    def _renew(self, sparsity: float) -> None:
        if self.pruning.pattern:
            self.masks = {name: two_of_four(weight) for name, weight in self.weights.items()}
        elif self.pruning.scope == "layer":
            self.masks = {name: largest({name: w}, sparsity)[name] for name, w in self.weights.items()}
        else:
            self.masks = largest(self.weights, sparsity)
        masks.apply(self.masks, self.weights)


@torch.no_grad()
def largest(weights: Mapping[str, Tensor], sparsity: float) -> masks.Masks:
    """Masks that drop ``sparsity`` of all ``weights`` together (rounded to whole weights), the smallest magnitudes."""
    magnitudes = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    mask = torch.ones(len(magnitudes), dtype=torch.bool, device=magnitudes.device)
    mask[torch.topk(magnitudes, round(sparsity * len(magnitudes)), largest=False, sorted=False).indices] = False
    parts = torch.split(mask, [w.numel() for w in weights.values()])
    return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}


@torch.no_grad()
def two_of_four(weight: Tensor) -> Tensor:
    """The bool mask [N, ...] that keeps the two largest of each four neighbours along a row.

    Raises UnsupportedError for rows shorter than four.
    """
    rows = weight.detach().abs().flatten(1)
    whole = rows.shape[1] // 4 * 4
    if not whole:
        raise UnsupportedError(f"2:4: a weight {list(weight.shape)} has rows shorter than 4; exclude it")
    mask = torch.ones_like(rows, dtype=torch.bool)
    groups = rows[:, :whole].reshape(len(rows), -1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
    mask[:, :whole] = kept.flatten(1)
    return mask.view_as(weight)
