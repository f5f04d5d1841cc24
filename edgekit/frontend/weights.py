"""Pickled weights, read so that nothing in them can run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from edgekit.errors import SourceError, UnsupportedError

# weights_only=True itself could be made to run code up to 2.9.1 (CVE-2025-32434, CVE-2026-24747).
_FIRST_SAFE_TORCH = (2, 10)


def unpickled(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of pickled state dicts, by ``torch.load(weights_only=True)`` and nothing else.

    Raises:
        SourceError: a file holds anything but named tensors, or is damaged.
        UnsupportedError: the installed torch is older than 2.10.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _FIRST_SAFE_TORCH:
        raise UnsupportedError(
            f"torch {torch.__version__}: reading pickles is not safe before 2.10; upgrade torch or use safetensors"
        )
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(_one(file))
    return state


def _one(file: Path) -> dict[str, torch.Tensor]:
    is_zip = zipfile.is_zipfile(file)
    if is_zip and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()):
        raise SourceError(f"{file}: a TorchScript archive, not a state dict; save module.state_dict() as safetensors")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    # Never a second try without weights_only: an error here is how an attack looks.
    except Exception as error:
        raise SourceError(
            f"{file}: holds more than tensors, or is damaged (torch.load(weights_only=True): {type(error).__name__}); "
            "edgekit never opens such a pickle; save module.state_dict() as safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
        raise SourceError(
            f"{file}: holds a {type(loaded).__name__} that is no table of named tensors; save module.state_dict()"
        )
    return dict(loaded)
