"""Accuracy against labels: places and differences against numpy, folders of pictures, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.bundle import Bundle, BundleWriter, write_graph
from edgekit.cli.verbs import main
from edgekit.errors import BundleError, CheckFailed, EdgekitError, SourceError, UnsupportedError, UsageError
from edgekit.evaluation import evaluate
from edgekit.parity import verify
from edgekit.parity.labels import LabelledData, open_labelled, places, score
from edgekit.spec.records import TensorInfo
from tests.support.tiny_bundle import FLOAT, GraphWriter, decoder_bundle, manifest, recipe

SIDE, CLASSES = 2, 7
WEIGHT = np.random.default_rng(11).normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
NAMES = ["ape", "bee", "cow", "doe", "eel", "fox", "gnu"]


def quiet(what: str, share: float) -> None:
    """No progress."""


def classifier(path: Path, *, batch: int | str = "batch_size", id2label: dict[str, str] | None = None) -> Bundle:
    """logits = pixels · WEIGHT, pixels float32 [batch, 1, 2, 2]."""
    g = GraphWriter()
    pixels = g.input("pixels", FLOAT, [batch, 1, SIDE, SIDE])
    (flat,) = g.op("Flatten", pixels, axis=1)
    (logits,) = g.op("MatMul", flat, g.constant("w", WEIGHT))
    model = g.model({"logits": (logits, [batch, CLASSES])})
    described = replace(
        manifest(model, "image-classification", recipe()),
        inputs=(TensorInfo("pixels", "float", (batch, 1, SIDE, SIDE)),),
        outputs=(TensorInfo("logits", "float", (batch, CLASSES)),),
    )
    with BundleWriter(path) as writer:
        write_graph(model, writer.directory)
        if id2label is not None:
            (writer.directory / "config.json").write_text(json.dumps({"id2label": id2label}), encoding="utf-8")
        return writer.commit(described)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return classifier(tmp_path_factory.mktemp("labels") / "bundle")


def samples(count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that 8 bits hold exactly, and labels of which about half are what the classifier says."""
    random = np.random.default_rng(12)
    pixels = (random.integers(0, 256, (count, 1, SIDE, SIDE)) / np.float32(255)).astype(np.float32)
    labels = np.where(random.random(count) < 0.5, answers(pixels).argmax(1), random.integers(0, CLASSES, count))
    labels[: min(count, CLASSES)] = range(min(count, CLASSES))  # each class is there
    return pixels, labels


def answers(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.reshape(len(pixels), -1) @ WEIGHT)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def folders(path: Path, names: list[str], count: int = 50) -> Path:
    """The samples as pictures, each in the folder of its class."""
    pixels, labels = samples(count)
    for name in names:
        (path / name).mkdir(parents=True)
    for index, (pixel, label) in enumerate(zip(pixels, labels, strict=True)):
        if label < len(names):
            array = np.round(pixel[0] * 255).astype(np.uint8)
            Image.fromarray(array).save(path / names[label] / f"{index:02}.png")
    return path


def test_top_1_and_top_5_against_numpy(bundle: Bundle, tmp_path: Path) -> None:
    pixels, labels = samples()
    found = verify_labels(bundle, npz(tmp_path / "d.npz", pixels=pixels, labels=labels))
    ranked = np.argsort(-answers(pixels), axis=1)
    top1 = (ranked[:, 0] == labels).mean()
    assert (found.samples, found.top1) == (50, pytest.approx(top1))
    assert found.top5 == pytest.approx((ranked[:, :5] == labels[:, None]).any(1).mean())
    assert found.error == pytest.approx(np.sqrt(top1 * (1 - top1) / 50))
    assert found.difference is None


def verify_labels(bundle: Bundle, data: Path) -> Any:
    (row,) = evaluate([bundle], labels=[data]).rows
    return row.labels[0]


def test_models_are_compared_sample_by_sample(bundle: Bundle, tmp_path: Path) -> None:
    data = open_labelled(bundle, npz(tmp_path / "d.npz", pixels=samples(8)[0], labels=samples(8)[1]))
    ours, theirs = np.array([0, 0, 0, 1, 2, 0, 3, 0]), np.array([0, 1, 0, 0, 0, 0, 3, 4])
    found = score(data, ours, theirs)
    change = np.array([0, 1, 0, -1, -1, 0, 0, 1])
    assert (found.gained, found.lost, found.difference) == (2, 2, 0.0)
    assert found.difference_error == pytest.approx(change.std() / np.sqrt(8))


