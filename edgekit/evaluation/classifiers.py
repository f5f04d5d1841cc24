"""Classifiers on the same labelled samples: bundles, and the PyTorch models beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle, BundleLike
from edgekit.errors import UsageError
from edgekit.inspection import inspect
from edgekit.parity.labels import Classify, LabelScore, classifier, open_labelled, places, score
from edgekit.parity.original import Original
from edgekit.spec.names import MANIFEST
from edgekit.spec.progress import Progress

Facts = tuple[str, str, int, float | None]
"""Name, method, bytes, bits per weight."""


def score_classifiers(
    models: Sequence[BundleLike], files: Sequence[str | Path], threads: int, progress: Progress
) -> list[tuple[Facts, tuple[LabelScore, ...]]]:
    """A score for each model and file; those after the first model hold the difference from it.

    A PyTorch model reads its samples as the first bundle does. Raises UsageError where there is no bundle, and as
    ``open_labelled``.
    """
    bundles = {i: Bundle.open(m) for i, m in enumerate(models) if is_bundle(m)}
    if not bundles:
        raise UsageError("evaluate: labels without a bundle among the models; a bundle says how samples are read")
    guide = next(iter(bundles.values()))
    results: list[tuple[Facts, tuple[LabelScore, ...]]] = []
    first: Sequence[np.ndarray | None] = ()
    for index, model in enumerate(models):
        bundle = bundles.get(index, guide)
        data = [open_labelled(bundle, Path(file)) for file in files]
        progress(f"load {bundle.directory if index in bundles else model}", 0.0)
        facts, classify = _bundle(bundle, threads) if index in bundles else _module(guide, str(model))
        ranks = [places(one, classify, progress, facts[0]) for one in data]
        results.append((facts, tuple(map(score, data, ranks, first or [None for _ in data]))))
        first = first or ranks
    return results


def is_bundle(model: BundleLike) -> bool:
    """It is opened, or a directory with a manifest."""
    return isinstance(model, Bundle) or (Path(model) / MANIFEST).is_file()


def _bundle(bundle: Bundle, threads: int) -> tuple[Facts, Classify]:
    name, method = bundle.directory.name or str(bundle.directory), str(bundle.manifest.recipe.get("name") or "")
    return (name, method, bundle.model_bytes, inspect(bundle).bits_per_weight), classifier(bundle, threads)


def _module(guide: Bundle, model: str) -> tuple[Facts, Classify]:
    original = Original(guide, model)
    return (original.name, "PyTorch", original.bytes, None), original.logits
