"""SALT: a small teacher helps a larger student at first, then plain training follows (arXiv 2410.18779).

    steps 1 .. n_KD:   loss = (1 - w) CE(data) + w CE(Q, student),  Q = softmax(teacher's logits / temperature)
    afterwards:        loss = CE(data)

SALT_DS chooses the sequences of the first stage: those whose median loss is highest under an early checkpoint of a
small model, tokens outside its ten most probable counted as 0 (challenging, yet within reach).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UsageError
from edgekit.methods.distill import check_targets, predictions, soft_cross_entropy, targets
from edgekit.methods.examples import Batch, Examples, Objective, device_of, most_rows
from edgekit.methods.masks import matrices, zero_share


@dataclass(frozen=True)
class Salt:
    """Who teaches, for how long, with which sequences.

    teacher: a small model as `edgekit compress` takes it, with the student's vocabulary. steps: n_KD, the transition.
    weight: w. temperature: of the teacher alone. top: classes kept of each answer. share: of the sequences used in the
    first stage, chosen by ``scorer`` (an early checkpoint of a small model; left out, the teacher) with ``within`` as
    its most probable tokens; 1 takes all. unlearnable: what becomes of tokens outside them: "zero" or "dropped". cache:
    as in Distillation.
    """

    teacher: str
    steps: int
    weight: float = 2 / 3
    temperature: float = 1.0
    top: int = 32
    share: float = 1.0
    scorer: str = ""
    within: int = 10
    unlearnable: str = "zero"
    cache: str = ""

    def __post_init__(self) -> None:
        check_targets(self.weight, self.temperature, self.top)
        if self.steps < 1 or self.within < 1 or not 0 < self.share <= 1:
            raise UsageError(
                f"steps {self.steps}, within {self.within}, share {self.share}: steps and within are at least 1, "
                "share is above 0 and at most 1"
            )
        if self.unlearnable not in ("zero", "dropped"):
            raise UsageError(f"unlearnable: '{self.unlearnable}' is not one of zero, dropped")


class Transition:
    """Counts the steps of both stages; ``first`` until the transition."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.steps, self.done = model, steps, 0

    @property
    def first(self) -> bool:
        """Whether the teacher still helps."""
        return self.done < self.steps

    def step(self) -> None:
        """After each step of the optimizer."""
        self.done += 1

    def hold(self) -> None:
        """Ends the first stage."""
        self.done = max(self.done, self.steps)

    def zeros(self) -> float:
        """Share of weights that are exactly zero."""
        return zero_share(matrices(self.model))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self.done = int(state["done"])


@dataclass(frozen=True)
class Staged(Examples):
    """Examples of both stages: in the first, rows ``chosen`` int64 [m] with a teacher's ``answers`` to them; then all,
    alone.

    The first stage goes through ``chosen`` in its order, again and again.
    """

    chosen: Tensor = field(default_factory=lambda: torch.empty(0))
    answers: dict[str, Tensor] = field(default_factory=dict)
    transition: Transition | None = None

    def select(self, rows: Tensor | slice) -> dict[str, Tensor]:
        """Some rows; in the first stage, instead of them, as many of the chosen ones as come next."""
        if self.transition is None or not self.transition.first or isinstance(rows, slice):
            return super().select(rows)
        place = (self.transition.done * len(rows) + torch.arange(len(rows))) % len(self.chosen)
        return {**super().select(self.chosen[place]), **{name: array[place] for name, array in self.answers.items()}}


def salted(objective: Objective, salt: Salt, transition: Transition) -> Objective:
    """The same objective with the loss of this module; batches are those of :class:`Staged`."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if not transition.first:
            return objective.loss(model, batch)
        logits, wanted = predictions(objective, model, batch)
        return salt_loss(logits, wanted, *targets(batch), salt.weight)

    return replace(objective, loss=loss)


def salt_loss(logits: Tensor, wanted: Tensor, indices: Tensor, logs: Tensor, weight: float) -> Tensor:
    """Mean over [N] of the first stage's loss; arguments as in ``distill``."""
    hard = functional.cross_entropy(logits, wanted)
    return (1 - weight) * hard + weight * soft_cross_entropy(logits, indices, logs).mean()


@torch.no_grad()
def challenge(
    model: nn.Module,
    objective: Objective,
    examples: Examples,
    within: int = 10,
    unlearnable: str = "zero",
    batch_size: int = 16,
) -> Tensor:
    """SALT_DS's score of each sequence, float32 [n]: the median over its tokens of m l, l the token's loss and m 1
    where the token is among the model's ``within`` most probable ones, else 0 (or the token is left out; with none
    left, 0).
    """
    training, medians = model.training, []
    model.eval()
    for batch in examples.batches(min(batch_size, most_rows(model, examples)), device_of(model)):
        logits, wanted = predictions(objective, model, batch)
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        own = logits.gather(1, wanted[:, None])
        inside = (logits > own).sum(1) < within
        rows = len(next(iter(batch.values())))
        for loss, mask in zip(losses.view(rows, -1), inside.view(rows, -1), strict=True):
            some = loss[mask] if unlearnable == "dropped" else loss * mask
            medians.append(some.quantile(0.5) if len(some) else loss.new_zeros(()))
    model.train(training)
    return torch.stack(medians).cpu()


def hardest(scores: Tensor, share: float) -> Tensor:
    """The rows of the highest scores, at least one, in ascending order."""
    count = max(1, round(share * len(scores)))
    return scores.topk(count).indices.sort().values
