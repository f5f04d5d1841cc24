"""Rate-aware quantization: its distortion is the output's, its choice the best one, its budgets are kept, zeros stay."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgekit.coding.streams import coded_bits
from edgekit.compression import compress
from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, RecipeError, UnsupportedError, UsageError
from edgekit.lowbit.grid import grid_steps
from edgekit.methods.masks import matrices, zero_share
from edgekit.methods.rate_quantize import (
    Budget,
    Choice,
    RateQuantizer,
    candidates,
    codes_of,
    layers_of,
    quantized,
    row_steps,
)
from edgekit.methods.training import Training
from tests.unit.test_compress import CLASSIFIER, POINTS, SENTENCES, decoder, encoder  # noqa: F401

BITS = Budget(bits=3)


class Everything(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 5)
        self.conv1d = Conv1D(7, 5)
        self.image = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        table = self.table(ids)
        linear = self.linear(table)
        image = self.image(pixels)
        return {
            "table": table, "linear": linear, "conv1d": self.conv1d(linear), "image": image, "grouped": self.grouped(image)
        }  # fmt: skip


def inputs() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "ids": torch.randint(0, 11, (3, 4), generator=generator),
            "pixels": torch.randn(3, 2, 9, 9, generator=generator),
        }
        for _ in range(3)
    ]


def outputs(net: Everything) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = [net(**batch) for batch in inputs()]
    return {name: torch.cat([f[name] for f in found]) for name in found[0]}


@pytest.mark.parametrize("name", ["table", "linear", "conv1d", "image"])
def test_distortion_is_the_error_of_the_output(name: str) -> None:
    net = Everything()
    layer = next(found for found in layers_of(net, inputs(), BITS) if found.name == name)
    change = torch.randn(layer.matrix.shape, generator=torch.Generator().manual_seed(2)) * 0.01
    before = outputs(net)[name]
    with torch.no_grad():
        moved = layer.matrix + change
        layer.parameter.copy_((moved.t() if layer.transposed else moved).reshape(layer.parameter.shape))
    error = outputs(net)[name] - before
    axis = 1 if name == "image" else -1
    assert layer.energy(change) == pytest.approx(float(error.square().sum(axis).mean()), rel=1e-3)


def test_moments_can_be_the_diagonal_or_none() -> None:
    layers = {
        kind: layers_of(Everything(), inputs(), Budget(bits=3, moments=kind)) for kind in ("full", "diagonal", "none")
    }
    full, diagonal, none = (layers[kind][1].hessian for kind in layers)
    assert full is not None and diagonal is not None and none is None
    torch.testing.assert_close(full.diagonal(), diagonal)
    assert [layer.hessian is None for layer in layers["full"]] == [True, False, False, False, True]


def test_the_choice_is_the_best_of_all_combinations() -> None:
    quantizer = RateQuantizer(Everything(), inputs(), BITS)
    quantizer.choices = [found[::9] for found in quantizer.choices[:3]]
    quantizer.layers = quantizer.layers[:3]
    for lam in (1e-4, 1e-2, 1.0):

        def cost(chosen: Any, lam: float = lam) -> float:
            return float(sum(c.distortion for c in chosen) + lam * quantizer.bits(chosen) / quantizer.count)

        best = min(itertools.product(*quantizer.choices), key=cost)
        assert cost(quantizer.choose(lam)) == pytest.approx(cost(best))


def test_budgets_of_bits_are_kept_and_used() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 10))
    with torch.no_grad():
        net.get_parameter("2.weight").mul_(torch.rand(96, 96) > 0.6)
    batches = [{"input": torch.randn(64, 96) * torch.linspace(0.05, 3, 96)}]
    quantizer = RateQuantizer(net, batches, BITS)
    last = float("inf")
    for bits in (1.0, 2.0, 3.0, 5.0):
        chosen = quantizer.within_bits(bits * quantizer.count)
        assert 0.85 * bits <= quantizer.bits(chosen) / quantizer.count <= bits
        noise = sum(choice.distortion for choice in chosen)
        assert noise < last
        last = noise
    with pytest.raises(UsageError, match=r"budget: 0.001 bits a weight; the coarsest steps take 0\.\d+; allow more"):
        quantizer.within_bits(0.001 * quantizer.count)


def test_it_is_better_than_one_step_for_all() -> None:
    """At the same bits: less noise than any single step, and with moments less than without."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 32))
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(5.0)
    batches = [{"input": torch.randn(256, 96) * torch.linspace(0.05, 3, 96)}]
    quantizer = RateQuantizer(net, batches, BITS)

    def at(step: float) -> list[Choice]:
        found = []
        for layer in quantizer.layers:
            choices = [c for c in candidates(layer) if c.dead_zone == 0.5]
            found.append(min(choices, key=lambda c: abs(c.step - step)))
        return found

    for step in (0.03, 0.1):
        equal = at(step)
        chosen = quantizer.within_bits(quantizer.bits(equal))
        assert sum(c.distortion for c in chosen) < 0.95 * sum(c.distortion for c in equal)


