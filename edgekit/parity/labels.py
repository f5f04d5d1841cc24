"""Accuracy of classifiers against labels: data that says which class each sample is of, and how often a model agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, CheckFailed, UnsupportedError, UsageError
from edgekit.frontend.samples import COLOURS, IMAGE_SUFFIXES, arrays, misfit, pictures
from edgekit.frontend.source import ModelInput
from edgekit.parity.original import Original
from edgekit.runtime.session import Session
from edgekit.spec.names import LABELS
from edgekit.spec.progress import Progress
from edgekit.spec.records import TensorInfo
from edgekit.strict import read_json, suggest

BATCH = 32
DTYPES = {"float": "float32", "double": "float64"}  # ONNX's names where numpy has others

Feeds = Mapping[str, np.ndarray]
Classify = Callable[[Feeds, str], np.ndarray]
"""A batch's logits float [n, classes], the graph output of the given name."""


@dataclass(frozen=True)
class LabelScore:
    """How often a model's likeliest class is the label, and for more than five classes how often it is among the five.

    ``error`` is the standard error of ``top1``. ``difference`` is top1 less that of the model compared with, over the
    same samples; ``difference_error`` its standard error, ``gained`` and ``lost`` the samples that only one has right.
    """

    file: str
    samples: int
    top1: float
    error: float
    top5: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    gained: int | None = None
    lost: int | None = None


@dataclass(frozen=True)
class LabelAccuracy:
    """Of a bundle, and of the original where it was given; ``order`` says how classes got their numbers."""

    order: str
    bundle: LabelScore
    original: LabelScore | None = None


@dataclass(frozen=True)
class LabelledData:
    """Samples as a bundle takes them, and the class of each. ``order`` says how classes got their numbers."""

    file: str
    labels: np.ndarray  # int64 [n]
    output: str  # the graph output that holds the logits
    classes: int
    order: str
    step: int  # samples at a time
    read: Callable[[int, int], Feeds]  # the inputs of samples first to last

    def batches(self, progress: Progress, what: str) -> Iterator[Feeds]:
        """The inputs in order. Raises SourceError for a picture that cannot be read."""
        for start in range(0, len(self.labels), self.step):
            progress(f"{what}: {self.file}", start / len(self.labels))
            yield self.read(start, min(start + self.step, len(self.labels)))


def open_labelled(bundle: Bundle, path: Path) -> LabelledData:
    """An .npz with ``labels`` and the model's inputs, or a directory with a folder of pictures for each class.

    Raises UsageError, naming what does not fit, UnsupportedError for a bundle that is no classifier.
    """
    output, classes = _logits(bundle)
    if not path.is_dir() and path.suffix.lower() != ".npz":
        raise UsageError(
            f"{path}: no .npz and no directory; --labels takes an .npz with '{LABELS}', or a directory of class folders"
        )
    fixed = [int(i.dims[0]) for i in bundle.manifest.inputs if i.dims and isinstance(i.dims[0], int)]
    data = (_pictures if path.is_dir() else _arrays)(bundle, path, output, classes, (*fixed, BATCH)[0])
    if fixed and len(data.labels) % data.step:
        raise UsageError(
            f"{path}: {len(data.labels)} samples are no whole batches of {data.step}, which the graph takes at a time"
        )
    return data


def places(data: LabelledData, classify: Classify, progress: Progress, what: str) -> np.ndarray:
    """The place of each sample's label among a model's classes, likeliest first: int64 [n], 0 being right.

    Raises CheckFailed for logits that are not finite.
    """
    ranks: list[np.ndarray] = []
    for feeds in data.batches(progress, what):
        logits = classify(feeds, data.output)
        done = sum(map(len, ranks))
        labels = data.labels[done : done + len(logits)]
        if not np.isfinite(logits).all():
            raise CheckFailed(f"{what}: its logits on {data.file} are not finite; check it with edgekit verify")
        own = np.take_along_axis(logits, labels[:, None], 1)
        earlier = np.arange(logits.shape[1]) < labels[:, None]  # of equals the first counts, as argmax has it
        ranks.append(((logits > own) | ((logits == own) & earlier)).sum(1))
    return np.concatenate(ranks)


def score(data: LabelledData, places: np.ndarray, reference: np.ndarray | None = None) -> LabelScore:
    """Accuracy from the ``places`` of labels, and the difference from a ``reference`` model's on the same samples."""
    hits, count = places == 0, len(places)
    top1 = float(hits.mean())
    top5 = float((places < 5).mean()) if data.classes > 5 else None
    alone = LabelScore(data.file, count, top1, math.sqrt(top1 * (1 - top1) / count), top5)
    if reference is None:
        return alone
    change = hits.astype(np.int64) - (reference == 0)
    return replace(
        alone, difference=float(change.mean()), difference_error=float(change.std() / math.sqrt(count)),
        gained=int((change > 0).sum()), lost=int((change < 0).sum()),
    )  # fmt: skip


def label_accuracy(
    bundle: Bundle, data: LabelledData, threads: int, original: Original | None, progress: Progress
) -> LabelAccuracy:
    """A bundle's accuracy on this machine, beside the original's where it is given."""
    reference = None if original is None else places(data, original.logits, progress, "original")
    ours = places(data, classifier(bundle, threads), progress, bundle.directory.name)
    theirs = None if reference is None else score(data, reference)
    return LabelAccuracy(data.order, score(data, ours, reference), theirs)


def classifier(bundle: Bundle, threads: int) -> Classify:
    """A bundle on this machine."""
    session = Session(bundle, threads)
    return lambda feeds, output: session.run(feeds, [output])[output]


