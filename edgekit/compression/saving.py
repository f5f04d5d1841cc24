"""Where the result goes: a model directory that appears whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_model

from edgekit.errors import CheckFailed, UsageError
from edgekit.frontend.huggingface import quiet
from edgekit.frontend.pooling import TextEncoder, sentence_modules
from edgekit.frontend.source import ModuleSource
from edgekit.low_rank import take_branches, write_branches
from edgekit.methods import bitnet_checkpoint
from edgekit.methods.bitnet import BitLinear
from edgekit.recipe import Recipe

REPORT = "compress.json"
RECIPE = "recipe.yaml"
WEIGHTS = "model.safetensors"


def check_output(output: Path, force: bool) -> None:
    """Raises UsageError where something would be overwritten unasked."""
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / REPORT).is_file())):
        raise UsageError(f"{output}: is there and no model that edgekit compress made; give -o another directory")
    if (output / REPORT).is_file() and not force:
        raise UsageError(f"{output}: a compressed model is there already; --force replaces it")


def write(
    source: ModuleSource, report: dict[str, Any], output: Path, recipe: Recipe | None = None, form: str = "online"
) -> None:
    """The model's directory, made as a hidden sibling and renamed; with the recipe that stores it, where it has its
    own.

    ``form``: how ternary layers are stored (edgekit.methods.bitnet_checkpoint).
    """
    target = Path(output).absolute()
    part, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(part, ignore_errors=True)
    _put_back(old, target)  # a process may have died between the two renames
    try:
        part.mkdir()
        _save(source, part, form)
        if recipe is not None:
            (part / RECIPE).write_text(yaml.safe_dump(_plain(recipe), sort_keys=False), encoding="utf-8")
        (part / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if target.exists():
            target.rename(old)
        part.rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:120]
        raise CheckFailed(f"{output}: cannot be written ({reason}); make room or give another -o") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _put_back(old, target)


def _put_back(old: Path, target: Path) -> None:
    """An earlier result that was moved aside returns where no new one came, and is removed where one did."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _plain(recipe: Recipe) -> Any:
    return json.loads(json.dumps(recipe.to_dict()))  # YAML without tuples


def _save(source: ModuleSource, directory: Path, form: str) -> None:
    """Weights as safetensors; a Hugging Face model as transformers saves it, with its tokenizer and pooling."""
    model: Any = source.module
    inner: Any = model.model if isinstance(model, TextEncoder) else model
    branches = take_branches(inner)
    if source.kind == "factory":
        write_branches(*branches, directory)
        save_model(model, str(directory / WEIGHTS))
        return
    modules = sentence_modules(source.directory) if source.directory is not None else []
    files = directory / modules[0][1] if modules else directory
    with quiet():
        if any(isinstance(module, BitLinear) for module in inner.modules()):
            bitnet_checkpoint.save(inner, files, form)
        else:
            inner.save_pretrained(files)
    write_branches(*branches, files)
    for asset in source.assets:
        if asset.name != "config.json":  # saved with the model, as it is now
            shutil.copyfile(asset, files / asset.name)
    for name in ("modules.json", *(f"{path}/config.json" for _, path in modules[1:])):
        given = source.directory / name if modules and source.directory is not None else None
        if given is not None and given.is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(given, directory / name)