def test_zeros_stay_and_values_lie_on_the_grid() -> None:
    net = Everything()
    with torch.no_grad():
        for weight in matrices(net).values():
            weight.mul_(torch.rand(weight.shape) > 0.5)
    before = {name: w == 0 for name, w in matrices(net).items()}
    quantizer = RateQuantizer(net, inputs(), BITS)
    chosen = quantizer.within_bits(3 * quantizer.count)
    quantizer.apply(chosen)
    assert zero_share(matrices(net)) >= 0.5
    for name, weight in matrices(net).items():
        assert bool((weight[before[name]] == 0).all())
    for layer, choice in zip(quantizer.layers, chosen, strict=True):
        steps = row_steps(layer.matrix, choice.step)
        codes = layer.matrix / steps
        assert torch.equal(codes, codes.round()) and float(codes.abs().max()) <= 127
        assert bool((steps / choice.step).log2().frac().eq(0).all())
    quantizer.restore()
    assert all(torch.equal(layer.matrix, old) for layer, old in zip(quantizer.layers, quantizer.originals, strict=True))


def test_rows_with_outliers_have_a_doubled_step() -> None:
    layer = layers_of(nn.Sequential(nn.Linear(64, 8)), [], Budget(bits=1, moments="none"))[0]
    torch.manual_seed(0)
    with torch.no_grad():
        layer.parameter.normal_()
        layer.parameter[3, 5] = 300.0
    finest = min(candidates(layer), key=lambda choice: choice.step)
    assert finest.step < 300 / 127 / 8
    found = quantized(layer.matrix, finest.step, 0.5)
    assert float((found[3, 5] - 300).abs()) < 2.4 and float((found[:3] - layer.matrix[:3]).abs().max()) < 0.02
    assert grid_steps(found.numpy(), 127).all()


def test_what_matters_more_gets_more_bits() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"loud": nn.Linear(64, 64), "quiet": nn.Linear(64, 64)})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, net["loud"](x) + 0.03 * net["quiet"](x))

    model, batches = Both(), [{"x": torch.randn(256, 64)}]
    quantizer = RateQuantizer(model, batches, BITS, lambda batch: model(**batch))
    loud, quiet = quantizer.within_bits(3 * quantizer.count)
    assert loud.bits > 1.8 * quiet.bits
    unaware = RateQuantizer(model, batches, BITS)
    errors = []
    for found in (quantizer, unaware):
        wanted = model(batches[0]["x"]).detach()
        found.apply(found.within_bits(3 * found.count))
        errors.append(float((model(batches[0]["x"]).detach() - wanted).square().sum()))
        found.restore()
    assert errors[0] < 0.5 * errors[1]


def test_dead_zones_and_clamping() -> None:
    values = torch.tensor([0.0, 0.55, -0.55, 0.65, 1.2, 300.0, -300.0])
    assert codes_of(values, 1.0, 0.5).tolist() == [0, 1, -1, 1, 1, 127, -127]
    assert codes_of(values, 1.0, 0.6).tolist() == [0, 0, 0, 1, 1, 127, -127]


def test_layers_of_zeros_and_unused_ones() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        net.get_parameter("0.weight").zero_()
        net.get_parameter("0.bias").zero_()
    quantizer = RateQuantizer(net, [{"input": torch.ones(2, 4)}], BITS)  # the second layer's input is zero
    quantizer.apply(quantizer.within_bits(4 * quantizer.count))
    first, second = net.get_parameter("0.weight"), net.get_parameter("1.weight")
    assert not first.any() and bool(torch.isfinite(second).all())