def _logits(bundle: Bundle) -> tuple[str, int]:
    """The output with a number for each class, and how many classes there are."""
    outputs = bundle.manifest.outputs
    flat = [o for o in outputs if len(o.dims) == 2 and isinstance(o.dims[1], int) and o.dims[1] > 1]
    named = [o for o in flat if o.name == "logits"] or flat
    if len(named) != 1 or bundle.manifest.task in ("text-generation", "feature-extraction"):
        listed = ", ".join(f"{o.name} {list(o.dims)}" for o in outputs)
        raise UnsupportedError(
            f"{bundle.directory}: {bundle.manifest.task} with outputs {listed[:200]} is no classifier; labels are for models "
            "with one output [n, classes]"
        )
    return named[0].name, int(named[0].dims[1])


def _arrays(bundle: Bundle, path: Path, output: str, classes: int, step: int) -> LabelledData:
    given, inputs = arrays(path), bundle.manifest.inputs
    takes = f"{bundle.directory} takes {', '.join(f'{i.name} {_dtype(i)} {list(i.dims)}' for i in inputs)} and {LABELS}"
    sizes = [tuple(d if isinstance(d, int) else None for d in i.dims) for i in inputs]
    declared = [ModelInput(i.name, _dtype(i), dims) for i, dims in zip(inputs, sizes, strict=True)]
    if problem := misfit(given, [ModelInput(LABELS), *declared]):
        raise UsageError(f"{path}: {problem}; {takes}")
    labels = given[LABELS]
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; a whole number for each sample expected"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            f"{path}: labels go from {labels.min()} to {labels.max()}, the model has classes 0 to {classes - 1}"
        )
    for one in inputs:
        if len(given[one.name]) != len(labels):
            raise UsageError(f"{path}: {len(given[one.name])} of {one.name}, {len(labels)} labels; each sample has one")

    def read(first: int, last: int) -> Feeds:
        return {one.name: given[one.name][first:last] for one in inputs}

    return LabelledData(str(path), labels.astype(np.int64), output, classes, "numbers in the file", step, read)


def _dtype(tensor: TensorInfo) -> str:
    return DTYPES.get(tensor.dtype, tensor.dtype)


def _pictures(bundle: Bundle, path: Path, output: str, classes: int, step: int) -> LabelledData:
    inputs = bundle.manifest.inputs
    dims = inputs[0].dims
    if len(inputs) != 1 or len(dims) != 4 or dims[1] not in COLOURS or not all(isinstance(d, int) for d in dims[1:]):
        listed = ", ".join(f"{i.name} {list(i.dims)}" for i in inputs)
        raise UsageError(
            f"{path}: a directory, but {bundle.directory} takes {listed}; pictures are read for one input "
            f"[n, 1 or 3, height, width], give an .npz with '{LABELS}'"
        )
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UsageError(f"{path}: holds no folders; each class has a folder of its pictures")
    numbers, order = _numbers(bundle, path, [folder.name for folder in folders], classes)
    files: list[Path] = []
    labels: list[int] = []
    for folder, number in zip(folders, numbers, strict=True):
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            raise UsageError(f"{folder}: no pictures ({', '.join(IMAGE_SUFFIXES)}) of this class")
        files += inside
        labels += [number] * len(inside)
    channels, height, width = (int(d) for d in dims[1:])
    settings = bundle.directory if _lists(bundle, "preprocessor_config.json") else None

    def read(first: int, last: int) -> Feeds:
        pixels = pictures(files[first:last], channels, (height, width), settings)
        return {inputs[0].name: pixels.astype(_dtype(inputs[0]))}

    return LabelledData(str(path), np.array(labels, np.int64), output, classes, order, step, read)


def _numbers(bundle: Bundle, path: Path, folders: Sequence[str], classes: int) -> tuple[list[int], str]:
    """The class of each folder, and in words how it was found."""
    if all(name.isascii() and name.isdigit() for name in folders):
        wrong = [name for name in folders if int(name) >= classes]
        if wrong:
            raise UsageError(f"{path}: folder {wrong[0]}, the model has classes 0 to {classes - 1}")
        return [int(name) for name in folders], "folders named by number"
    names = _names(bundle)
    if names:
        for folder in folders:
            numbers = [number for number, name in names.items() if name == folder]
            if len(numbers) != 1:
                what = f"stands for classes {numbers}" if numbers else "is no class"
                raise UsageError(
                    f"{path}: folder '{folder}' {what}; config.json's id2label has {len(names)} classes: "
                    f"{', '.join(list(names.values())[:4])}, ...; or name folders by number{suggest(folder, names.values())}"
                )
        if max(names) >= classes:
            raise BundleError(
                f"{bundle.directory}: id2label numbers classes up to {max(names)}, the graph has {classes}"
            )
        numbers_of = {name: number for number, name in names.items()}
        return [numbers_of[folder] for folder in folders], "folders named as in config.json's id2label"
    if len(folders) != classes:
        raise UsageError(
            f"{path}: {len(folders)} class folders ({', '.join(folders[:3])}, ...), the model has {classes} classes; without "
            "names in config.json they are counted in sorted order, so there must be one for each, or folders named by number"
        )
    return list(range(classes)), f"folders in sorted order: {folders[0]} is 0"


def _names(bundle: Bundle) -> dict[int, str]:
    """Classes by number from config.json; none where there is no file, or only names such as LABEL_0."""
    if not _lists(bundle, "config.json"):
        return {}
    given: Any = read_json(bundle.directory / "config.json", BundleError, "export the model again").get("id2label")
    if not isinstance(given, dict) or not all(key.isdigit() and isinstance(name, str) for key, name in given.items()):
        return {}
    names = {int(key): name for key, name in given.items()}
    return {} if all(name == f"LABEL_{number}" for number, name in names.items()) else names


def _lists(bundle: Bundle, name: str) -> bool:
    return any(file.path == name for file in bundle.manifest.files)
