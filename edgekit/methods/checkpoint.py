"""A training's state in one file, replaced in one step: a machine that dies leaves the last whole one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import CheckFailed, SourceError, UsageError

VERSION = 1


def write(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes ``state`` with the ``settings`` that it belongs to. Raises CheckFailed when it cannot be written."""
    part = path.with_name(f"{path.name}.partial")
    try:
        with part.open("wb") as file:
            torch.save({"version": VERSION, "settings": json.dumps(settings), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk in a RuntimeError
        raise CheckFailed(
            f"{path}: the checkpoint cannot be written ({' '.join(str(error).split())[:120]}); make room, the last one is whole"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state in ``path``. Raises SourceError for a damaged file, UsageError when it is one of other settings."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version, stored, state = found["version"], json.loads(found["settings"]), found["state"]
    # torch raises whatever its unpickler meets
    except Exception as error:
        raise SourceError(
            f"{path}: not a checkpoint, or damaged ({type(error).__name__}); --force begins anew"
        ) from error
    if version != VERSION:
        raise SourceError(
            f"{path}: a checkpoint of version {version}, this edgekit reads {VERSION}; --force begins anew"
        )
    for key, (now, then) in _differing(_flat(json.loads(json.dumps(settings))), _flat(stored)).items():
        raise UsageError(
            f"{path}: {key} is {now} now and was {then}; resume with the settings that it began with, or --force begins anew"
        )
    return dict(state)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: value}


def _differing(now: dict[str, Any], then: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys((*now, *then))
    return {key: (now.get(key), then.get(key)) for key in keys if now.get(key) != then.get(key)}
