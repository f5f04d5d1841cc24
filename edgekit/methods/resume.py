"""What an interrupted compression leaves beside its output, and how the next run goes on from there.

It is one directory: of a training with one for the last step that was kept, as accelerate writes its state, or, of a
method without training, with a file for each block of the model that is through. What is in it appears whole, so that
a machine that dies leaves the last whole one, and says what it belongs to (source, settings, data): a run that differs
in any of them is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from edgekit.errors import CheckFailed, SourceError, UsageError
from edgekit.low_rank import PARTS, attach, branch_names, branched_layers

VERSION = 2
PARTIAL = ".partial"
STEP, RUN = "step-", "run"
"""Of a training: the directory of a step, and the file in it that accelerate knows nothing of."""
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
    if is_kept(path) and not resume and not force:
        raise UsageError(f"{path}: a run was interrupted here; --resume goes on with it, --force begins anew")
    if resume and not is_kept(path):
        raise UsageError(f"{path}: no checkpoint to resume from; leave --resume out")
    return path


def is_kept(path: Path) -> bool:
    """Whether there is a run's state that is whole."""
    return path.is_file() or (path.is_dir() and any(entry.suffix != PARTIAL for entry in path.iterdir()))


def forget_checkpoint(path: Path) -> None:
    """Removes a run's state."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_checkpoint(path: Path, state: Mapping[str, Any], belongs: Mapping[str, Any]) -> None:
    """Writes ``state`` with what it ``belongs`` to. Raises CheckFailed when it cannot be written."""
    part = path.with_name(f"{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"version": VERSION, "settings": json.dumps(belongs), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk in a RuntimeError
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _not_written(path: Path, error: Exception) -> CheckFailed:
    reason = " ".join(str(error).split())[:120]
    return CheckFailed(f"{path}: the checkpoint cannot be written ({reason}); make room, the last one is whole")


def read_checkpoint(path: Path, belongs: Mapping[str, Any]) -> dict[str, Any]:
    """The state in ``path``. Raises SourceError for a damaged file, UsageError when it belongs to something else."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        version, then, state = stored["version"], json.loads(stored["settings"]), stored["state"]
    # torch raises whatever its unpickler meets
    except Exception as error:
        raise _damaged(path, type(error).__name__) from error
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


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(f"{path}: not a checkpoint, or damaged ({what}); --force begins anew")


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, and what that ``belongs`` to."""

    path: Path
    belongs: Mapping[str, Any]

    def write(self, engine: Accelerator, state: Mapping[str, Any], place: Mapping[str, Any]) -> None:
        """All processes write what accelerate keeps, the main one ``state`` of the step ``state["step"]`` beside it.

        ``place``: where it is trained, which a checkpoint belongs to as well. Raises CheckFailed when it cannot be
        written.
        """
        target = self.path / f"{STEP}{state['step']}"
        part = target.with_suffix(PARTIAL)
        try:
            engine.save_state(str(part))
            engine.wait_for_everyone()
            if engine.is_main_process:
                write_checkpoint(part / RUN, {**state, "random": _random()}, {**self.belongs, **place})
                for file in part.iterdir():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
                part.rename(target)
                for other in set(self.path.iterdir()) - {target}:
                    shutil.rmtree(other, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _not_written(self.path, error) from error
        finally:
            if engine.is_main_process:
                shutil.rmtree(part, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # where nothing was kept

    def read(self, place: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The last step's directory and ``state``, with what :func:`load_state` takes as "random". Raises SourceError,
        UsageError.
        """
        steps = [path for path in self.path.glob(f"{STEP}*") if path.suffix != PARTIAL]
        if not steps:
            raise _damaged(self.path, "no step of a training")
        last = max(steps, key=lambda path: int(path.name.removeprefix(STEP)))
        return last, read_checkpoint(last / RUN, {**self.belongs, **place})


def load_state(engine: Accelerator, directory: Path, random: int) -> None:
    """Model, optimizer and random numbers as they were. Raises SourceError for a damaged directory."""
    try:
        engine.load_state(str(directory))
    except Exception as error:  # of as many kinds as there are files and libraries
        raise _damaged(directory, type(error).__name__) from error
    if engine.is_main_process and _random() != random:  # accelerate goes on without them
        raise _damaged(directory, "random numbers")


def _random() -> int:
    return zlib.crc32(torch.get_rng_state().numpy().data)


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
        if resume and any(directory.glob(f"{STEP}*")):
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
