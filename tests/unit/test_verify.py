"""Verification: verdicts, limits, the first diverging layer, perplexity, damaged bundles."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, UnsupportedError, UsageError
from edgekit.parity import Report, verify
from edgekit.parity.bisect import first_diverging
from tests.support.tiny_bundle import Weights, decoder_bundle, reference
from tests.support.tiny_models import linear_bundle


def faulty(layer: int) -> Weights:
    """The usual weights with one matrix wrong."""
    weights = Weights()
    weights.arrays[f"{layer}.mlp"] = -weights.arrays[f"{layer}.mlp"]
    return weights


def text(report: Report) -> str:
    return "\n".join(report.lines())


def test_a_good_decoder_passes(tmp_path: Path) -> None:
    report = verify(decoder_bundle(tmp_path / "b", max_abs=1e-3, top1=1.0, kl=1e-4))
    assert (report.passed, report.verdict, report.layers) == (True, "PASS", ())
    found = report.to_json()
    assert found["schema_version"] == 1
    assert found["passed"] is True
    assert found["kernel"] == "FusedMatMul×10"
    assert found["inputs"] == ["text"]
    parity = found["parity"]
    assert parity["against"] == "compressed PyTorch model"
    assert parity["positions"] == 40
    assert parity["max_abs"] < 1e-4
    assert parity["top1"] == 1.0
    assert parity["perplexity_ratio"] == pytest.approx(1.0)
    assert {c["metric"]: c["limit"] for c in parity["checks"]}["max_abs"] == 1e-3
    assert found["accuracy"]["original_perplexity"] == pytest.approx(found["accuracy"]["perplexity"], rel=1e-4)
    assert "✓ max_abs" in text(report)
    assert text(report).endswith("verdict: PASS")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_fault_is_traced_to_its_layer(tmp_path: Path, layer: int) -> None:
    report = verify(decoder_bundle(tmp_path / "b", graph_weights=faulty(layer), max_abs=1e-3))
    assert (report.passed, report.verdict) == (False, "FAIL")
    assert [row.layer for row in report.layers] == ["layers.0", "layers.1", "layers.2", "output logits"]
    assert [row.layer for row in report.layers if row.first] == [f"layers.{layer}"]
    assert report.layers[0].formats == "fp32×3"
    assert "✗ max_abs" in text(report)
    assert "<- first that diverges" in text(report)
    assert report.to_json()["layers"][layer]["first"] is True


def test_a_fault_after_the_last_layer_is_the_outputs(tmp_path: Path) -> None:
    report = verify(linear_bundle(tmp_path / "b", shift=50.0))
    assert [(row.layer, row.first) for row in report.layers] == [("linear", False), ("output y", True)]


def test_the_first_diverging_layer_is_a_step_not_a_slope() -> None:
    assert first_diverging([60, 57, 55, 52, 49, 47, 45]) is None
    assert first_diverging([60, 58, 40, 45, 44]) == 2
    assert first_diverging([12, 11, 10]) == 0
    assert first_diverging([50, 70, 48, 41]) is None, "a layer that happens to be good is no measure for the next"


@pytest.mark.parametrize("format_name", ["fp32", "int8", "t2"])
def test_other_models_are_verified_by_their_outputs(tmp_path: Path, format_name: str) -> None:
    report = verify(linear_bundle(tmp_path / "b", format_name))
    assert report.passed
    assert report.parity.unit == "samples"
    assert report.parity.count == 8
    assert set(report.to_json()["parity"]["outputs"]) == {"y"}


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("generic", set()), ("image-classification", {"top1", "kl"}), ("feature-extraction", {"top1"})],
)
def test_tasks_have_their_own_metrics(tmp_path: Path, task: str, metrics: set[str]) -> None:
    report = verify(linear_bundle(tmp_path / "b", task=task))
    found = {check.metric: check.value for check in report.accuracy.checks}
    assert set(found) == {"max_abs", "sqnr_db", "cosine"} | metrics
    assert found.get("top1", 1.0) == 1.0


def test_random_input_is_a_smoke_test_only(tmp_path: Path) -> None:
    report = verify(linear_bundle(tmp_path / "b", kind="random"))
    assert (report.passed, report.verdict) == (False, "UNPROVEN")
    assert "export again with --samples" in text(report)
    assert "PASS" not in text(report)
    assert verify(linear_bundle(tmp_path / "b", kind="random", shift=50.0)).verdict == "FAIL"


def test_perplexity_of_the_users_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("To be, or not to be, that is the question: " * 2, encoding="utf-8")
    report = verify(decoder_bundle(tmp_path / "b"), text=file)
    assert report.text is not None
    ids = [256, *_bytes(file.read_text(encoding="utf-8"))]
    windows = [np.array(ids[i : i + 64]) for i in range(0, len(ids), 64)]
    nll = np.concatenate([_nll(w) for w in windows])
    assert report.text.tokens == len(nll)
    assert report.text.bundle == pytest.approx(math.exp(nll.mean()), rel=1e-4)
    assert report.text.original is None
    assert f"perplexity of {file}" in text(report)


def _bytes(string: str) -> list[int]:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("Ġ" if c == " " else c) for c in string]


def _nll(ids: np.ndarray) -> np.ndarray:
    logits = reference(Weights(), ids)[0].astype(np.float64)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return np.asarray(total - logits[np.arange(len(ids)), np.roll(ids, -1)])[:-1]


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    bundle, file = decoder_bundle(tmp_path / "b"), tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"text.txt: not a readable UTF-8 text"):
        verify(bundle, text=file)
    file.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="1 tokens; perplexity needs a text of some length"):
        verify(bundle, text=file)
    with pytest.raises(UnsupportedError, match="perplexity is for language models, not generic"):
        verify(linear_bundle(tmp_path / "c"), text=file)


def test_damage_is_found_before_anything_runs(tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    data = bundle.directory / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[10] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="sha256 is not the manifest's"):
        verify(bundle.directory)


def test_vectors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    empty = Bundle(bundle.directory, replace(bundle.manifest, vectors=()))
    with pytest.raises(BundleError, match="no golden vectors; export again"):
        verify(empty)


def test_a_target_is_checked(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="target 'pi': is none of local, ssh:"):
        verify(bundle, target="pi")


def test_verifying_needs_no_torch(tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    script = (
        "import sys; from edgekit.parity import verify; assert verify(sys.argv[1]).passed; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    run = [sys.executable, "-c", script, str(bundle.directory)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"
