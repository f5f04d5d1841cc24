"""The training of every method, on accelerate: same data in the same order for the same seed, and an exact resume.

A run that was stopped and goes on from its checkpoint ends with the same bits as one that was not, on the same machine
with the same number of threads. So do two processes, and one that takes batches in two parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgekit.errors import CheckFailed, UsageError
from edgekit.methods.examples import Examples, Objective, device_of
from edgekit.methods.processes import PRECISIONS, accelerator_for, interruptible
from edgekit.methods.resume import Checkpoint, load_state
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
    weight_decay: float = 0.0  # of matrices; norms and biases have none
    beta2: float = 0.999  # of Adam; language models often take 0.95
    clip: float = 0.0  # longest gradient; 0 does not clip
    accumulate: int = 1  # parts that a process takes its share of a batch in, where memory is short
    mixed_precision: str = ""  # no or bf16; left out, what the launcher says, else no
    seed: int = 0
    evaluate_every: int = 0  # 0 evaluates at the beginning and the end
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.batch_size, self.accumulate, self.checkpoint_every) < 1:
            raise UsageError(
                f"steps {self.steps}, batch_size {self.batch_size}, accumulate {self.accumulate}, checkpoint_every "
                f"{self.checkpoint_every}: steps are at least 0, the others 1"
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
        if self.mixed_precision not in ("", *PRECISIONS):
            raise UsageError(f"mixed_precision: '{self.mixed_precision}' is not one of {', '.join(PRECISIONS)}")

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
    """One training: ``step`` of ``training.steps`` are done; ``constraint`` holds after ``hold_after`` of them.

    accelerate runs it, in this process or together with those that a launcher started: each computes its share of every
    batch, all hold the same weights.
    """

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
        """Raises UsageError for a batch that cannot be shared evenly, or a way to train that is not known."""
        self.model, self.objective, self.examples, self.training = model, objective, examples, training
        self.constraint, self.hold_after, self.evaluation = constraint, hold_after, evaluation
        self.accelerator = accelerator_for(training.mixed_precision, training.accumulate)
        self.size = min(training.batch_size, len(examples))
        parts = self.accelerator.num_processes * training.accumulate
        if self.size % parts:
            raise UsageError(
                f"batch_size: {self.size} examples cannot be shared evenly by {self.accelerator.num_processes} "
                f"processes that take them in {training.accumulate} parts; give a multiple of {parts}"
            )
        self.step, self.history = 0, History()
        self._resumed: tuple[Path, int] | None = None  # what to load
        self._kept: int | None = None  # the step of the last checkpoint
        self._order = -1, torch.empty(0)  # the epoch whose order it is

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on where ``checkpoint`` was written, of the same model, data and settings. Raises what it does."""
        directory, state = checkpoint.read(self._place())
        self._resumed = directory, int(state["random"])
        if self.constraint is not None:
            self.constraint.load_state_dict(state["constraint"])
        self.step = self._kept = int(state["step"])
        self.history = History(list(state["losses"]), [dict(scores) for scores in state["evaluations"]])

    def go(self, *, checkpoint: Checkpoint | None = None, progress: Progress = lambda what, share: None) -> History:
        """Trains to the end. ``checkpoint`` is written every ``checkpoint_every`` steps and on Ctrl-C or SIGTERM.

        Leaves the model in eval mode, where it was, and torch's random numbers as they were. Raises KeyboardInterrupt once
        interrupted, CheckFailed when loss or weights are no numbers any more; the last checkpoint stays then.
        """
        engine, training, device = self.accelerator, self.training, device_of(self.model)
        self._prepared, self._optimizer = engine.prepare(self.model, self._adamw())
        cuda = [engine.device] if engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), interruptible() as stopped:
            if self._resumed is not None:
                load_state(engine, *self._resumed)
            else:
                torch.manual_seed(training.seed + engine.process_index)
                self._evaluate()
            self._prepared.train()
            while self.step < training.steps:
                self._one()
                if self.step == self.hold_after and self.constraint is not None:
                    self.constraint.hold()
                every = training.evaluate_every
                if (every and self.step % every == 0) or self.step == training.steps:
                    self._evaluate()
                if stopped():
                    engine.set_trigger()
                stop = engine.check_trigger()  # all processes, when one of them was told
                due = self.step % training.checkpoint_every == 0 and self.step < training.steps
                if checkpoint is not None and (due or stop):
                    self._keep(checkpoint)
                if stop:
                    raise KeyboardInterrupt
                if engine.is_main_process:
                    self._tell(progress)
        engine.unwrap_model(self._prepared, keep_fp32_wrapper=False).to(device).eval()
        return self.history

    def _keep(self, checkpoint: Checkpoint) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise self._diverged("weights are no finite numbers")
        state = {
            "step": self.step,
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "losses": self.history.losses,
            "evaluations": self.history.evaluations,
        }
        checkpoint.write(self.accelerator, state, self._place())
        self._kept = self.step

    def _place(self) -> dict[str, Any]:
        """What a checkpoint of accelerate's belongs to."""
        return {"processes": self.accelerator.num_processes, "mixed_precision": self.accelerator.mixed_precision}

    def _one(self) -> None:
        engine, training = self.accelerator, self.training
        set_rates(self._optimizer, training, self.step)
        with engine.split_between_processes(self.examples.select(self._rows())) as share:
            parts = Examples(share).batches(len(next(iter(share.values()))) // training.accumulate, engine.device)
        losses = []
        for part in parts:
            with engine.accumulate(self._prepared):
                loss = self.objective.loss(self._prepared, part)
                losses.append(loss.detach())
                engine.backward(loss)
                if engine.sync_gradients and training.clip:
                    engine.clip_grad_norm_(self._prepared.parameters(), training.clip)
                self._optimizer.step()
                self._optimizer.zero_grad()
        value = float(engine.reduce(torch.stack(losses).mean(), "mean"))
        if not math.isfinite(value):
            raise self._diverged(f"loss is {value}")
        if self.constraint is not None:
            self.constraint.step()
        self.history.losses.append(value)
        self.step += 1

    def _adamw(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
        groups = [{"params": group} for group in (matrices, vectors) if group]
        return torch.optim.AdamW(groups, betas=(0.9, self.training.beta2), foreach=True)

    def _diverged(self, what: str) -> CheckFailed:
        kept = "" if self._kept is None else f"; the checkpoint of step {self._kept} is kept, --resume goes on from it"
        return CheckFailed(
            f"step {self.step + 1}: the {what}; lower learning_rate ({self.training.learning_rate}) or set clip{kept}"
        )

    def _rows(self) -> Tensor:
        """Rows of this step's batch: each epoch in an order of its own, a rest that fills no batch left out."""
        epoch, place = divmod(self.step, len(self.examples) // self.size)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self.training.seed, len(self.examples), epoch)
        return self._order[1][place * self.size : (place + 1) * self.size]

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


def set_rates(optimizer: Any, training: Training, step: int) -> None:
    """Gives an AdamW the learning rate and weight decay of step 0, 1, ...; norms and biases have no decay."""
    for group in optimizer.param_groups:
        matrices = any(parameter.ndim > 1 for parameter in group["params"])
        group["lr"], group["weight_decay"] = training.rate_at(step), training.decay_at(step) if matrices else 0.0


def epoch_order(seed: int, count: int, epoch: int) -> Tensor:
    """The rows 0 to ``count`` - 1 in the order of an epoch of a training with ``seed``: int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