def test_an_accuracy_budget_and_an_exact_export(tmp_path: Path) -> None:
    from edgekit.exporter import export
    from edgekit.golden import packed_weights
    from edgekit.lowbit.formats import CODECS

    train = Compression(1, Data((POINTS,)), "none", Training(steps=80, learning_rate=0.01))
    compress(CLASSIFIER, train, tmp_path / "trained")
    config = tmp_path / "q.yaml"
    config.write_text(f'version: 1\nmethod: rate-quantize\ndata: {{train: ["{POINTS}"]}}\nquantize: {{loss: 0.1}}\n')
    result = compress(f"{CLASSIFIER}@{tmp_path / 'trained'}", config, tmp_path / "small")
    before, after = result.history.evaluations
    assert before["loss"] != after["loss"] <= 1.1 * before["loss"]
    assert result.after.total.entropy < 5 and result.after.total.coded < 7 and result.history.losses == []  # type: ignore[operator]
    document = json.loads((tmp_path / "small" / "compress.json").read_text())
    assert [layer["layer"] for layer in document["layers"]] == ["0", "3", "5"] and "training" not in document[
        "settings"
    ]
    assert result.after.layers[1].step == document["layers"][1]["step"]
    weights = load_file(tmp_path / "small" / "model.safetensors")
    bundle = export(result.exportable, "int8", tmp_path / "bundle", abis=[])
    packed, _ = packed_weights(bundle)
    for name, tensor in packed.items():
        kept = CODECS[tensor.format].dequantize(tensor)
        whole = weights[f"{name}.weight"].numpy()
        assert (
            set(np.unique(kept)) <= set(np.unique(whole)) if kept.shape != whole.shape else np.array_equal(kept, whole)
        )


def test_a_tied_decoder(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    config = tmp_path / "c.yaml"
    config.write_text(
        "version: 1\nmethod: rate-quantize\ndata: {train: [a.txt], length: 32}\nquantize: {bytes: 5000, examples: 16}\n"
    )
    result = compress(str(decoder), config, tmp_path / "out")
    names = [layer["layer"] for layer in json.loads((tmp_path / "out" / "compress.json").read_text())["layers"]]
    assert "lm_head" in names and "model.embed_tokens" not in names
    assert result.after.total.entropy * result.after.total.count / 8 <= 5000
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(torch.unique(weights["model.embed_tokens.weight"])) < 100


def test_an_encoder_keeps_its_embeddings(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    (tmp_path / "a.txt").write_text(SENTENCES)
    config = Compression(
        1, Data((str(tmp_path / "a.txt"),), length=16), "rate-quantize",
        quantize=Budget(loss=0.01, moments="diagonal", exclude=("*embeddings*",)),
    )  # fmt: skip
    result = compress(str(encoder), config, tmp_path / "out")
    before, after = result.history.evaluations
    assert before["cosine"] == pytest.approx(1.0, abs=1e-5) and 0.99 <= after["cosine"] < before["cosine"]
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "compress.quantize: missing; give for example {bits: 3} or {loss: 0.01}"),
        ("quantize: {bits: 3}\n", "compress.data: missing; rate-quantize needs examples"),
        ("quantize: {bits: 3, loss: 0.1}\n", "bits 3.0, bytes None, loss 0.1: give exactly one of them"),
        ("quantize: {bytes: 0}\n", "bytes 0, loss None: give exactly one of them, above 0"),
        (
            "quantize: {bits: 3, moments: hessian}\n",
            "moments 'hessian', examples 256: give one of full, diagonal, none",
        ),
    ],
)
def test_budgets_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"version: 1\nmethod: rate-quantize\n{text}")
    with pytest.raises((RecipeError, UsageError), match=message):
        Compression.load(path)


def test_what_cannot_be_quantized(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no linear, convolution or embedding layer"):
        layers_of(nn.LayerNorm(4), [], BITS)
    with pytest.raises(
        UsageError, match=r"exclude: 'head\*' fits no layer; layers are named like table, linear, conv1d"
    ):
        layers_of(Everything(), [], Budget(bits=3, exclude=("head*",)))
    quantizer = RateQuantizer(Everything(), inputs(), BITS)
    with pytest.raises(CheckFailed, match=r"budget: the finest steps \(int8\) already exceed a loss of 1.0000"):
        quantizer.within_loss(lambda: 2.0, 1.0)


def test_coded_bits_are_near_the_entropy() -> None:
    random = np.random.default_rng(0)
    for deviation, bits in ((1.0, 2.107), (10.0, 5.371), (300.0, 10.28)):
        codes = np.rint(random.normal(size=100_000) * deviation).astype(np.int32)
        assert coded_bits(codes) / codes.size == pytest.approx(bits, rel=0.06)  # type: ignore[operator]
    assert (
        coded_bits(np.array([1 << 15], np.int32)) is None and coded_bits(np.array([-(1 << 15)], np.int32)) is not None
    )
