"""Verification: hashes, parity, accuracy, and the first diverging layer when parity fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bundle import Bundle, BundleLike
from edgekit.devices import LOCAL, Target
from edgekit.devices.backend import open_backend
from edgekit.errors import BundleError, UsageError
from edgekit.metrics import LOWER, UPPER, Arrays, judge
from edgekit.parity.bisect import bisect
from edgekit.parity.corpus import text_perplexity
from edgekit.parity.labels import label_accuracy, open_labelled
from edgekit.parity.measure import Distances, measure
from edgekit.parity.original import Original
from edgekit.parity.replayer import COMPRESSED, ORIGINAL, Replayer
from edgekit.parity.report import LayerDistance, Report, Section
from edgekit.recipe import Limits, Recipe
from edgekit.spec.progress import Progress


def verify(
    bundle: BundleLike,
    *,
    target: str = LOCAL,
    threads: int = 1,
    original: str | Path | None = None,
    text: str | Path | None = None,
    labels: str | Path | None = None,
    progress: Progress = lambda what, share: None,
) -> Report:
    """Replays a bundle's golden vectors and compares them with what the PyTorch models answered.

    *Parity* is against the compressed PyTorch model, *accuracy* against the original; limits are the recipe's. Needs no
    PyTorch unless ``original`` names the model to compute its answers (and, with ``text``, its perplexity) afresh.
    ``text`` is a text of the user's to compute perplexity over; ``labels`` an .npz or a directory of class folders
    (edgekit.parity.labels) to score a classifier on, and ``original`` beside it. ``target`` is ``local``,
    ``ssh:[user@]host[:port]`` or ``adb:SERIAL``; a device gets the bundle, and its answers are compared here.

    A missed limit is in the report and not an error. Raises BundleError for a damaged bundle or one that ONNX Runtime
    refuses, UsageError and UnsupportedError for what cannot be asked of it, RuntimeUnavailable for a device that is out
    of reach or not set up.
    """
    opened, chosen = Bundle.open(bundle), Target.parse(target)
    if chosen.kind != LOCAL and any(option is not None for option in (original, text, labels)):
        raise UsageError(f"target {target}: --original, --text and --labels are for 'local' only; leave them out")
    decoder = opened.manifest.decoder
    if (opened.encoder is not None and original is not None) or (decoder and decoder.encoder and text is not None):
        raise UsageError(
            f"{opened.directory}: --original and --text are not for models with an encoder; leave them out"
        )
    progress("check hashes", 0.0)
    opened.check_hashes()
    labelled = None if labels is None else open_labelled(opened, Path(labels))
    model = Original(opened, str(original)) if original is not None else None
    golden = Golden.of(opened, model)
    with open_backend(chosen, opened, progress) as backend:
        report, _ = judge_backend(golden, chosen, Replayer(backend, threads), threads, progress)
    if opened.encoder is not None:
        own = verify(opened.encoder, target=target, threads=threads, progress=progress)
        report = replace(report, encoder=own)
    if text is not None:
        report = replace(report, text=text_perplexity(opened, Path(text), threads, model, progress))
    if labelled is not None:
        report = replace(report, labels=label_accuracy(opened, labelled, threads, model, progress))
    return report


@dataclass(frozen=True)
class Golden:
    """A bundle's golden vectors, and what its recipe demands of the answers to them."""

    bundle: Bundle
    recipe: Recipe
    kinds: tuple[str, ...]
    vectors: tuple[Arrays, ...]
    original: str  # the model whose answers they hold

    @staticmethod
    def of(bundle: Bundle, model: Original | None = None) -> Golden:
        """The vectors as they are, or with ``model``'s answers computed afresh. Raises BundleError where none are."""
        loaded = bundle.vectors()
        if not loaded:
            raise BundleError(f"{bundle.directory}: no golden vectors; export again with this edgekit")
        arrays, kinds = [vector for _, vector in loaded], tuple(info.kind for info, _ in loaded)
        vectors = arrays if model is None else model.answers(arrays)
        source = bundle.manifest.source if model is None else model.source
        return Golden(bundle, Recipe.from_dict(bundle.manifest.recipe), kinds, tuple(vectors), source)


def judge_backend(
    golden: Golden, target: Target, replayer: Replayer, threads: int, progress: Progress
) -> tuple[Report, list[Arrays]]:
    """What a backend answers to the vectors, and how that compares with both PyTorch models."""
    bundle, recipe = golden.bundle, golden.recipe
    progress("replay golden vectors", 0.0)
    answers = replayer.answers(golden.vectors)
    margins = {COMPRESSED: recipe.parity.margin, ORIGINAL: recipe.accuracy.margin}
    distances = measure(bundle, golden.vectors, answers, margins)
    parity = section("compressed PyTorch model", distances[COMPRESSED], recipe.parity)
    accuracy = section(f"original model {golden.original}", distances[ORIGINAL], recipe.accuracy)
    layers: tuple[LayerDistance, ...] = ()
    if not parity.passed:
        progress("look for the first diverging layer", 0.0)
        layers = bisect(golden.vectors, replayer, parity.outputs)
    report = Report(
        bundle=str(bundle.directory), target=target.text, threads=threads, kernel=replayer.kernel, inputs=golden.kinds,
        parity=parity, accuracy=accuracy, layers=layers, versions=replayer.versions,
    )  # fmt: skip
    return report, answers


def section(against: str, measured: Distances, limits: Limits) -> Section:
    """A comparison judged by ``limits``."""
    details = {name: value for name, value in measured.metrics.items() if name not in (*UPPER, *LOWER)}
    checks = judge(measured.metrics, limits)
    return Section(against, measured.count, measured.unit, checks, details, measured.outputs)
