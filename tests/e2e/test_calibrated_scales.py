"""`int4` with its scales searched on real input: what is stored, and what is said where nothing is known.

That it helps: tests/e2e/test_real_models.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekit.exporter import export
from edgekit.frontend.compressed import native_activations
from edgekit.frontend.inputs import calibration, resolve
from edgekit.frontend.loading import load
from edgekit.frontend.streamed import stored_weight
from edgekit.golden import packed_weights
from edgekit.inspection import inspect
from edgekit.lowbit.formats.integers import quantize_int4
from edgekit.methods.calibrate import mean_squares
from edgekit.passes.lower_linears import NOT_CALIBRATED
from edgekit.recipe import Recipe
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_decoders import build

INT4 = Recipe.load("int4")
PLAIN = dataclasses.replace(INT4, calibrate=0)
FORMAT, BLOCK = "int4-fp16", 32
"""What the recipe stores layers as."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("Llama", {"vocab_size": 259}).save_pretrained(path)
    return path


def test_each_layer_has_the_scales_that_its_inputs_give(decoder: Path, tmp_path: Path) -> None:
    write_tokenizer(decoder)
    bundle = export(decoder, INT4, tmp_path / "out")
    source: Any = load(str(decoder))
    batches = calibration(source, resolve(source, None), None, INT4.calibrate, 64)
    module = source.module
    packed, _ = packed_weights(bundle)
    int4 = {name: weight for name, weight in packed.items() if weight.format == FORMAT}
    assert len(int4) == 14 and {layer.reason for layer in bundle.manifest.layers} == {""}
    tensors = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    with native_activations(module):
        means = mean_squares(module, int4, tensors)
    for name, weight in int4.items():
        layer = module.get_submodule(name)
        stored = stored_weight(layer)
        values = layer.weight.detach().numpy() if stored is None else stored[:]
        expected = quantize_int4(values, BLOCK, means[name].float().numpy(), FORMAT)
        np.testing.assert_array_equal(weight.scales, expected.scales)
        np.testing.assert_array_equal(weight.data, expected.data)
        assert not np.array_equal(
            np.asarray(weight.scales), np.asarray(quantize_int4(values, BLOCK, name=FORMAT).scales)
        )
    assert bundle.manifest.recipe["calibrate"] == INT4.calibrate


def test_without_real_input_scales_are_the_largest_weights_and_inspect_says_so(decoder: Path, tmp_path: Path) -> None:
    (decoder / "tokenizer.json").unlink(missing_ok=True)
    bundle, plain = (export(decoder, recipe, tmp_path / str(recipe.calibrate)) for recipe in (INT4, PLAIN))
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert {layer.reason for layer in layers.values() if layer.format == FORMAT} == {NOT_CALIBRATED}
    assert layers["lm_head"].reason == ""
    assert any(NOT_CALIBRATED in line for line in inspect(bundle).lines())
    assert all(layer.reason == "" for layer in plain.manifest.layers)
    for name, weight in packed_weights(bundle)[0].items():
        np.testing.assert_array_equal(weight.data, packed_weights(plain)[0][name].data)


def test_an_onnx_file_has_no_modules_to_watch(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", size)) for n, size in (("x", 64), ("y", 32)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32))
    bundle = export(path, INT4, tmp_path / "out", samples=tmp_path / "x.npz")
    assert [(layer.format, layer.reason) for layer in bundle.manifest.layers] == [(FORMAT, NOT_CALIBRATED)]


def half_dead() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Every other hidden unit is always zero, and is removed."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    with torch.no_grad():
        net[0].weight[::2] = 0
        net[0].bias[::2] = 0
    return net.eval(), {"input": torch.randn(2, 32)}


def test_what_dead_units_would_have_read_is_left_out(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((12, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=inputs)
    bundle = export("tests.e2e.test_calibrated_scales:half_dead", INT4, tmp_path / "out", samples=tmp_path / "x.npz")
    net: Any = half_dead()[0]
    with torch.no_grad():
        hidden = net[:2](torch.from_numpy(inputs))[:, 1::2]
    expected = quantize_int4(net[2].weight.detach().numpy()[:, 1::2], BLOCK, hidden.square().mean(0).numpy(), FORMAT)
    stored = packed_weights(bundle)[0]["2"]
    assert stored.shape == (16, 32)
    np.testing.assert_allclose(np.asarray(stored.scales), np.asarray(expected.scales), rtol=1e-5)
