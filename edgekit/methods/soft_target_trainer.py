"""Distillation and SALT in a transformers Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from edgekit.methods.distill import targets


class SoftTargetTrainer(Trainer):
    """A transformers Trainer for language models whose loss is given logits [N, V], tokens [N], and a teacher's
    answers.

    Rows of the dataset hold input_ids [T], ``teacher_indices`` and ``teacher_logs`` [T - 1, k]; ``loss_at`` makes the
    loss of a step from (step, logits, wanted, indices, logs). Sets ``remove_unused_columns`` off, so that the answers
    arrive.
    """

    def __init__(
        self, *args: Any, loss_at: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False
        self.model_accepts_loss_kwargs = False  # the loss is a mean of the batch: accumulated ones are averaged
        self.loss_at = loss_at

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of a batch, at the Trainer's step."""
        output = model(input_ids=inputs["input_ids"])
        logits, wanted = output.logits[:, :-1].flatten(0, 1).float(), inputs["input_ids"][:, 1:].flatten()
        loss = self.loss_at(self.state.global_step, logits, wanted, *targets(inputs))
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch, so that ``evaluate`` has one although rows have no labels."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None
