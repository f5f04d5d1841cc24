"""Mixtures of experts from checkpoint to bundle: parity in every format, and that only the chosen experts' weights count."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import edgekit
from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError
from edgekit.metrics import tensor_distance
from edgekit.runtime.decoder import Decoder
from tests.support.tiny_decoders import DECODERS
from tests.support.tiny_decoders import build as tiny

pytestmark = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 has no interface for experts; they are refused"
)
EXPERTS = ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experts") / "model"
    tiny(*DECODERS["qwen3-moe"]).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Bundle:
    directory = checkpoint.parent / request.param
    edgekit.export(checkpoint, request.param, directory)
    return Bundle.open(directory)


def test_parity_and_what_is_said(bundle: Bundle) -> None:
    report = edgekit.verify(bundle.directory)
    assert all(check.passed for check in report.parity.checks)
    recipe = bundle.manifest.recipe["name"]
    assert ("MoE×2" if recipe == "fp32" else "ExpertMatMul: native operator") in report.kernel
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert [layers[name].format for name in EXPERTS] == [recipe, recipe]
    assert [layers[name].shape for name in EXPERTS] == [(4 * 64, 64), (4 * 64, 32)]
    assert layers["model.layers.0.mlp.gate"].format == "fp32"
    assert layers["model.layers.0.mlp.gate"].reason.startswith("chooses the experts")


def test_only_the_chosen_experts_are_read(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    chosen: list[set[int]] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, args, out: chosen.append(set(out[2].flatten().tolist())))
    with torch.no_grad():
        model(torch.tensor([[7]]))
    spoiled = tmp_path / "spoiled"
    shutil.copytree(bundle.directory, spoiled)
    for index, used in enumerate(chosen):
        for stack in ("gate_up_proj", "down_proj"):
            layer = next(i for i in bundle.manifest.layers if i.name == f"model.layers.{index}.mlp.experts.{stack}")
            _spoil(Bundle.open(spoiled), layer.scales or layer.tensor, {0, 1, 2, 3} - used)
    before = Decoder(bundle, max_length=8).step(7)
    after = Decoder(Bundle.open(spoiled), max_length=8).step(7)
    np.testing.assert_array_equal(after, before)


def _spoil(bundle: Bundle, tensor: str, experts: set[int]) -> None:
    """Writes NaN over some experts' scales, or weights where there are none, in the file."""
    place = bundle.tensor(tensor)
    assert isinstance(place, np.memmap) and place.filename is not None
    writable = np.memmap(place.filename, place.dtype, "r+", place.offset, place.shape)
    writable.reshape(4, -1)[sorted(experts)] = np.nan
    writable.flush()


@pytest.mark.parametrize("family", ["gpt-oss", "lfm2-moe", "granite-moe"])
@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_other_gates_biases_and_routers(family: str, recipe: str, tmp_path: Path) -> None:
    """gpt-oss: biases, and a gate with alpha, beta and limit; sigmoid and softmax routers."""
    tiny(*DECODERS[family]).save_pretrained(tmp_path / "model")
    edgekit.export(tmp_path / "model", recipe, tmp_path / "bundle")
    report = edgekit.verify(tmp_path / "bundle")
    assert all(check.passed for check in report.parity.checks)
    assert "ExpertMatMul: native operator" in report.kernel


def test_the_function_body_gives_the_same_answers(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One token, and a prompt whose rows go to every expert, some of them to one that others go to."""
    prompt = np.arange(40) % 90 + 5
    native = [Decoder(bundle, max_length=64).run(ids[None], keep=len(ids)) for ids in (prompt[:1], prompt)]
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    body = [Decoder(bundle, max_length=64).run(ids[None], keep=len(ids)) for ids in (prompt[:1], prompt)]
    for ours, theirs in zip(native, body, strict=True):
        assert tensor_distance(ours, theirs)["sqnr_db"] >= 60
    if bundle.manifest.recipe["name"] != "fp32":
        assert "ExpertMatMul: function body (MatMulNBits" in edgekit.verify(bundle.directory).kernel


def test_ternary_experts(tmp_path: Path) -> None:
    prefix, settings = DECODERS["qwen3-moe"]
    model = tiny(prefix, {**settings, "hidden_size": 128, "moe_intermediate_size": 128})
    with torch.no_grad():
        for layer in model.model.layers:
            for stack in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                scales = torch.rand(len(stack), 1, 1) * 0.1 + 0.05  # one for each expert
                stack.copy_(torch.randint(-1, 2, stack.shape) * scales)
    model.save_pretrained(tmp_path / "model")
    recipe = tmp_path / "ternary.yaml"
    recipe.write_text(recipe_of(["{match: '*', format: t2, only: ternary}", "{match: '*', format: int8}"]))
    edgekit.export(tmp_path / "model", recipe, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert [(layers[name].format, layers[name].bits_per_weight) for name in EXPERTS] == [("t2", 2.25)] * 2
    assert layers[EXPERTS[0]].shape == (4 * 256, 128) and layers[EXPERTS[0]].activation_block_size == 128
    report = edgekit.verify(bundle.directory)
    assert all(check.passed for check in report.parity.checks) and "ExpertMatMul: native operator" in report.kernel


def test_ternary_experts_need_ternary_weights_and_whole_blocks(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "ternary.yaml"
    recipe.write_text(recipe_of(["{match: '*.experts', format: t2}", "{match: '*', format: int8}"]))
    edgekit.export(checkpoint, recipe, tmp_path / "bundle")
    layers = {layer.name: layer for layer in Bundle.open(tmp_path / "bundle").manifest.layers}
    assert layers[EXPERTS[0]].format == "int8"
    assert layers[EXPERTS[0]].reason == "experts of 64 and 32 columns, no multiples of 128; stored as int8"
    prefix, settings = DECODERS["qwen3-moe"]
    tiny(prefix, {**settings, "hidden_size": 128, "moe_intermediate_size": 128}).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"mlp.experts.gate_up_proj: weights are not ternary"):
        edgekit.export(tmp_path / "model", recipe, tmp_path / "other")


def recipe_of(rules: list[str]) -> str:
    return "\n".join(
        ["version: 1", "name: half", "description: a test", "rules:", *(f"  - {rule}" for rule in rules), ""]
    )


def test_formats_that_experts_cannot_have(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "half.yaml"
    rules = ["{match: '*.experts', format: fp16}", "{match: '*', format: int8-channel}"]
    recipe.write_text(recipe_of(rules))
    edgekit.export(checkpoint, recipe, tmp_path / "half")
    layers = {layer.name: layer for layer in Bundle.open(tmp_path / "half").manifest.layers}
    assert layers[EXPERTS[0]].format == "fp32" and "would be widened whole" in layers[EXPERTS[0]].reason
    recipe.write_text(recipe_of(rules[1:]))
    edgekit.export(checkpoint, recipe, tmp_path / "channel")
    layers = {layer.name: layer for layer in Bundle.open(tmp_path / "channel").manifest.layers}
    assert layers[EXPERTS[0]].format == "int8" and layers[EXPERTS[0]].block_size == 32
    assert layers[EXPERTS[0]].reason == "experts cannot be int8-channel; stored as int8"
