"""The main job on real models from packages: SmolLM2-135M, all-MiniLM-L6-v2, MobileNetV2."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.parity import Report, verify
from edgekit.runtime.generation import generate
from tools.demo_models import minilm, smollm2


@pytest.fixture(scope="module")
def smollm2_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Bundle, Report]]:
    path = tmp_path_factory.mktemp("smollm2")
    found = {}
    for recipe in ("fp32", "int8", "int4"):
        bundle = export(str(smollm2()), recipe, path / recipe)
        found[recipe] = bundle, verify(bundle, threads=2)
    return found


def test_smollm2_fp32_is_the_original(smollm2_bundles: dict[str, tuple[Bundle, Report]]) -> None:
    bundle, report = smollm2_bundles["fp32"]
    measured = {check.metric: check.value for check in report.parity.checks}
    assert report.verdict == "PASS"
    assert measured["max_abs"] <= 1e-3
    assert measured["top1"] == 1.0
    assert bundle.manifest.nodes <= 330


def test_smollm2_int8(smollm2_bundles: dict[str, tuple[Bundle, Report]]) -> None:
    bundle, report = smollm2_bundles["int8"]
    assert report.verdict == "PASS"
    assert {c.metric: c.value for c in report.accuracy.checks}["perplexity_ratio"] <= 1.015
    assert bundle.model_bytes <= 160e6
    assert {layer.format for layer in bundle.manifest.layers} == {"int8"}


def test_smollm2_int4(smollm2_bundles: dict[str, tuple[Bundle, Report]]) -> None:
    bundle, report = smollm2_bundles["int4"]
    assert report.verdict == "PASS"
    assert bundle.model_bytes <= 100e6
    loss = {c.metric: c.value for c in report.accuracy.checks}["kl"]
    assert loss <= 0.2  # nats; 0.251 with `calibrate: 0`, the scales of the largest weights


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
def test_smollm2_knows_paris(recipe: str, smollm2_bundles: dict[str, tuple[Bundle, Report]]) -> None:
    text = "".join(generate(smollm2_bundles[recipe][0], "What is the capital of France?", max_new_tokens=24, threads=2))
    assert "Paris" in text


def test_minilm_int8_keeps_neighbours(tmp_path: Path) -> None:
    bundle = export(str(minilm()), "int8", tmp_path / "minilm")
    report = verify(bundle)
    assert report.verdict == "PASS"
    assert {c.metric: c.value for c in report.accuracy.checks}["top1"] >= 0.95
    assert bundle.model_bytes <= 26e6


def test_mobilenet_int8_static_sees_the_same_things(tmp_path: Path) -> None:
    bundle = export("tools.demo_models:mobilenet_v2", "int8-static", tmp_path / "m", task="image-classification")
    report = verify(bundle)
    assert report.verdict == "PASS"
    assert bundle.model_bytes <= 4.5e6
    for _, vector in bundle.vectors():
        np.testing.assert_array_equal(vector["original.output"].argmax(-1), vector["compressed.output"].argmax(-1))
    labels = [int(vector["original.output"].argmax()) for _, vector in bundle.vectors()]
    assert 285 in labels  # the cat: Egyptian cat
    assert 967 in labels  # the coffee: espresso
    assert {layer.format for layer in bundle.manifest.layers} == {"int8-static"}


def test_a_damaged_layer_is_found(smollm2_bundles: dict[str, tuple[Bundle, Report]], tmp_path: Path) -> None:
    """Planted fault: one layer's scales are 1.3 times too large, and the manifest's hash was made to fit."""
    shutil.copytree(smollm2_bundles["int8"][0].directory, tmp_path / "bad")
    bundle = Bundle.open(tmp_path / "bad")
    layer = next(one for one in bundle.manifest.layers if one.name == "model.layers.11.mlp.down_proj")
    scales, data = np.array(bundle.tensor(layer.scales)), bytearray((tmp_path / "bad" / "model.onnx.data").read_bytes())
    at = data.index(scales.tobytes())
    data[at : at + scales.nbytes] = (scales * np.float32(1.3)).tobytes()
    (tmp_path / "bad" / "model.onnx.data").write_bytes(data)
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["files"]:
        if file["path"] == "model.onnx.data":
            file["sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    report = verify(tmp_path / "bad", threads=2)
    assert not report.parity.passed
    assert [one.layer for one in report.layers if one.first] == ["model.layers.11"]