def test_equal_logits_are_no_hit_for_every_class() -> None:
    data = LabelledData("d", np.array([0, 1, 6]), "logits", CLASSES, "", 2, lambda a, b: {"n": np.zeros(b - a)})
    found = places(data, lambda feeds, output: np.zeros((len(feeds["n"]), CLASSES), np.float32), quiet, "flat")
    np.testing.assert_array_equal(found, [0, 1, 6])


def test_logits_that_are_not_finite_are_no_score() -> None:
    data = LabelledData("d", np.array([0]), "logits", CLASSES, "", 2, lambda a, b: {})
    with pytest.raises(CheckFailed, match="broken: its logits on d are not finite"):
        places(data, lambda feeds, output: np.full((1, CLASSES), np.nan), quiet, "broken")


def test_class_folders(bundle: Bundle, tmp_path: Path) -> None:
    pixels, labels = samples()
    wanted = verify_labels(bundle, npz(tmp_path / "d.npz", pixels=pixels, labels=labels))
    named = classifier(tmp_path / "named", id2label={str(i): name for i, name in enumerate(reversed(NAMES))})
    default = classifier(tmp_path / "default", id2label={str(i): f"LABEL_{i}" for i in range(CLASSES)})
    cases = [
        (bundle, folders(tmp_path / "sorted", NAMES), "folders in sorted order: ape is 0"),
        (bundle, folders(tmp_path / "numbers", [str(i) for i in range(CLASSES)]), "folders named by number"),
        (default, tmp_path / "sorted", "folders in sorted order: ape is 0"),
        (named, folders(tmp_path / "n", NAMES[::-1]), "folders named as in config.json's id2label"),
    ]
    for opened, path, order in cases:
        assert open_labelled(opened, path).order == order
        found = verify_labels(opened, path)
        assert (found.samples, found.top1, found.top5) == (50, wanted.top1, wanted.top5)
    some = folders(tmp_path / "some", ["gnu", "fox"])  # the first two classes are enough where names say which
    assert set(open_labelled(named, some).labels) == {0, 1}


