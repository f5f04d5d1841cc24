"""Dead units planted in tiny models of several architectures: all found, answers as before, and bundles that verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.frontend import decoder, generic
from edgekit.frontend.inputs import resolve
from edgekit.frontend.source import ModuleSource
from edgekit.inspection import inspect
from edgekit.parity import verify
from edgekit.passes import pipeline
from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.recipe import Recipe
from edgekit.runtime.decoder import Decoder
from edgekit.spec.facts import facts_of
from tests.support.dead_units import copied
from tests.support.tiny_decoders import DECODERS
from tests.support.tiny_decoders import build as tiny

TOLERANCE = 1e-6
HEAD = 16


@dataclass(frozen=True)
class Planted:
    """A model with dead units: how many of each kind should go, by unit; ``stays`` are words of reasons in the table."""

    model: nn.Module
    inputs: dict[str, Tensor]
    expected: dict[str, int]
    stays: tuple[str, ...] = ()
    kv_heads: list[int] = field(default_factory=list)


def _ids(count: int = 20) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 97, (1, count), generator=torch.Generator().manual_seed(0))}


def _zero(*slices: Tensor) -> None:
    with torch.no_grad():
        for part in slices:
            part.zero_()


def llama() -> Planted:
    """SmolLM2-like. Of layer 1 a query head of each group goes; a third head is alone and stays."""
    model: Any = tiny("Llama", {"num_attention_heads": 8, "head_dim": HEAD, "max_position_embeddings": 96})
    first, second = model.model.layers
    _zero(first.mlp.gate_proj.weight[3], first.mlp.up_proj.weight[5:7], first.mlp.down_proj.weight[:, 9])
    _zero(first.self_attn.v_proj.weight[HEAD:])  # group 1: query heads 4 to 7
    columns = second.self_attn.o_proj.weight.view(64, 8, HEAD)
    _zero(columns[:, 0], columns[:, 1], columns[:, 5])
    _zero(second.mlp.down_proj.weight[7])  # a row of zeros: residual width
    expected = {"hidden unit": 4, "query head": 4 + 2, "key-value head": 1}
    stays = (
        "GroupQueryAttention needs as many query heads for each key-value head",
        "residual width: as wide as the table model.embed_tokens",
    )
    return Planted(model, _ids(), expected, stays, [1, 2])


def qwen3() -> Planted:
    model: Any = tiny(*DECODERS["qwen3"])
    first = model.model.layers[0]
    _zero(
        first.mlp.gate_proj.weight[0],
        first.mlp.gate_proj.weight[95],
        first.self_attn.v_proj.weight[:HEAD],
        first.self_attn.q_proj.weight[-HEAD:],
    )
    stays = ("self_attn.o_proj reads it, and it varies",)  # a query of zeros attends to all alike
    return Planted(model, _ids(), {"hidden unit": 2, "query head": 2, "key-value head": 1}, stays, [1, 2])


def gpt2() -> Planted:
    """One weight for query, key and value, cut apart; biases, GELU."""
    model: Any = tiny(*DECODERS["gpt2"])
    block = model.transformer.h[0]
    _zero(block.mlp.c_fc.weight[:, 4], block.mlp.c_proj.weight[9])
    _zero(block.attn.c_proj.weight[HEAD : 2 * HEAD])
    value = slice(128 + 3 * HEAD, 128 + 4 * HEAD)
    _zero(block.attn.c_attn.weight[:, value])  # its bias stays: a constant head
    return Planted(model, _ids(), {"hidden unit": 2, "query head": 2, "key-value head": 2}, (), [2, 4])


def phi() -> Planted:
    """Rotates a part of each head."""
    model: Any = tiny("Phi", {**DECODERS["phi"][1], "num_hidden_layers": 1})
    first = model.model.layers[0]
    _zero(first.mlp.fc1.weight[4], first.mlp.fc2.weight[:, 9], first.self_attn.dense.weight[:, 64:])
    return Planted(model, _ids(), {"hidden unit": 2, "query head": 2, "key-value head": 1}, (), [1])


def phi3() -> Planted:
    """Query, key and value in one weight, gate and up in another."""
    model: Any = tiny("Phi3", {"num_hidden_layers": 1})
    first = model.model.layers[0]
    _zero(first.mlp.gate_up_proj.weight[3], first.mlp.gate_up_proj.weight[96 + 5], first.mlp.down_proj.weight[:, 7])
    _zero(first.self_attn.qkv_proj.weight[96 + HEAD :])
    return Planted(model, _ids(), {"hidden unit": 3, "query head": 2, "key-value head": 1}, (), [1])


def bert() -> Planted:
    """A MiniLM-like encoder. A value head that is a bias alone stays: rows that are masked whole would tell."""
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    model: Any = BertModel(BertConfig(vocab_size=97, max_position_embeddings=32, **sizes)).eval()
    _randomize(model)
    first, second = model.encoder.layer
    _zero(first.intermediate.dense.weight[3], first.output.dense.weight[:, 7])
    _zero(first.attention.self.value.weight[8:16], first.attention.self.value.bias[8:16])
    _zero(second.attention.output.dense.weight[:, :8], second.attention.self.value.weight[24:])
    ids = _ids(14)["input_ids"].reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    expected = {"hidden unit": 2, "attention head": 2}
    return Planted(
        model, {"input_ids": ids, "attention_mask": mask}, expected, ("encoder.layer.1.attention.output.dense reads",)
    )


class Bottleneck(nn.Module):
    """A block of MobileNetV2: expand, depthwise, reduce, with batch norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.depthwise = (
            nn.Conv2d(width, 24, 1, bias=False),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
        )
        self.reduce, self.norms = (
            nn.Conv2d(24, width, 1, bias=False),
            nn.ModuleList(nn.BatchNorm2d(n) for n in (24, 24, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu6(self.norms[0](self.expand(x)))
        wide = functional.relu6(self.norms[1](self.depthwise(wide)))
        return x + self.norms[2](self.reduce(wide))  # type: ignore[no-any-return]


def mobilenet() -> Planted:
    """Batch norms are inside the convolutions by then. Padding keeps what is constant and not zero."""
    one: Any = Bottleneck(8)
    two: Any = Bottleneck(8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), one, two, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    _randomize(model)
    with torch.no_grad():
        for norm in (*one.norms, *two.norms):
            norm.bias.uniform_(0.1, 0.3)
        one.expand.weight[3], one.norms[0].bias[3] = 0, -0.1  # relu6 makes it 0
        one.depthwise.weight[5] = 0  # a constant for the next convolution, which has no padding
        one.reduce.weight[:, 7] = 0
        two.expand.weight[4] = 0  # a constant that meets the padding of the depthwise convolution
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Planted(model, {"input": pixels}, {"channel": 3}, ("2.reduce reads it, and it varies",))


class Branches(nn.Module):
    """Residual addition and concatenation; the linear layer reads every channel's 49 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.side, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Linear(14 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        stem = functional.relu(self.stem(x))
        body = functional.relu(self.norm(self.body(stem))) + stem
        both = torch.cat([body, functional.gelu(self.side(body))], dim=1)
        return self.head(functional.max_pool2d(both, 4).flatten(1))  # type: ignore[no-any-return]


def branches() -> Planted:
    model: Any = Branches().eval()
    _randomize(model)
    with torch.no_grad():
        model.stem.weight[[2, 5]] = 0.0
        model.stem.bias[[2, 5]] = -1.0  # relu makes it 0
        model.body.weight[2], model.body.bias[2] = 0.0, -0.5  # channel 2 is dead in both branches, 5 only in one
        model.norm.running_var.fill_(1.0), model.norm.weight[2].fill_(1.0), model.norm.bias[2].zero_()
        model.norm.running_mean[2].zero_()
        model.side.weight[1] = 0.0  # gelu of its bias goes through the pool into the head's bias
        model.head.weight[:, (8 + 3) * 49 : (8 + 4) * 49] = 0.0
    pixels = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Planted(model, {"x": pixels}, {"channel": 3}, ("added to another branch that is alive there",))


def mlp() -> Planted:
    """Alive: the second layer reads unit 0 of the first; a chain that ends in zeros."""
    model: Any = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Sigmoid(), nn.Linear(12, 5)).eval()
    _randomize(model)
    _zero(model[0].weight[4], model[2].weight[1:3], model[4].weight[:, 7], model[2].weight[:, 9])
    pixels = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    return Planted(model, {"input": pixels}, {"hidden unit": 2 + 3})


def _randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


ARCHITECTURES: dict[str, Callable[[], Planted]] = {
    "llama": llama,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "phi": phi,
    "phi3": phi3,
    "bert": bert,
    "mobilenet": mobilenet,
    "branches": branches,
    "mlp": mlp,
}


def _graph(planted: Planted) -> ir.Model:
    if "input_ids" in planted.inputs and hasattr(planted.model, "lm_head"):
        return decoder.build(planted.model)
    source = ModuleSource("factory", "tiny", "generic", "", module=planted.model, example_inputs=planted.inputs)
    return generic.build(source, resolve(source, None))


def _compiled(graph: ir.Model, remove: bool) -> ir.Model:
    model = copied(graph)
    for step in pipeline(Recipe.load("fp32")):
        if remove or not isinstance(step, RemoveDeadUnits):
            model = step(model).model
    return model


def _answers(model: ir.Model, inputs: dict[str, Tensor], path: Path) -> list[np.ndarray]:
    """All outputs; of a decoder also after a second call on its cache."""
    ir.save(model, path / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path / "model.onnx", options)
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values")]
    feeds: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    if not caches:
        return list(session.run(None, feeds))
    ids, keep = feeds["input_ids"], np.zeros(1, np.int64)
    past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in caches}
    first = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_to_keep": keep, **past})
    mask = np.ones((1, ids.shape[1] + 1), np.int64)
    past = dict(zip(past, first[1:], strict=True))
    second = session.run(None, {"input_ids": ids[:, :1], "attention_mask": mask, "logits_to_keep": keep, **past})
    return [first[0], second[0]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_planted_units_are_found_and_nothing_changes(name: str, tmp_path: Path) -> None:
    planted = ARCHITECTURES[name]()
    graph = _graph(planted)
    before = _answers(_compiled(graph, remove=False), planted.inputs, tmp_path)
    model = _compiled(graph, remove=True)
    for want, got in zip(before, _answers(model, planted.inputs, tmp_path), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * float(np.abs(want).max()))
    table = facts_of(model).dead_units
    found = Counter[str]()
    for row in table:
        found[row.unit] += row.count * row.removed
    assert {unit: count for unit, count in found.items() if count} == planted.expected
    reasons = [row.reason for row in table if not row.removed]
    assert all(any(words in reason for reason in reasons) for words in planted.stays), reasons
    if planted.kv_heads:
        decoder = facts_of(model).decoder
        assert decoder is not None and list(decoder.kv_heads) == planted.kv_heads


@pytest.mark.parametrize(("name", "recipe"), [("llama", "int4"), ("gpt2", "int8")])
def test_a_decoder_without_its_dead_units_verifies_and_generates(name: str, recipe: str, tmp_path: Path) -> None:
    """Layers of different widths; parity is with the compressed PyTorch model, which still has all units."""
    planted = ARCHITECTURES[name]()
    planted.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    bundle = export(str(tmp_path / "model"), recipe, tmp_path / "bundle", abis=[])
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    info = bundle.manifest.decoder
    assert info is not None and list(info.kv_heads) == planted.kv_heads
    runner = Decoder(bundle, max_length=32)
    whole = runner.run(planted.inputs["input_ids"].numpy(), keep=0)[0]
    runner.reset()
    steps = [runner.step(token).copy() for token in planted.inputs["input_ids"][0].tolist()]
    np.testing.assert_allclose(np.stack(steps), whole, atol=2e-3 * float(np.abs(whole).max()))
    lines = "\n".join(inspect(bundle).lines())
    assert "removed because they change no output: " in lines and "hidden units removed: " in lines


def factory_mlp() -> tuple[nn.Module, dict[str, Tensor]]:
    """For ``package.module:factory``."""
    planted = mlp()
    return planted.model, planted.inputs


def test_constants_folded_into_a_bias_are_in_the_reference_too(tmp_path: Path) -> None:
    bundle = export("tests.e2e.test_dead_units:factory_mlp", "int8", tmp_path / "bundle", abis=[])
    assert verify(bundle).parity.passed
    assert [layer.shape for layer in bundle.manifest.layers] == [(14, 20), (9, 14), (5, 9)]
    again = Bundle.open(tmp_path / "bundle").manifest.dead_units
    assert sum(units.count for units in again if units.removed) == 5
