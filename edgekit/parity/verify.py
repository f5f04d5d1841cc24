"""Verification: hashes, parity, accuracy, and the first diverging layer when parity fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.devices import LOCAL, Target, open_connection
from edgekit.errors import UsageError
from edgekit.metrics import LOWER, UPPER, judge
from edgekit.parity.bisect import bisect
from edgekit.parity.corpus import text_perplexity
from edgekit.parity.measure import Measured, measure
from edgekit.parity.original import Original
from edgekit.parity.place import COMPRESSED, ORIGINAL, Here, OnDevice, Place
from edgekit.parity.report import Report, Section
from edgekit.recipe import Limits, Recipe

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
    ``text`` is a text of the user's to compute perplexity over. ``targets`` holds one target, ``local`` or
    ``ssh:[user@]host[:port]``; a device gets the bundle, and its answers are compared here.

    A missed limit is in the report and not an error. Raises BundleError for a damaged bundle or one that ONNX Runtime
    refuses, UsageError and UnsupportedError for what cannot be asked of it, RuntimeUnavailable for a device that is out of
    reach or not set up.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = _single(targets)
    if target.kind != LOCAL and (original is not None or text is not None):
        raise UsageError(f"target {target.text}: --original and --text are for 'local' only; leave them out")
    progress("check hashes", 0.0)
    opened.check_hashes()
    recipe = Recipe.from_dict(opened.manifest.recipe)
    model = Original(opened, original) if original is not None else None
    loaded = opened.vectors()
    vectors = [arrays for _, arrays in loaded] if model is None else model.answers([arrays for _, arrays in loaded])
    with contextlib.ExitStack() as stack:
        place: Place
        if target.kind == LOCAL:
            place = Here(opened, threads)
        else:
            place = OnDevice(stack.enter_context(open_connection(target)), opened, threads, progress)
        progress("replay golden vectors", 0.0)
        margins = {COMPRESSED: recipe.parity.margin, ORIGINAL: recipe.accuracy.margin}
        found = measure(opened, vectors, place.answers(vectors), margins)
        parity = _section("compressed PyTorch model", found[COMPRESSED], recipe.parity)
        accuracy = _section("original model", found[ORIGINAL], recipe.accuracy)
        if not parity.passed:
            progress("look for the first diverging layer", 0.0)
        layers = () if parity.passed else bisect(opened, vectors, place, parity.outputs)
        kernel, versions = place.kernel(), place.versions
    return Report(
        bundle=str(opened.directory),
        target=target.text,
        threads=threads,
        kernel=kernel,
        inputs=tuple(info.kind for info, _ in loaded),
        parity=parity,
        accuracy=accuracy,
        layers=layers,
        text=text_perplexity(opened, text, threads, model, progress) if text is not None else None,
        versions=versions,
    )


def _single(targets: Sequence[str]) -> Target:
    if len(targets) != 1:
        raise UsageError(f"targets: {len(targets)} given; verify one target at a time")
    return Target.parse(targets[0])


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
