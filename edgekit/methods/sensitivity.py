"""A format for each layer within a budget of bytes, by what the model loses when one layer alone has it.

Every group of layers that read one input is rounded to each candidate, one group at a time, and the loss on examples is
taken: how far the answers move from the model's own (KL, nats), or an encoder's embeddings. Losses of several layers about add up, so the choice minimizes their sum: for each exchange of formats the bytes
saved for a unit of loss, cheapest first (the lower convex hulls of loss over bytes, Shoham and Gersho 1988).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edgekit.errors import CheckFailed, UsageError
from edgekit.lowbit.formats import CODECS
from edgekit.methods.examples import EMBEDDINGS, Examples, Objective
from edgekit.methods.recover import Recovery, recovering
from edgekit.recipe import VERSION, Recipe, Rule
from edgekit.spec.progress import Progress

CANDIDATES = (("int8", 64), ("int4-fp16", 16), ("int4-fp16", 32), ("int4-fp16", 64))
"""8.5, 5, 4.5 and 4.25 bits a weight."""
Option = tuple[str, int]


@dataclass(frozen=True)
class Scan:
    """``bits`` a weight or ``bytes`` for the blocks' linear layers, with scales; ``examples`` that the loss is of."""

    bits: float = 0.0
    bytes: int = 0
    examples: int = 32

    def __post_init__(self) -> None:
        finite = math.isfinite(self.bits)
        if (self.bits > 0) == (self.bytes > 0) or min(self.bits, self.bytes) < 0 or self.examples < 1 or not finite:
            raise UsageError(
                f"sensitivity: bits {self.bits}, bytes {self.bytes}, examples {self.examples}; give bits or bytes, "
                "and at least 1 example"
            )


@dataclass(frozen=True)
class Cost:
    """What a group of layers costs in a format: bytes stored, and how much higher the loss is with it there alone."""

    bytes: int
    loss: float


Table = dict[str, dict[Option, Cost]]
"""Costs by group (names joined by +) and (format, block size)."""


def distance(objective: Objective, model: nn.Module, examples: Examples, batch_size: int = 0) -> Callable[[], float]:
    """A function that says how far the model's answers on ``examples`` are from those of now: mean KL in nats, of an encoder
    its loss, which is a distance already. Keeps a copy of the model."""
    score = "kl"
    if objective is EMBEDDINGS:
        score = "loss"
    else:
        objective = recovering(objective, Recovery(), copy.deepcopy(model))
    return lambda: objective.evaluate(model, examples, batch_size)[score]


@torch.no_grad()
def scan(
    groups: Sequence[Mapping[str, nn.Linear]],
    evaluate: Callable[[], float],
    candidates: Sequence[Option] = CANDIDATES,
    progress: Progress = lambda what, share: None,
) -> Table:
    """Costs of each group in each of ``candidates``; ``evaluate()`` is the model's loss as its weights then are.

    The weights are the original ones afterwards. Raises UsageError when nothing is given, CheckFailed for a loss that
    is not finite.
    """
    if not groups or not candidates:
        raise UsageError(f"sensitivity: {len(groups)} groups, {len(candidates)} candidates; give at least one of each")
    before = evaluate()
    table: Table = {}
    for index, group in enumerate(groups):
        name = "+".join(group)
        originals = [layer.weight.clone() for layer in group.values()]
        for option in candidates:
            progress("sensitivity", index / len(groups))
            size = sum(_round(layer, option) for layer in group.values())
            loss = evaluate() - before
            table.setdefault(name, {})[option] = Cost(size, loss)
            for layer, original in zip(group.values(), originals, strict=True):
                layer.weight.copy_(original)
            if not math.isfinite(loss):
                raise CheckFailed(
                    f"{name}: the loss is not finite with it in {option[0]}, or before; nothing can be chosen"
                )
    return table


def _round(layer: nn.Linear, option: Option) -> int:
    """Rounds a layer's weight in place; the bytes that it takes."""
    kind = CODECS[option[0]]
    packed = kind.quantize(np.asarray(layer.weight.detach().numpy(), np.float32), option[1])
    layer.weight.copy_(torch.from_numpy(np.array(kind.dequantize(packed))))
    return packed.nbytes


def choose(table: Table, budget: int) -> dict[str, Option]:
    """A format for each group with at most ``budget`` bytes together and about the least sum of losses.

    Raises UsageError when even the smallest formats take more.
    """
    ladders = {name: _hull(costs) for name, costs in table.items()}
    at = dict.fromkeys(table, 0)
    remaining = budget - sum(ladder[0][1].bytes for ladder in ladders.values())
    if remaining < 0:
        raise UsageError(
            f"sensitivity: {budget} bytes; the smallest formats take {budget - remaining}; allow as many or more"
        )
    steps = [
        ((ladder[i][1].loss - ladder[i + 1][1].loss) / (ladder[i + 1][1].bytes - ladder[i][1].bytes), name, i)
        for name, ladder in ladders.items()
        for i in range(len(ladder) - 1)
    ]
    for _, name, i in sorted(steps, key=lambda step: (-step[0], step[2])):
        more = ladders[name][i + 1][1].bytes - ladders[name][i][1].bytes
        if at[name] == i and more <= remaining:  # a step that was too dear closes those above it
            at[name], remaining = i + 1, remaining - more
    return {name: ladders[name][i][0] for name, i in at.items()}


def _hull(costs: Mapping[Option, Cost]) -> list[tuple[Option, Cost]]:
    """From the fewest bytes on, the options whose loss falls with each byte more, ever more slowly."""
    hull: list[tuple[Option, Cost]] = []
    for option, cost in sorted(costs.items(), key=lambda item: (item[1].bytes, item[1].loss)):
        if hull and cost.loss >= hull[-1][1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-1][1], cost) >= _slope(hull[-2][1], hull[-1][1]):
            hull.pop()
        hull.append((option, cost))
    return hull


def _slope(low: Cost, high: Cost) -> float:
    """Loss saved for a byte."""
    return (low.loss - high.loss) / max(1, high.bytes - low.bytes)


def to_recipe(chosen: Mapping[str, Option], name: str) -> Recipe:
    """A rule for each layer, then the vocabulary and whatever else at 8 bits."""
    rules = [Rule(layer, *option) for group, option in chosen.items() for layer in group.split("+")]
    rules += [Rule("*", "int8", only="vocabulary"), Rule("*", "int8")]
    return Recipe(VERSION, name, tuple(rules), "formats chosen layer by layer: docs/low-bit-accuracy.md")
