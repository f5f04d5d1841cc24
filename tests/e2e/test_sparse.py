"""A pruned decoder end to end: exported sparse, verified with the operator and with its function body."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekit.exporter import export
from edgekit.parity import verify
from edgekit.parity.report import Report
from edgekit.passes import choose_formats
from edgekit.recipe import Recipe, Rule
from tests.support.tiny_decoders import build

SIZES = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True}


def sqnr(report: Report) -> float:
    return {c.metric: c.value for c in report.parity.checks}["sqnr_db"]


@pytest.mark.parametrize("name", ["sparse-int4", "sparse-int8"])
def test_a_pruned_decoder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_formats, "CACHE_BYTES", 0)  # as if the model were large
    model = build("Llama", SIZES)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer.weight.shape[0] != model.config.vocab_size:
                weight = layer.weight
                weight[weight.abs() <= weight.abs().flatten().quantile(0.8)] = 0
    model.save_pretrained(tmp_path / "model")
    rules = (Rule("*", "int8", only="vocabulary"), Rule("*", name))
    bundle = export(
        str(tmp_path / "model"), Recipe(version=1, name=name, rules=rules), tmp_path / "bundle", abis=["linux-x86_64"]
    )
    inner = [layer for layer in bundle.manifest.layers if "layers" in layer.name]
    assert inner
    assert {layer.format for layer in inner} == {name}
    assert all("zeros: faster than int" in layer.reason for layer in inner)
    assert bundle.manifest.uses_operators
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert "SparseMatMul: native operator (" in report.kernel
    assert sqnr(report) >= 35  # equal to PyTorch until a last bit turns the code of an activation
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    fallback = verify(bundle)
    assert fallback.parity.passed, "\n".join(fallback.lines())
    assert "SparseMatMul: function body (MatMulNBits(bits=8" in fallback.kernel
    assert sqnr(fallback) >= 35
