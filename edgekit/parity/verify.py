"""Verification: hashes, parity, accuracy, and the first diverging layer when parity fails."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.metrics import LOWER, UPPER, judge
from edgekit.parity.bisect import bisect
from edgekit.parity.corpus import text_perplexity
from edgekit.parity.measure import COMPRESSED, ORIGINAL, Measured, measure
from edgekit.parity.original import Original
from edgekit.parity.report import Report, Section
from edgekit.recipe import Limits, Recipe
from edgekit.runtime.kernels import describe, kernels
from edgekit.runtime.session import onnxruntime

LOCAL = "local"

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of that is done, 0 to 1."""


def verify(
    bundle: Bundle | Path | str,
    *,
    targets: Sequence[str] = (LOCAL,),
    threads: int = 1,
    original: str | None = None,
    text: Path | None = None,
    progress: Progress = lambda what, share: None,
) -> Report:
    """Replays a bundle's golden vectors and compares them with what the PyTorch models answered.

    *Parity* is against the compressed PyTorch model, *accuracy* against the original; limits are the recipe's. Needs no
    PyTorch unless ``original`` names the model to compute its answers (and, with ``text``, its perplexity) afresh.
    ``text`` is a text of the user's to compute perplexity over.

    A missed limit is in the report and not an error. Raises BundleError for a damaged bundle or one that ONNX Runtime
    refuses, UsageError and UnsupportedError for what cannot be asked of it.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = _only_local(targets)
    progress("check hashes", 0.0)
    opened.check_hashes()
    recipe = Recipe.from_dict(opened.manifest.recipe)
    model = Original(opened, original) if original is not None else None
    loaded = opened.vectors()
    vectors = [arrays for _, arrays in loaded] if model is None else model.answers([arrays for _, arrays in loaded])
    progress("replay golden vectors", 0.0)
    margins = {COMPRESSED: recipe.parity.margin, ORIGINAL: recipe.accuracy.margin}
    found = measure(opened, vectors, threads, margins)
    parity = _section("compressed PyTorch model", found[COMPRESSED], recipe.parity)
    accuracy = _section("original model", found[ORIGINAL], recipe.accuracy)
    if not parity.passed:
        progress("look for the first diverging layer", 0.0)
    return Report(
        bundle=str(opened.directory),
        target=target,
        threads=threads,
        kernel=describe(kernels(opened, threads)),
        inputs=tuple(info.kind for info, _ in loaded),
        parity=parity,
        accuracy=accuracy,
        layers=() if parity.passed else bisect(opened, vectors, threads, parity.outputs),
        text=text_perplexity(opened, text, threads, model, progress) if text is not None else None,
        versions={
            "onnxruntime": onnxruntime().__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )


def _only_local(targets: Sequence[str]) -> str:
    if len(targets) != 1:
        raise UsageError(f"targets: {len(targets)} given; verify one target at a time")
    if targets[0] != LOCAL:
        raise UnsupportedError(f"target {targets[0]!r}: this edgekit verifies on 'local' only")
    return targets[0]


def _section(against: str, measured: Measured, limits: Limits) -> Section:
    known = (*UPPER, *LOWER)
    details = {name: value for name, value in measured.metrics.items() if name not in known}
    return Section(
        against=against,
        count=measured.count,
        unit=measured.unit,
        checks=judge(measured.metrics, limits),
        details=details,
        outputs=measured.outputs,
    )
