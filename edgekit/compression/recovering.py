"""``recover``: a model is rounded, then trained with simulated weights towards what it answered before."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compression.job import Job, Outcome
from edgekit.compression.material import Material
from edgekit.errors import CheckFailed, SourceError, UnsupportedError
from edgekit.methods.calibrate import Batch, groups_of
from edgekit.methods.distill import ANSWER_BYTES, cached, weights_digest, with_targets
from edgekit.methods.examples import EMBEDDINGS, LANGUAGE, Examples
from edgekit.methods.fitted_recipe import recipe_for
from edgekit.methods.layerwise import compress_layers
from edgekit.methods.processes import processes
from edgekit.methods.recover import BRANCH_FORMAT, recovering, settle, simulate
from edgekit.methods.resume import Checkpoint, FinishedBlocks, forget_checkpoint
from edgekit.methods.training import History, Run, epoch_order

CHANCE = 1.0
"""Nats above guessing at which a text is not of the model's tokenizer."""


def recovered(job: Job) -> Outcome:
    """Rounds a model and trains it, in place: scores of the original, as it was rounded, and trained; the recipe that stores it.

    Raises SourceError for too little or foreign text, UnsupportedError for a model that predicts no classes, CheckFailed for
    a training that diverges; otherwise what calibration does.
    """
    settings, model, name = job.settings, job.source.module, job.source.name
    assert job.data is not None
    data = _chosen(job, job.data)
    original = data.scores(name, model)
    _check_known(name, model, data, original["loss"])
    belongs = {**job.belongs(), "original": weights_digest(model)}
    batches = data.batches(settings.calibration.examples, settings.calibration.batch)
    data = _with_answers(job, data)
    rows = _rounded(job, batches, belongs)
    model.to(processes().device)
    run = Run(model, data.objective, data.train, settings.training, evaluation=data.evaluation)
    checkpoint = Checkpoint(job.checkpoint, belongs)
    if job.resume:
        run.resume(checkpoint)
    elif run.accelerator.is_main_process:
        forget_checkpoint(job.checkpoint)
    history = run.go(checkpoint=checkpoint, progress=job.progress)
    _check_gained(name, history, settings.training.learning_rate)
    model.cpu()
    settle(model)
    history = History(history.losses, [{**original, "kl": 0.0}, *history.evaluations])
    option = settings.recover.method().option(model)
    recipe = recipe_for(model, option, settings.method, settings.calibration.exclude, BRANCH_FORMAT)
    return Outcome(job.source, history, rows, recipe)


def _chosen(job: Job, data: Material) -> Material:
    """As many examples as will be used, drawn over all of them. Raises SourceError, UnsupportedError."""
    training, calibration, count = job.settings.training, job.settings.calibration, len(data.train)
    if data.objective is EMBEDDINGS:
        raise UnsupportedError(
            f"{job.source.name}: gives embeddings, no classes; recover is for language models and classifiers"
        )
    least = max(calibration.examples, training.batch_size)
    if count < least:
        raise SourceError(
            f"compress.data: {count} examples to train with; recover needs {least} (calibration.examples, "
            "training.batch_size): give more text, or lower them or data.length"
        )
    rows = epoch_order(training.seed, count, 0)[: max(least, training.steps * training.batch_size)]
    return replace(data, train=Examples(data.train.select(rows)))


def _check_known(name: str, model: nn.Module, data: Material, loss: float) -> None:
    """A text of another tokenizer reads to the model as noise."""
    classes = getattr(getattr(model, "config", None), "vocab_size", None)
    if data.objective is LANGUAGE and isinstance(classes, int) and loss > math.log(classes) + CHANCE:
        raise SourceError(
            f"compress.data: the original loses {loss:.2f} nats a token on it, guessing {math.log(classes):.2f}; give text "
            f"that {name} knows, with the tokenizer that it was trained with"
        )


def _with_answers(job: Job, data: Material) -> Material:
    """With what the original answers to all examples: on disk, or the original itself to be asked."""
    lesson, model = job.settings.recover, job.source.module.to(processes().device)
    if not lesson.top:
        return replace(data, objective=recovering(data.objective, lesson, copy.deepcopy(model).requires_grad_(False)))
    count, arrays = len(data.train), data.train.arrays
    both = Examples({key: torch.cat([array, data.evaluation.arrays[key]]) for key, array in arrays.items()})
    cache = job.directory / Path(lesson.cache).expanduser() if lesson.cache else job.answers
    each = both.arrays["input_ids"].shape[1] - 1 if data.objective is LANGUAGE else 1
    size = len(both) * each * lesson.top * ANSWER_BYTES / 1e6
    job.progress(f"ask the original, {size:.0f} MB of answers", 0.0)
    half = job.settings.training.mixed_precision == "bf16"
    name = f"{job.source.name}{', bf16' if half else ''}"
    precision = torch.autocast(processes().device.type, torch.bfloat16, enabled=half)
    with processes().main_process_first(), precision:  # the others find its answers
        answers = cached(
            cache, model, data.objective, both, lesson.top, lesson.temperature, name=name, progress=job.progress
        )
    parts = [{key: array[part] for key, array in answers.items()} for part in (slice(count), slice(count, None))]
    train, evaluation = (with_targets(e, a) for e, a in zip((data.train, data.evaluation), parts, strict=True))
    return Material(recovering(data.objective, lesson, None), train, evaluation)


def _rounded(job: Job, batches: Sequence[Batch], belongs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rounds the blocks' linear layers and simulates them from here on; rows as of ``compress_layers``.

    What an interrupted run rounded is read again.
    """
    lesson, calibration, model = job.settings.recover, job.settings.calibration, job.source.module.cpu()
    originals: dict[str, Tensor] = {
        name: layer.weight.detach().clone()
        for group in groups_of(model, batches[0], calibration.exclude)
        for name, layer in group.items()
    }
    method, engine = lesson.method(), processes()
    with engine.main_process_first():
        resume = job.resume or not engine.is_main_process
        finished = FinishedBlocks(job.start, belongs, resume)
        rows = compress_layers(model, batches, method, calibration, finished=finished, progress=job.progress)
    option = method.option(model)
    assert option is not None
    simulate(model, originals, option, lesson)
    return rows


def _check_gained(name: str, history: History, learning_rate: float) -> None:
    """Raises CheckFailed for a model that is further from its original than it began."""
    first, last = history.evaluations[0], history.evaluations[-1]
    if not last["kl"] <= first["kl"]:
        raise CheckFailed(
            f"{name}: held-out KL to the original {first['kl']:.4f} as rounded, {last['kl']:.4f} after step "
            f"{last['step']:.0f}: the training diverged; lower learning_rate ({learning_rate}) or give more text, and begin "
            "anew (--force)"
        )
