"""What an interrupted compression without training has done: a file for each finished block, in a directory that goes away."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.low_rank import PARTS, attach, side_layers, side_names
from edgekit.methods import checkpoint

Rows = list[dict[str, Any]]


class FinishedBlocks:
    """Blocks of a model as an earlier run left them.

    ``directory`` may be missing; it is made with the first block. Without ``resume`` what is in it is forgotten. ``belongs`` says
    what the blocks belong to: source, settings and examples. Raises UsageError when a training left its checkpoint there.
    """

    def __init__(self, directory: Path, belongs: Mapping[str, Any], resume: bool) -> None:
        if resume and directory.is_file():
            raise UsageError(
                f"{directory}: of a training; resume with the method that it began with, or --force begins anew"
            )
        if not resume:
            forget(directory)
        self._directory, self._belongs = directory, belongs

    @torch.no_grad()
    def restore(self, model: nn.Module, block: str) -> Rows | None:
        """Makes a block what it became, and gives its rows of the report; None when it was not finished.

        Raises SourceError for a damaged file, UsageError for one of other settings.
        """
        path = self._path(block)
        if not path.is_file():
            return None
        state = checkpoint.read(path, self._belongs)
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
            prefix + name: {part: inner.weight for part in PARTS if (inner := getattr(layer, part)) is not None}
            for name, layer in side_layers(inside).items()
        }  # the A that layers share is one object, and one it is when it is read
        left = {prefix + name for name in side_names(inside)}
        weights = {
            prefix + name: layer.weight.detach()
            for name, layer in inside.named_modules()
            if isinstance(layer, nn.Linear) and prefix + name not in left
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        checkpoint.write(self._path(block), {"weights": weights, "beside": beside, "rows": rows}, self._belongs)

    def _path(self, block: str) -> Path:
        return self._directory / (block or "model")


def forget(path: Path) -> None:
    """Removes a checkpoint: a training's file, or a directory of blocks."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
