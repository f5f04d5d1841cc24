"""What an interrupted compression leaves beside its output, and how the next run goes on from there.

It is one path: a training's whole state in a file, or, of a method without training, a directory with a file for each
block of the model that is through. Every file is replaced in one step, so that a machine that dies leaves the last
whole one, and says what it belongs to (source, settings, data): a run that differs in any of them is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import CheckFailed, SourceError, UsageError
from edgekit.low_rank import PARTS, attach, branch_names, branched_layers

VERSION = 1
Rows = list[dict[str, Any]]


def checkpoint_path(output: Path) -> Path:
    """Where a run that makes ``output`` keeps its state."""
    target = output.absolute()
    return target.with_name(f".{target.name}.checkpoint")


def claim_checkpoint(output: Path, resume: bool, force: bool) -> Path:
    """The path of a run's state, its directory made. Raises UsageError where state would be lost, or is missing."""
    path = checkpoint_path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made ({error.strerror}); give -o a place that can be written") from error
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{output}: cannot be made ({path.parent} is read-only); give -o a place that can be written")
    if path.exists() and not resume and not force:
        raise UsageError(f"{path}: a run was interrupted here; --resume goes on with it, --force begins anew")
    if resume and not path.exists():
        raise UsageError(f"{path}: no checkpoint to resume from; leave --resume out")
    return path


def forget_checkpoint(path: Path) -> None:
    """Removes a run's state: a training's file, or a directory of blocks."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_checkpoint(path: Path, state: Mapping[str, Any], belongs: Mapping[str, Any]) -> None:
    """Writes ``state`` with what it ``belongs`` to. Raises CheckFailed when it cannot be written."""
    part = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"version": VERSION, "settings": json.dumps(belongs), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk in a RuntimeError
        raise CheckFailed(
            f"{path}: the checkpoint cannot be written ({' '.join(str(error).split())[:120]}); make room, the last "
            "one is whole"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read_checkpoint(path: Path, belongs: Mapping[str, Any]) -> dict[str, Any]:
    """The state in ``path``. Raises SourceError for a damaged file, UsageError when it belongs to something else."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        version, then, state = stored["version"], json.loads(stored["settings"]), stored["state"]
    # torch raises whatever its unpickler meets
    except Exception as error:
        raise SourceError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}); --force begins anew"
        ) from error
    if version != VERSION:
        raise SourceError(
            f"{path}: a checkpoint of version {version}, this edgekit reads {VERSION}; --force begins anew"
        )
    before, now = _flat(then), _flat(json.loads(json.dumps(belongs)))
    for key in dict.fromkeys((*now, *before)):
        if now.get(key) != before.get(key):
            raise UsageError(
                f"{path}: {key} is {now.get(key)} now and was {before.get(key)}; resume with the settings that it "
                "began with, or --force begins anew"
            )
    return dict(state)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: value}


class FinishedBlocks:
    """Blocks of a model as an earlier run left them.

    ``directory`` may be missing; it is made with the first block. Without ``resume`` what is in it is forgotten.
    ``belongs`` says what the blocks belong to: source, settings and examples. Raises UsageError when a training left
    its checkpoint there.
    """

    def __init__(self, directory: Path, belongs: Mapping[str, Any], resume: bool) -> None:
        if resume and directory.is_file():
            raise UsageError(
                f"{directory}: of a training; resume with the method that it began with, or --force begins anew"
            )
        if not resume:
            forget_checkpoint(directory)
        self._directory, self._belongs = directory, belongs

    @torch.no_grad()
    def restore(self, model: nn.Module, block: str) -> Rows | None:
        """Makes a block what it became, and gives its rows of the report; None when it was not finished.

        Raises SourceError for a damaged file, UsageError for one of other settings.
        """
        path = self._path(block)
        if not path.is_file():
            return None
        state = read_checkpoint(path, self._belongs)
        for name, weight in state["weights"].items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(weight)
        for name, parts in state["beside"].items():
            attach(model, name, parts)
        return list(state["rows"])

    def keep(self, model: nn.Module, block: str, rows: Rows) -> None:
        """Writes what became of a block."""
        inside = model.get_submodule(block)
        prefix = f"{block}." if block else ""
        beside = {
            prefix + name: {part: branch.weight for part in PARTS if (branch := getattr(layer, part)) is not None}
            for name, layer in branched_layers(inside).items()
        }  # the A that layers share is one object, and one it is when it is read
        branches = branch_names(inside)
        weights = {
            prefix + name: layer.weight.detach()
            for name, layer in inside.named_modules()
            if isinstance(layer, nn.Linear) and name not in branches
        }
        write_checkpoint(self._path(block), {"weights": weights, "beside": beside, "rows": rows}, self._belongs)

    def _path(self, block: str) -> Path:
        return self._directory / (block or "model")
