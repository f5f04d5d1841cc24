"""Methods that need no training, on a model that was read: GPTQ, ternary planes, EoRA, LoRA adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compression.material import Material, near
from edgekit.compression.settings import Compression
from edgekit.errors import CheckFailed, SourceError
from edgekit.frontend.pooling import TextEncoder
from edgekit.frontend.source import ModuleSource
from edgekit.low_rank import branch_names, fold_branches
from edgekit.methods.calibrate import Batch, groups_of
from edgekit.methods.examples import Examples
from edgekit.methods.fitted_recipe import recipe_for
from edgekit.methods.layerwise import Calibration, compress_layers
from edgekit.methods.lora import beside, merge, read_adapter
from edgekit.methods.resume import FinishedBlocks
from edgekit.methods.sensitivity import choose, scan, to_recipe
from edgekit.methods.training import History
from edgekit.recipe import Recipe
from edgekit.spec.progress import Progress

Load = Callable[[str], ModuleSource]


def post_trained(
    source: ModuleSource, settings: Compression, data: Material | None, directory: Path, load: Load, finished: FinishedBlocks,
    progress: Progress,
) -> tuple[History, list[dict[str, Any]], Recipe]:  # fmt: skip
    """Compresses a model in place: scores before and after, a row for each group of layers, and the recipe that stores it.

    Paths in ``settings`` are relative to ``directory``; ``load`` reads an original. Raises what :func:`compress_layers` does, SourceError for an
    adapter or original that does not fit the model.
    """
    model, method = source.module, settings.post_training()
    calibration = settings.calibration or Calibration()
    history, rows = History(), list[dict[str, Any]]()
    if data is not None:
        history.evaluations.append(_scores(source.name, model, data))
    if settings.method == "sensitivity":
        rows, recipe = _scanned(model, settings, data, calibration, progress)
        return history, rows, recipe
    lora = settings.lora if settings.method == "lora" else None
    adapters = read_adapter(directory / lora.adapter) if lora is not None else {}
    if lora is not None and lora.merge:
        merge(_inner(model), adapters)
    if settings.method != "lora" or method.of != "none":
        original = settings.eora.original if settings.method == "eora" and settings.eora is not None else ""
        rows = compress_layers(
            model, _batches(data, calibration), method, calibration, finished=finished, progress=progress,
            originals=_weights(original, directory, load, model) if original else None,
        )  # fmt: skip
    if lora is not None and not lora.merge:
        groups = groups_of(_inner(model), _one_batch(source, data))
        beside(_inner(model), adapters, groups, lora.format)
    if data is not None:
        history.evaluations.append(_scores(f"{source.name}, compressed", model, data))
    side = (
        method.compensation.format if method.compensation is not None else lora.format if lora is not None else "int8"
    )
    recipe = recipe_for(model, method.option(model), settings.method, calibration.exclude if rows else (), side)
    return history, rows, recipe


def _scanned(
    model: nn.Module, settings: Compression, data: Material | None, calibration: Calibration, progress: Progress
) -> tuple[list[dict[str, Any]], Recipe]:
    """What the sensitivity scan chose for each group of layers; the model stays as it is."""
    scanned = settings.sensitivity
    assert scanned is not None and data is not None
    groups = groups_of(model, _batches(data, calibration)[0], calibration.exclude)
    examples = Examples(data.train.select(slice(0, scanned.examples)))
    table = scan(groups, lambda: data.objective.evaluate(model, examples)["loss"], progress=progress)
    count = sum(layer.weight.numel() for group in groups for layer in group.values())
    chosen = choose(table, scanned.bytes or int(scanned.bits * count / 8))
    rows = [
        {"layer": name, "format": option[0], "block_size": option[1], **asdict(table[name][option])}
        for name, option in chosen.items()
    ]
    return rows, to_recipe(chosen, settings.method)


def _batches(data: Material | None, calibration: Calibration) -> list[Batch]:
    assert data is not None  # the configuration was checked for it
    some = type(data.train)(data.train.select(slice(0, calibration.examples)))
    return [data.objective.inputs(batch) for batch in some.batches(calibration.batch)]


def _one_batch(source: ModuleSource, data: Material | None) -> Batch:
    """Anything that runs through the model: which layers read the same input does not depend on it."""
    if data is not None:
        return data.objective.inputs(data.train.select(slice(0, 1)))
    return source.example_inputs or {"input_ids": torch.ones(1, 4, dtype=torch.int64)}


def _inner(model: nn.Module) -> nn.Module:
    """What transformers calls the model: names in adapters are its."""
    return model.model if isinstance(model, TextEncoder) else model


def _scores(name: str, model: nn.Module, data: Material) -> dict[str, float]:
    """On the held-out examples. Raises CheckFailed when they are not finite."""
    found = data.objective.evaluate(model, data.evaluation)
    if not all(math.isfinite(score) for score in found.values()):
        raise CheckFailed(f"{name}: its scores on the held-out examples are {found}; a model must give finite numbers")
    return {"step": 0, **found}


def _weights(name: str, directory: Path, load: Load, model: nn.Module) -> dict[str, Tensor]:
    """The weights of the linear layers of an original, which must be those of ``model`` in name and shape."""
    source = near(directory, name)
    other = load(source).module
    assert other is not None
    fold_branches(other)
    beside = branch_names(model)
    mine = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in beside}
    theirs = dict(other.named_modules())
    weights = {}
    for name, layer in mine.items():
        found = theirs.get(name)
        if not isinstance(found, nn.Linear) or found.weight.shape != layer.weight.shape:
            raise SourceError(
                f"{source}: has no linear layer '{name}' {list(layer.weight.shape)}; it is not the original of this model"
            )
        weights[name] = found.weight.detach().float()
    return weights
