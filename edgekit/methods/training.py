"""The training loop of every method: same data in the same order for the same seed, and an exact resume.

A run that was stopped and goes on from its checkpoint ends with the same bits as one that was not, on the same machine
with the same number of threads.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgekit.errors import CheckFailed, UsageError
from edgekit.methods.examples import Examples, Objective
from edgekit.spec.progress import Progress

SCHEDULES = ("constant", "linear", "cosine", "two-stage")
NEWS = 20
"""How often the loss is told while training."""
CURVE = 200
"""Points of a loss curve."""
SEEDS = 2**32
LARGEST = 1e6
"""Of what multiplies gradients: beyond it numbers overflow whatever they are."""


class Constraint(Protocol):
    """What a method does to the weights after each step of the optimizer."""

    def step(self) -> None: ...

    def hold(self) -> None: ...

    def zeros(self) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Training:
    """How to train: AdamW, and everything that decides about its result."""

    steps: int = 1000  # 0 leaves the weights to what a method does at once
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: str = "constant"  # or linear or cosine: down to zero at the last step; or two-stage
    second_learning_rate: float = 0.0  # of the second half of two-stage; 0 is two thirds of learning_rate
    warmup: int = 0  # steps in which the learning rate rises from zero
    weight_decay: float = 0.0
    beta2: float = 0.999  # of Adam; language models often take 0.95
    clip: float = 0.0  # longest gradient; 0 does not clip
    seed: int = 0
    evaluate_every: int = 0  # 0 evaluates at the beginning and the end
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.checkpoint_every < 1:
            raise UsageError(
                f"steps {self.steps}, batch_size {self.batch_size}, checkpoint_every {self.checkpoint_every}: steps "
                "are at least 0, the others 1"
            )
        if min(self.warmup, self.evaluate_every, self.seed) < 0 or self.seed >= SEEDS:
            raise UsageError(
                f"warmup {self.warmup}, evaluate_every {self.evaluate_every}, seed {self.seed}: none is negative, the "
                f"seed is below {SEEDS}"
            )
        numbers = self.learning_rate, self.second_learning_rate, self.weight_decay, self.clip
        if not all(0 <= v <= LARGEST for v in numbers) or not 0 < self.beta2 < 1:
            raise UsageError(
                f"learning_rate {self.learning_rate}, second_learning_rate {self.second_learning_rate}, weight_decay "
                f"{self.weight_decay}, clip {self.clip}, beta2 {self.beta2}: not negative, at most {LARGEST:.0g}, "
                "beta2 between 0 and 1"
            )
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule: '{self.schedule}' is not one of {', '.join(SCHEDULES)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ...

        two-stage is BitNet's (Training Tips, Code and FAQ): a linear decay that from half of the steps on starts from
        ``second_learning_rate``; weight decay ends there too.
        """
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        remaining = max(0.0, 1.0 - max(0, step - self.warmup) / max(1, self.steps - self.warmup))
        falling = remaining if self.schedule in ("linear", "two-stage") else 0.5 - 0.5 * math.cos(math.pi * remaining)
        peak = (self.second_learning_rate or 2 / 3 * self.learning_rate) if self._second(step) else self.learning_rate
        return peak * rising * (1.0 if self.schedule == "constant" else falling)

    def decay_at(self, step: int) -> float:
        """The weight decay of step 0, 1, ..."""
        return 0.0 if self._second(step) else self.weight_decay

    def _second(self, step: int) -> bool:
        return self.schedule == "two-stage" and 2 * step >= self.steps


