"""Methods that need no training, on a model that was read: GPTQ, ternary planes, EoRA, LoRA adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compression.job import Job, Outcome
from edgekit.compression.material import near
from edgekit.errors import SourceError
from edgekit.frontend.pooling import TextEncoder
from edgekit.low_rank import branch_names, fold_branches
from edgekit.methods.calibrate import Batch, groups_of
from edgekit.methods.fitted_recipe import recipe_for
from edgekit.methods.layerwise import compress_layers
from edgekit.methods.lora import beside, merge, read_adapter
from edgekit.methods.resume import FinishedBlocks
from edgekit.methods.training import History


def post_trained(job: Job) -> Outcome:
    """Compresses a model in place: scores before and after, a row for each group of layers, and the recipe that stores
    it.

    Raises what :func:`compress_layers` does, SourceError for an adapter or original that does not fit the model.
    """
    settings, data, model = job.settings, job.data, job.source.module
    method, calibration = settings.layer_method(), settings.calibration
    finished = FinishedBlocks(job.checkpoint, job.belongs(), job.resume)
    history, rows = History(), list[dict[str, Any]]()
    if data is not None:
        history.evaluations.append(data.scores(job.source.name, model))
    lora = settings.lora if settings.method == "lora" else None
    adapters = read_adapter(job.directory / lora.adapter) if lora is not None else {}
    if lora is not None and lora.merge:
        merge(_inner(model), adapters)
    if lora is None or method.of != "none":
        assert data is not None  # the configuration was checked for it
        batches = data.batches(calibration.examples, calibration.batch)
        original = method.compensation.original if method.compensation is not None else ""
        rows = compress_layers(
            model,
            batches,
            method,
            calibration,
            finished=finished,
            progress=job.progress,
            originals=_weights(job, original) if original else None,
        )
    if lora is not None and not lora.merge:
        beside(_inner(model), adapters, groups_of(_inner(model), _one_batch(job)), lora.format)
    if data is not None:
        history.evaluations.append(data.scores(f"{job.source.name}, compressed", model))
    branches = method.compensation or lora
    recipe = recipe_for(
        model,
        method.option(model),
        settings.method,
        calibration.exclude if rows else (),
        branches.format if branches is not None else "int8",
    )
    return Outcome(job.source, history, rows, recipe)


def _one_batch(job: Job) -> Batch:
    """Anything that runs through the model: which layers read the same input does not depend on it."""
    if job.data is not None:
        return job.data.objective.inputs(job.data.train.select(slice(0, 1)))
    return job.source.example_inputs or {"input_ids": torch.ones(1, 4, dtype=torch.int64)}


def _inner(model: nn.Module) -> nn.Module:
    """What transformers calls the model: names in adapters are its."""
    return model.model if isinstance(model, TextEncoder) else model


def _weights(job: Job, name: str) -> dict[str, Tensor]:
    """The weights of the linear layers of an original, which must be those of the model in name and shape."""
    model, source = job.source.module, near(job.directory, name)
    original = job.load(source).module
    fold_branches(original)
    branches, modules = branch_names(model), dict(original.named_modules())
    weights = {}
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer_name in branches:
            continue
        other = modules.get(layer_name)
        if not isinstance(other, nn.Linear) or other.weight.shape != layer.weight.shape:
            raise SourceError(
                f"{source}: has no linear layer '{layer_name}' {list(layer.weight.shape)}; it is not the original of "
                "this model"
            )
        weights[layer_name] = other.weight.detach().float()
    return weights
