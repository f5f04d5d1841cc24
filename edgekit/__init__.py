"""edgekit: from a compressed PyTorch model to a verified model on a device.

The names below are the library; everything else is its inside. Importing the package loads neither torch nor
onnxruntime: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.benchmark import bench
    from edgekit.bundle import Bundle
    from edgekit.errors import EdgekitError
    from edgekit.exporter import export
    from edgekit.parity import verify
    from edgekit.recipe import Recipe, Rule
    from edgekit.runtime.decoder import Decoder
    from edgekit.runtime.generation import generate
    from edgekit.runtime.session import Session

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "edgekit.bundle",
    "Decoder": "edgekit.runtime.decoder",
    "EdgekitError": "edgekit.errors",
    "Recipe": "edgekit.recipe",
    "Rule": "edgekit.recipe",
    "Session": "edgekit.runtime.session",
    "bench": "edgekit.benchmark",
    "export": "edgekit.exporter",
    "generate": "edgekit.runtime.generation",
    "verify": "edgekit.parity",
}

__all__ = [
    "Bundle",
    "Decoder",
    "EdgekitError",
    "Recipe",
    "Rule",
    "Session",
    "__version__",
    "bench",
    "export",
    "generate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
