"""A CNN that has really learnt Fashion-MNIST, scored against labels: bundle and original, arrays and pictures, after compress too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model
from torch import nn

from benchmarks.compress.backslash_models import Images, cnn, fashion
from edgekit import compress, evaluate, export, verify
from edgekit.parity.labels import open_labelled
from edgekit.runtime.session import Session

NAMES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
SAMPLES = 400
ROUGH = "version: 1\nname: rough\nrules:\n  - {match: '*', format: int4}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The network and a directory: weights.safetensors, test.npz with labels, and pictures in folders by name."""
    path = tmp_path_factory.mktemp("labels")
    learn, judge = fashion()
    torch.manual_seed(0)
    model = Images(cnn())
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for start in range(0, 12_800, 64):
        images, labels = (learn.arrays[name][start : start + 64] for name in ("images", "labels"))
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
    save_model(model, str(path / "weights.safetensors"))
    shown, classes = (judge.arrays[name][:SAMPLES].numpy() for name in ("images", "labels"))
    np.savez(path / "test.npz", images=shown, labels=classes)
    for index, (image, label) in enumerate(zip(shown, classes, strict=True)):
        folder = path / "pictures" / f"{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(folder / f"{index}.png")
    return model.eval(), path


@pytest.fixture(scope="module")
def source(trained: tuple[nn.Module, Path]) -> str:
    return f"benchmarks.compress.backslash_models:fashion_cnn@{trained[1] / 'weights.safetensors'}"


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def test_verify_scores_the_bundle_and_its_original(
    trained: tuple[nn.Module, Path], source: str, tmp_path: Path
) -> None:
    model, path = trained
    data = path / "test.npz"
    recipe = tmp_path / "rough.yaml"
    recipe.write_text(ROUGH, encoding="utf-8")
    bundle = export(source, str(recipe), tmp_path / "int4", samples=data)  # labels in it are no input, and no error
    report = verify(bundle, original=source, labels=data)
    assert report.labels is not None and report.labels.original is not None
    ours, theirs = report.labels.bundle, report.labels.original
    arrays = np.load(data)
    with torch.no_grad():
        float_logits = model(torch.from_numpy(arrays["images"])).numpy()
    bundle_logits = np.concatenate([Session(bundle, 1).run({"images": arrays["images"]})["output"]])
    assert theirs.top1 == pytest.approx(accuracy(float_logits, arrays["labels"])) and theirs.top1 > 0.7
    assert ours.top1 == pytest.approx(accuracy(bundle_logits, arrays["labels"]))
    change = (bundle_logits.argmax(1) == arrays["labels"]) * 1.0 - (float_logits.argmax(1) == arrays["labels"])
    assert ours.difference == pytest.approx(ours.top1 - theirs.top1) == pytest.approx(change.mean())
    assert ours.difference_error == pytest.approx(change.std() / np.sqrt(SAMPLES))
    assert (ours.gained, ours.lost) == ((change > 0).sum(), (change < 0).sum())
    lines = list(report.lines())
    assert f"accuracy against the labels of {data}, {SAMPLES} samples (numbers in the file)" in lines
    assert report.accuracy.against == f"original model {source}"
    rows = evaluate([source, bundle], labels=[data, path / "pictures"]).rows
    assert [row.labels[0].top1 for row in rows] == [theirs.top1, ours.top1]
    assert rows[1].labels[0] == ours and rows[0].method == "PyTorch"
    assert rows[1].labels[1].top1 == pytest.approx(ours.top1, abs=0.01)  # the same as pictures; sums in other batches


def test_gray_pictures_are_read_as_export_reads_them(
    trained: tuple[nn.Module, Path], source: str, tmp_path: Path
) -> None:
    bundle = export(source, "fp32", tmp_path / "fp32", samples=trained[1] / "pictures")
    data = open_labelled(bundle, trained[1] / "pictures")
    pixels = np.concatenate([data.read(i, i + 1)["images"] for i in range(5)])
    order = sorted((trained[1] / "pictures" / "0").iterdir())
    exact = np.load(trained[1] / "test.npz")["images"][[int(p.stem) for p in order[:5]]]
    np.testing.assert_allclose(pixels, exact, rtol=0, atol=1e-6)
    golden = {v["input.images"].tobytes() for _, v in bundle.vectors()}
    assert golden & {data.read(i, i + 1)["images"].tobytes() for i in range(SAMPLES)}


def test_after_compress_verify_says_what_the_original_is(
    trained: tuple[nn.Module, Path], source: str, tmp_path: Path
) -> None:
    data, settings = trained[1] / "test.npz", tmp_path / "prune.yaml"
    settings.write_text("version: 1\nmethod: prune\ntraining: {steps: 0}\nprune: {sparsity: 0.7}\n", encoding="utf-8")
    pruned = compress(source, settings, tmp_path / "pruned").exportable
    bundle = export(pruned, "fp32", tmp_path / "bundle", samples=data)
    report = verify(bundle, labels=data)
    assert report.accuracy.against == f"original model {pruned}" and report.labels is not None
    assert report.labels.original is None
    against_float = verify(bundle, original=source, labels=data)
    assert against_float.accuracy.against == f"original model {source}"
    worse = {c.metric: c.value for c in against_float.accuracy.checks}["sqnr_db"]
    assert worse < {c.metric: c.value for c in report.accuracy.checks}["sqnr_db"] - 10
    assert against_float.labels is not None and against_float.labels.original is not None