@dataclass
class History:
    """What happened: the loss of each step, and scores on held-out examples with the step they were taken after."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def curve(self) -> list[list[float]]:
        """[last step, mean loss] of at most 200 equal stretches."""
        width = max(1, -(-len(self.losses) // CURVE))
        parts = [self.losses[start : start + width] for start in range(0, len(self.losses), width)]
        return [[min((i + 1) * width, len(self.losses)), sum(p) / len(p)] for i, p in enumerate(parts)]


class Run:
    """One training: ``step`` of ``training.steps`` are done; ``constraint`` holds after ``hold_after`` of them."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        examples: Examples,
        training: Training,
        *,
        constraint: Constraint | None = None,
        hold_after: int | None = None,
        evaluation: Examples | None = None,
    ) -> None:
        self.model, self.objective, self.examples, self.training = model, objective, examples, training
        self.constraint, self.hold_after, self.evaluation = constraint, hold_after, evaluation
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=training.learning_rate,
            betas=(0.9, training.beta2),
            weight_decay=training.weight_decay,
            foreach=True,
        )
        self.step = 0
        self.history = History()
        self._order = -1, torch.empty(0)  # the epoch whose order it is

    def go(
        self, *, keep: Callable[[Mapping[str, Any]], None] | None = None, progress: Progress = lambda what, share: None
    ) -> History:
        """Trains to the end. ``keep`` is given :meth:`state_dict` every ``checkpoint_every`` steps and on Ctrl-C or
        SIGTERM.

        Leaves the model in eval mode and torch's random numbers as they were. Raises KeyboardInterrupt once
        interrupted, CheckFailed when the loss is no number any more.
        """
        with torch.random.fork_rng(devices=[]), interruptible() as stopped:
            if self.step:
                torch.set_rng_state(self._random)
            else:
                torch.manual_seed(self.training.seed)
                self._evaluate()
            self.model.train()
            while self.step < self.training.steps:
                self._one()
                if self.step == self.hold_after and self.constraint is not None:
                    self.constraint.hold()
                every = self.training.evaluate_every
                if (every and self.step % every == 0) or self.step == self.training.steps:
                    self._evaluate()
                due = self.step % self.training.checkpoint_every == 0 and self.step < self.training.steps
                if keep is not None and (due or stopped()):
                    keep(self.state_dict())
                if stopped():
                    raise KeyboardInterrupt
                self._tell(progress)
        self.model.eval()
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs; tensors, numbers and lists only."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "random": torch.get_rng_state(),
            "losses": list(self.history.losses),
            "evaluations": [dict(scores) for scores in self.history.evaluations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken, of the same model, data and settings."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.constraint is not None:
            self.constraint.load_state_dict(state["constraint"])
        self.step, self._random = int(state["step"]), state["random"]
        self.history = History(list(state["losses"]), [dict(scores) for scores in state["evaluations"]])

    def _one(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.training.rate_at(self.step), self.training.decay_at(self.step)
        loss = self.objective.loss(self.model, self.examples.select(self._rows()))
        value = loss.item()
        if not math.isfinite(value):
            raise CheckFailed(
                f"step {self.step + 1}: the loss is {value}; lower learning_rate ({self.training.learning_rate}) or "
                "set clip"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.constraint is not None:
            self.constraint.step()
        self.history.losses.append(value)
        self.step += 1

    def _rows(self) -> Tensor:
        """Rows of this step's batch: each epoch in an order of its own, a rest that fills no batch left out."""
        size = min(self.training.batch_size, len(self.examples))
        epoch, place = divmod(self.step, len(self.examples) // size)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.training.seed, len(self.examples), epoch)
        return self._order[1][place * size : (place + 1) * size]

    def _evaluate(self) -> None:
        if self.evaluation is None:
            return
        scores = self.objective.evaluate(self.model, self.evaluation)
        zeros = {} if self.constraint is None else {"zeros": self.constraint.zeros()}
        self.history.evaluations.append({"step": self.step, **scores, **zeros})

    def _tell(self, progress: Progress) -> None:
        steps, done = self.training.steps, self.step
        news = done * NEWS // steps * steps // NEWS or 1  # the loss of the last twentieth
        progress(f"train: step {news} of {steps}, loss {self.history.losses[news - 1]:.4f}", done / steps)


def epoch_order(seed: int, count: int, epoch: int) -> Tensor:
    """The rows 0 to ``count`` - 1 in the order of an epoch of a training with ``seed``: int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, for the loop to end at a good place; a second Ctrl-C ends at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
