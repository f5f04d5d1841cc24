"""Ternary checkpoints end to end: every BitNet form, group scales, and the wrong scale convention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.errors import SourceError
from edgekit.exporter import export
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.parity import verify
from edgekit.parity.report import Report
from tests.support.tiny_decoders import build

SIZES = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers compiles BitNet's packing; that takes a minute and a C++ compiler."""
    with torch._dynamo.config.patch(disable=True):
        yield


def pack(codes: torch.Tensor) -> torch.Tensor:
    """As transformers packs: row r + i * R at bits 2i of byte row r."""
    rows = -(-codes.shape[0] // 4)
    padded = torch.zeros(4 * rows, codes.shape[1], dtype=torch.uint8)
    padded[: codes.shape[0]] = (codes + 1).to(torch.uint8)
    return padded[:rows] | padded[rows : 2 * rows] << 2 | padded[2 * rows : 3 * rows] << 4 | padded[3 * rows :] << 6


def checkpoint(path: Path, form: str, invert: bool = False) -> Path:
    """A tiny BitNet saved as ``form``: online, autobitlinear or bitlinear."""
    build("BitNet", SIZES).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    if form != "online":
        for name in [n for n in tensors if n.split(".")[-2] in LAYERS]:
            weight = tensors[name].float()
            scale = weight.abs().mean()
            tensors[name] = pack((weight / scale).round().clamp(-1, 1).to(torch.int8))
            stored = scale if (form == "autobitlinear") != invert else 1.0 / scale
            tensors[name + "_scale"] = stored.reshape(1)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    mode = "online" if form == "online" else "offline"
    linear = "bitlinear" if form == "bitlinear" else "autobitlinear"
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": linear, "quantization_mode": mode}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def sqnr(report: Report) -> float:
    return {c.metric: c.value for c in report.parity.checks}["sqnr_db"]


@pytest.mark.parametrize("form", ["online", "autobitlinear", "bitlinear"])
def test_every_form_of_bitnet(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "model", form)
    bundle = export(str(source), "ternary", tmp_path / "t2", abis=["linux-x86_64", "android-arm64-v8a"])
    carried = {f.path for f in bundle.manifest.files if f.path.startswith("ops/")}
    assert carried == {f"ops/{abi}/libedgekit_ops.so" for abi in ("linux-x86_64", "android-arm64-v8a")}
    inner = [layer for layer in bundle.manifest.layers if "layers" in layer.name]
    assert len(inner) == 14
    assert {layer.format for layer in inner} == {"t2"}
    assert all(layer.activation_block_size == 0 and layer.bits_per_weight <= 2.26 for layer in inner)
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert "TernaryMatMul: native operator (" in report.kernel
    # Rounded as BitNet does: equal to PyTorch until a last bit turns a code (43 dB); the function body reaches 35.
    assert sqnr(report) >= 40
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    fallback = verify(bundle)
    assert "TernaryMatMul: function body" in fallback.kernel
    assert fallback.parity.passed
    assert sqnr(fallback) < sqnr(report)
    monkeypatch.delenv("EDGEKIT_OPS_LIBRARY")
    # In float32 the graph rounds activations as BitNet does: equal to PyTorch but for the order of sums.
    exact = verify(export(str(source), "fp32", tmp_path / "fp32"))
    assert sqnr(exact) >= 90


def test_the_forms_hold_the_same_model(tmp_path: Path) -> None:
    modules: list[Any] = [
        materialize(load_module(str(checkpoint(tmp_path / form, form))).module)
        for form in ("online", "autobitlinear", "bitlinear")
    ]
    for name in LAYERS[:4]:
        first, *others = [dict(m.named_modules())[f"model.layers.0.self_attn.{name}"].weight for m in modules]
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["autobitlinear", "bitlinear"])
def test_wrong_scale_convention_is_refused(form: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", form, invert=True)
    with pytest.raises(SourceError, match="scale"):
        load_module(str(source))


def test_group_scales_are_kept(tmp_path: Path) -> None:
    """As Ternary Bonsai: a Qwen3 whose bfloat16 weights hold {-s, 0, s} in each group of 128."""
    model = build("Qwen3", {"hidden_size": 256, "intermediate_size": 256, "head_dim": 16})
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in LAYERS:
            groups = (
                parameter.data.reshape(parameter.shape[0], -1, 128)
                if parameter.shape[1] % 128 == 0
                else parameter.data.reshape(parameter.shape[0], 1, -1)
            )
            scale = torch.rand(groups.shape[:2], generator=random).mul(0.2).add(0.05)[..., None]
            parameter.data = (groups.sign() * (groups.abs() > 0.07) * scale).reshape(parameter.shape)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    bundle = export(str(tmp_path / "model"), "ternary", tmp_path / "out")
    by_name = {layer.name: layer for layer in bundle.manifest.layers}
    query = by_name["model.layers.0.self_attn.q_proj"]
    assert query.format == "t2"
    assert bundle.tensor(query.scales).shape[1:] == (2,)  # one for each 128 columns
    assert query.activation_block_size == 128  # its activations were never rounded in training
    assert verify(bundle).parity.passed