def test_verify_prints_it_and_refuses_devices(tmp_path: Path) -> None:
    from tests.support.tiny_models import SIZE, linear_bundle

    linear = linear_bundle(tmp_path / "linear", task="image-classification")
    outputs = (TensorInfo("y", "float", ("batch", SIZE)),)
    described = replace(linear, manifest=replace(linear.manifest, outputs=outputs))
    x = np.random.default_rng(1).normal(size=(20, SIZE)).astype(np.float32)
    data = npz(tmp_path / "d.npz", x=x, labels=np.arange(20))
    with pytest.raises(UsageError, match="takes x float32"):
        verify(described, labels=npz(tmp_path / "wide.npz", x=x.astype(np.float64), labels=np.arange(20)))
    report = verify(described, labels=data)
    assert report.labels is not None and report.labels.bundle.samples == 20 and report.verdict == "PASS"
    text = list(report.lines())
    assert f"accuracy against the labels of {data}, 20 samples (numbers in the file)" in text
    assert report.to_json()["labels"]["bundle"]["top1"] == report.labels.bundle.top1
    with pytest.raises(UsageError, match="--original, --text and --labels are for 'local' only"):
        verify(described, target="ssh:nobody@nowhere", labels=data)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": 1, "label": 2}, "has no array 'labels', only pixels, label; .* takes pixels float32"),
        ({"labels": 2}, "has no array 'pixels', only labels"),
        ({"pixels": 1, "labels": 2, "mask": 2}, "array 'mask' is no input of the model"),
        ({"pixels": 1, "labels": np.zeros(50)}, r"labels are float64 \[50\]; a whole number for each sample expected"),
        ({"pixels": 1, "labels": np.zeros(49, int)}, "50 of pixels, 49 labels; each sample has one"),
        ({"pixels": 1, "labels": np.arange(50)}, "labels go from 0 to 49, the model has classes 0 to 6"),
        ({"pixels": 1, "labels": np.arange(50) - 60}, "labels go from -60 to -11"),
        ({"pixels": np.zeros((50, 1, 2, 3), np.float32), "labels": 2}, r"array 'pixels' is float32 \[50, 1, 2, 3\]"),
        ({"pixels": np.zeros((50, 1, 2, 2)), "labels": 2}, r"array 'pixels' is float64 \[50, 1, 2, 2\]"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(bundle: Bundle, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    pixels, labels = samples()
    given = {name: {1: pixels, 2: labels}[a] if isinstance(a, int) else a for name, a in arrays.items()}
    with pytest.raises(UsageError, match=words):
        open_labelled(bundle, npz(tmp_path / "d.npz", **given))


def test_folders_that_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    named = classifier(tmp_path / "named", id2label={str(i): name for i, name in enumerate(NAMES)})
    twice = classifier(tmp_path / "twice", id2label={str(i): name for i, name in enumerate([*NAMES[:6], "ape"])})
    many = classifier(tmp_path / "many", id2label={str(i): name for i, name in enumerate([*NAMES, "hen"])})
    six, file = folders(tmp_path / "six", NAMES[:6]), tmp_path / "labels.csv"
    file.touch()
    for opened, path, words in (
        (bundle, six, r"6 class folders \(ape, bee, cow, \.\.\.\), the model has 7 classes"),
        (bundle, folders(tmp_path / "n", ["0", "1", "7"]), "folder 7, the model has classes 0 to 6"),
        (named, folders(tmp_path / "typo", ["ape", "beee"]), "folder 'beee' is no class; .*did you mean 'bee'"),
        (twice, folders(tmp_path / "ape", ["ape"]), r"folder 'ape' stands for classes \[0, 6\]"),
        (bundle, tmp_path / "bundle-less", "no .npz and no directory"),
        (bundle, file, "--labels takes an .npz with 'labels', or a directory of class folders"),
    ):
        with pytest.raises(UsageError, match=words):
            open_labelled(opened, path)
    with pytest.raises(BundleError, match="id2label numbers classes up to 7, the graph has 7"):
        open_labelled(many, folders(tmp_path / "bee", ["bee"]))
    (tmp_path / "six" / "gnu").mkdir()
    with pytest.raises(UsageError, match=r"gnu: no pictures \(.jpg, .*\) of this class"):
        open_labelled(bundle, six)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no folders; each class has a folder of its pictures"):
        open_labelled(bundle, tmp_path / "empty")
    (six / "gnu" / "x.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(SourceError, match=r"x\.png: not a readable picture"):
        evaluate([bundle], labels=[six])


def test_a_graph_of_a_fixed_batch_takes_whole_batches(tmp_path: Path) -> None:
    fixed = classifier(tmp_path / "fixed", batch=5)
    pixels, labels = samples(10)
    assert verify_labels(fixed, npz(tmp_path / "d.npz", pixels=pixels, labels=labels)).samples == 10
    with pytest.raises(UsageError, match="7 samples are no whole batches of 5, which the graph takes at a time"):
        open_labelled(fixed, npz(tmp_path / "e.npz", pixels=pixels[:7], labels=labels[:7]))


def test_what_is_no_classifier(bundle: Bundle, tmp_path: Path) -> None:
    decoder = decoder_bundle(tmp_path / "decoder")
    data = npz(tmp_path / "d.npz", pixels=samples()[0], labels=samples()[1])
    with pytest.raises(UnsupportedError, match=r"text-generation with outputs .* is no classifier"):
        open_labelled(decoder, data)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"models": ["mymodel:build"], "labels": [data]}, "labels without a bundle among the models"),
        ({"models": [bundle], "labels": [data], "texts": ["a.txt"]}, "--labels is for classifiers"),
    ]
    for arguments, words in refused:
        with pytest.raises(EdgekitError, match=words):
            evaluate(**arguments)


def test_the_table_and_its_json(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = npz(tmp_path / "d.npz", pixels=samples()[0], labels=samples()[1])
    page, path = tmp_path / "page.html", str(bundle.directory)
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", path, path, "--labels", str(data), "--page", str(page)])
    head, first, second = capsys.readouterr().out.splitlines()
    assert "top-1 d.npz" in head and "top-5 d.npz" in head and "difference from bundle" in head
    assert first.endswith("-") and second.endswith("+0.0000 +- 0.0000 (0 gained, 0 lost)")
    assert "top-1 d.npz" in page.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", path, "--labels", str(data), "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["labels"][0]["samples"] == 50
