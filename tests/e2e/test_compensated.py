"""Compensated models end to end: compressed by configuration, exported beside their weights, verified."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.compress.config import Compression, Data
from edgekit.compress.eora import Compensation
from edgekit.compress.gptq import Gptq
from edgekit.compress.lora import Lora
from edgekit.compress.post_training import Calibration
from edgekit.compress.sensitivity import Scan
from edgekit.compress.ternarize import Ternary
from edgekit.compression import compress
from edgekit.errors import RecipeError, SourceError, UsageError
from edgekit.export import export, packed_weights
from edgekit.frontend.source import load
from edgekit.frontend.streamed import materialize
from edgekit.lowbit.formats import FORMATS
from edgekit.parity import verify
from edgekit.recipe import Recipe
from edgekit.side_path import SideLinear
from tests.unit.test_compress import SENTENCES, decoder, encoder  # noqa: F401
from tests.unit.test_lora import adapter

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "It was the best of times, it was the worst of times; nobody had asked the clock, and so it said nothing.\n" * 9


def settings(tmp_path: Path, method: str, **sections: Any) -> Compression:
    (tmp_path / "a.txt").write_text(sections.pop("text", TEXT))
    data = Data((str(tmp_path / "a.txt"),), length=16)
    return Compression(1, data, method, calibration=Calibration(examples=8, batch=4), **sections)


def exact(bundle: Bundle, directory: Path) -> int:
    """Every stored weight of a linear layer is the compressed model's, bit for bit; how many there are."""
    module = load(str(directory)).module
    assert module is not None
    modules = dict(materialize(module).named_modules())
    found = {n: p for n, p in packed_weights(bundle)[0].items() if "embed" not in n and n != "lm_head"}
    for name, packed in found.items():
        assert np.array_equal(FORMATS[packed.format].dequantize(packed), modules[name].weight.numpy()), name
    return len(found)


def operators(bundle: Bundle) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(bundle.directory / "model.onnx").graph)


def test_two_planes_and_a_side_path(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    config = settings(
        tmp_path, "eora", eora=Compensation("ternarize", rank=6), ternarize=Ternary(planes=2), text=TEXT * 2
    )
    result = compress(str(decoder), config, tmp_path / "made")
    assert len(result.layers) == 4
    assert all(row["compensated"] < row["error"] for row in result.layers)
    saved = json.loads((tmp_path / "made" / "compress.json").read_text())
    assert saved["settings"]["eora"]["rank"] == 6 and saved["recipe"].endswith("recipe.yaml")
    module: Any = load(str(tmp_path / "made")).module
    assert isinstance(module.model.layers[0].self_attn.q_proj, SideLinear)
    bundle = export(str(tmp_path / "made"), saved["recipe"], tmp_path / "bundle", abis=["linux-x86_64"])
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert exact(bundle, tmp_path / "made") == 7 * 4
    # q/k/v: two planes, one A, one B; gate and up share A, and no plane of theirs is split.
    assert operators(bundle)["TernaryMatMul"] == 10
    assert sum(node.op_type == "MatMulNBits" for node in ir.load(bundle.directory / "model.onnx").graph) == 8 + 1
    first = next(layer for layer in bundle.manifest.layers if layer.name.endswith("q_proj"))
    assert first.format == "t2" and first.shape == (32, 32)


def test_gptq_of_an_encoder_with_eora(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    config = settings(
        tmp_path, "eora", eora=Compensation("gptq", rank=4, format="int4"), gptq=Gptq(3, 16), text=SENTENCES
    )
    result = compress(str(encoder), config, tmp_path / "made")
    assert result.history.evaluations[-1]["cosine"] > 0.8
    bundle = export(str(tmp_path / "made"), result.recipe, tmp_path / "bundle", samples=tmp_path / "a.txt")
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert exact(bundle, tmp_path / "made") == 6 * 3 - 2  # the A of query, key and value is one node
    assert operators(bundle)["MatMulNBits"] == 3 * 4  # q/k/v, output, intermediate and output, each with an A and a B


def test_an_adapter_beside_rounded_weights(tmp_path: Path) -> None:
    from tests.e2e.tiny_decoders import build

    adapter(tmp_path / "lora")
    build("Llama", {}).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    config = Compression(1, None, "lora", lora=Lora(str(tmp_path / "lora")))
    result = compress(str(tmp_path / "model"), config, tmp_path / "made")
    merged = compress(
        str(tmp_path / "model"), Compression(1, None, "lora", lora=Lora(str(tmp_path / "lora"), merge=True)), tmp_path / "one"
    )  # fmt: skip
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        first, second = (materialize(load(r.exportable).module)(ids).logits for r in (result, merged))  # type: ignore[arg-type]
    assert float((first - second).square().mean() / second.square().mean()) < 0.02
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    assert verify(bundle).parity.passed


def test_compensation_of_an_earlier_compression(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    pruned = compress(str(decoder), Compression(1, method="2:4", training=_none()), tmp_path / "pruned")
    config = settings(tmp_path, "eora", eora=Compensation("none", original=str(decoder), rank=8))
    result = compress(pruned.exportable, config, tmp_path / "made")
    assert all(0 < row["compensated"] < 0.8 * row["error"] for row in result.layers)
    weights = materialize(load(pruned.exportable).module).state_dict()  # type: ignore[arg-type]
    made = materialize(load(result.exportable).module).state_dict()  # type: ignore[arg-type]
    assert torch.equal(weights["model.layers.0.mlp.up_proj.weight"], made["model.layers.0.mlp.up_proj.weight"])


def _none() -> Any:
    from edgekit.compress.training import Training

    return Training(steps=0)


def test_formats_chosen_layer_by_layer(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    result = compress(
        str(decoder), settings(tmp_path, "sensitivity", sensitivity=Scan(bits=12, examples=4)), tmp_path / "made"
    )
    sizes = [(row["bytes"], row["layer"]) for row in result.layers]
    assert len(sizes) == 4
    assert sum(size for size, _ in sizes) <= 12 / 8 * (3 * 32 * 32 + 3 * 32 * 64)
    rules = Recipe.load(result.recipe).rules
    assert [rule.match for rule in rules[:-2]] == [name for _, group in sizes for name in group.split("+")]


def test_refusals(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    for sections, message in (
        ({"method": "eora"}, r"compress\.eora: missing; give for example \{of: gptq, rank: 32\}"),
        ({"method": "lora"}, r"compress\.lora: missing; give for example \{adapter: DIRECTORY\}"),
        ({"method": "sensitivity"}, r"compress\.sensitivity: missing; give for example \{bits: 5\}"),
        ({"method": "gptq"}, r"compress\.data: missing; gptq needs examples to calibrate with"),
    ):
        with pytest.raises(RecipeError, match=message):
            Compression(1, **sections)
    with pytest.raises(UsageError, match=r"exclude: '\*nothing\*' fits no layer"):
        config = settings(tmp_path, "gptq")
        object.__setattr__(config, "calibration", Calibration(exclude=("*nothing*",)))
        compress(str(decoder), config, tmp_path / "made")
    with pytest.raises(SourceError, match=r"has no linear layer 'model\.layers"):
        from tests.e2e.tiny_decoders import build

        build("Llama", {}).save_pretrained(tmp_path / "other")  # type: ignore[operator]
        config = settings(tmp_path, "eora", eora=Compensation("none", original=str(tmp_path / "other"), rank=2))
        compress(str(decoder), config, tmp_path / "made")
    assert not (tmp_path / "made").exists()
