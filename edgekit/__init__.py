"""edgekit: from a trained PyTorch model to a verified model on a device.

The names below are the library; everything else is its inside. Importing the package loads neither torch nor
onnxruntime: each name is fetched when it is first used. Errors are in ``edgekit.errors``, all of them EdgekitError.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.benchmark import BenchResult as BenchResult
    from edgekit.benchmark import bench as bench
    from edgekit.bundle import Bundle as Bundle
    from edgekit.bundle import BundleLike as BundleLike
    from edgekit.coding import Packed as Packed
    from edgekit.coding import pack as pack
    from edgekit.coding import unpack as unpack
    from edgekit.compression import Compressed as Compressed
    from edgekit.compression import Compression as Compression
    from edgekit.compression import compress as compress
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.evaluation import Evaluation as Evaluation
    from edgekit.evaluation import evaluate as evaluate
    from edgekit.exporter import export as export
    from edgekit.inspection import Inspection as Inspection
    from edgekit.inspection import inspect as inspect
    from edgekit.parity import Comparison as Comparison
    from edgekit.parity import Report as Report
    from edgekit.parity import verify as verify
    from edgekit.parity import verify_on as verify_on
    from edgekit.recipe import Limits as Limits
    from edgekit.recipe import Recipe as Recipe
    from edgekit.recipe import Rule as Rule
    from edgekit.runtime.decoder import Decoder as Decoder
    from edgekit.runtime.generation import Generation as Generation
    from edgekit.runtime.generation import generate as generate
    from edgekit.runtime.sampling import Sampling as Sampling
    from edgekit.runtime.session import Session as Session

__version__ = "0.1.0"

_NAMES = {
    "benchmark": ("BenchResult", "bench"),
    "bundle": ("Bundle", "BundleLike"),
    "coding": ("Packed", "pack", "unpack"),
    "compression": ("Compressed", "Compression", "compress"),
    "errors": ("EdgekitError",),
    "evaluation": ("Evaluation", "evaluate"),
    "exporter": ("export",),
    "inspection": ("Inspection", "inspect"),
    "parity": ("Comparison", "Report", "verify", "verify_on"),
    "recipe": ("Limits", "Recipe", "Rule"),
    "runtime.decoder": ("Decoder",),
    "runtime.generation": ("Generation", "generate"),
    "runtime.sampling": ("Sampling",),
    "runtime.session": ("Session",),
}
"""By module of the package."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgekit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
