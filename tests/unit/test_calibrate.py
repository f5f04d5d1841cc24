"""Calibration: the Hessians of what really goes in, after what was changed before; models it cannot follow are named."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edgekit.errors import CheckFailed, UnsupportedError, UsageError
from edgekit.low_rank import branched_layers, fold_branches
from edgekit.methods.calibrate import Group, blocks_of, groups_of, layer_by_layer, mean_squares
from edgekit.methods.eora import Compensation
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration, Method, compress_layers
from edgekit.methods.ternarize import Ternary
from tests.support.tiny_decoders import build


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        return x + cast(Tensor, self.out(torch.relu(self.a(x)) * self.b(x))) + shift


class Net(nn.Module):
    """Three blocks between two layers that are left alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for index, block in enumerate(self.blocks):
            h = block(h, shift=0.1 * index)
        return cast(Tensor, self.last(h))


def encoder() -> nn.Module:
    """A tiny BERT of two layers."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return BertModel(config, add_pooling_layer=False)


def batches(shape: tuple[int, ...] = (5, 6), count: int = 2) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, *shape, generator=random)} for _ in range(count)]


def halve(group: Group) -> None:
    for layer in group.layers.values():
        layer.weight.mul_(0.5)


@pytest.mark.parametrize("sequential", [True, False])
def test_the_hessian_of_what_goes_in(sequential: bool) -> None:
    """By running the whole model with everything before a group changed already, and nothing after it."""
    net, seen = Net(), dict[str, Tensor]()

    def change(group: Group) -> None:
        assert group.count == 40
        seen[group.name] = group.hessian.clone()
        halve(group)

    layer_by_layer(net, batches(), change, sequential=sequential)
    assert list(seen) == [f"blocks.{i}.{part}" for i in range(3) for part in ("a+b", "out")]
    other = Net()
    for name, found in seen.items():
        index, part = name.split(".")[1:]
        block: Any = other.blocks[int(index)]
        rows: list[Tensor] = []
        layer = block.a if part == "a+b" else block.out
        hook = layer.register_forward_pre_hook(
            lambda _, given, rows=rows: rows.append(given[0].reshape(-1, 8).double())
        )
        with torch.no_grad():
            if part == "a+b" or sequential:
                for batch in batches():
                    other(**batch)
                x = torch.cat(rows)
                torch.testing.assert_close(found, x.t() @ x, rtol=1e-4, atol=1e-4)
            if part == "a+b":
                block.a.weight.mul_(0.5), block.b.weight.mul_(0.5)
            else:
                block.out.weight.mul_(0.5)
        hook.remove()
    assert torch.equal(net.last.weight, Net().last.weight) and torch.equal(net.first.weight, Net().first.weight)


def test_a_model_without_blocks_is_one() -> None:
    net = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    assert list(blocks_of(net)) == [""]
    seen: list[str] = []
    layer_by_layer(net, [{"input": torch.randn(9, 6)}], lambda group: seen.append(group.name))
    assert seen == ["0", "2"]


def test_padding_is_left_out() -> None:
    class Padded(Net):
        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(x)

    net, counts = Padded(), list[int]()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    layer_by_layer(net, [{"x": torch.randn(2, 5, 6), "attention_mask": mask}], lambda group: counts.append(group.count))
    assert set(counts) == {4}


def test_mean_squares_are_the_diagonals_of_the_hessians() -> None:
    net, diagonals = Net(), dict[str, Tensor]()

    def look(group: Group) -> None:
        diagonals.update({name: group.hessian.diagonal() / group.count for name in group.layers})

    layer_by_layer(net, batches(), look)
    means = mean_squares(net, diagonals.keys() | {"nothing"}, batches())
    assert means.keys() == diagonals.keys()
    for name, mean in means.items():
        torch.testing.assert_close(mean, diagonals[name])


def test_mean_squares_without_padding_and_without_layers_that_nothing_reaches() -> None:
    class Padded(Net):
        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(x)

    net, x = Padded(), torch.randn(2, 5, 6)
    net.unused = nn.Linear(3, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    means = mean_squares(net, {"first", "unused"}, [{"x": x, "attention_mask": mask}])
    assert list(means) == ["first"]
    torch.testing.assert_close(means["first"], x[mask.bool()].double().square().mean(0))
    words = r"^blocks\.0\.a: its input is not finite on the calibration examples; the model cannot be calibrated$"
    with pytest.raises(CheckFailed, match=words):
        mean_squares(net, {"blocks.0.a"}, [{"x": torch.full((2, 5, 6), float("inf"))}])


def test_a_head_that_nobody_asks_for_is_not_computed() -> None:
    model: Any = build("Llama", {})
    ids = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    called: list[bool] = []
    model.lm_head.register_forward_hook(lambda *_: called.append(True))
    inner = mean_squares(model, {"model.layers.1.mlp.down_proj"}, [{"input_ids": ids}])
    assert not called
    both = mean_squares(model, {"model.layers.1.mlp.down_proj", "lm_head"}, [{"input_ids": ids}])
    assert called and both.keys() == {"model.layers.1.mlp.down_proj", "lm_head"}
    torch.testing.assert_close(inner["model.layers.1.mlp.down_proj"], both["model.layers.1.mlp.down_proj"])


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma2"])
def test_decoders(architecture: str) -> None:
    model: Any = build(architecture, {"head_dim": 16, "query_pre_attn_scalar": 16} if architecture == "Gemma2" else {})
    ids = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(0))
    groups = [{n.rpartition(".")[2] for n in g} for g in groups_of(model, {"input_ids": ids})]
    assert groups == 2 * [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]
    with torch.no_grad():
        before = model(ids).logits
    assert model.config.use_cache
    rows = compress_layers(model, [{"input_ids": ids}], Method("int4"))
    assert len(rows) == 8 and not branched_layers(model)
    with torch.no_grad():
        assert 0 < float((model(ids).logits - before).square().mean() / before.square().mean()) < 0.5


def test_encoders_and_every_method() -> None:
    ids = torch.randint(3, 60, (8, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(16) < torch.arange(9, 17)[:, None]).long()}
    for method in (
        Method("gptq", Gptq(3, 16)),
        Method(
            "ternarize",
            ternary=Ternary(planes=1, offset=True),
            compensation=Compensation("ternarize", rank=3, format="fp16"),
        ),
        Method("2:4", compensation=Compensation("2:4", bytes=9000, format="fp16")),
    ):
        model = encoder()
        rows = compress_layers(model, [batch], method, Calibration())
        assert all(row["layer"].count("+") in (0, 2) for row in rows)
        if method.compensation is not None:
            assert all(row["compensated"] <= row["svd"] for row in rows)
            assert all(row["compensated"] < row["error"] for row in rows)
            layers = branched_layers(model)
            query, key = (next(layer for n, layer in layers.items() if n.endswith(end)) for end in ("query", "key"))
            assert query.lora_A is not None and key.lora_A is not None
            assert query.lora_A.weight is key.lora_A.weight  # computed once
        if method.compensation is not None and method.compensation.bytes:
            assert (
                sum(row["bytes"] for row in rows)
                - sum(row["shape"][0] * -(-row["shape"][1] // 64) * 68 for row in rows)  # int8 in blocks of 64
                <= 9000
            )


@pytest.mark.parametrize("form", ["int8", "int4", "fp16"])
@pytest.mark.parametrize(
    ("of", "ternary"),
    [("ternarize", Ternary(planes=1, offset=True)), ("ternarize", Ternary(planes=2)), ("gptq", Ternary())],
)
def test_reported_errors_are_those_of_what_is_stored(of: str, ternary: Ternary, form: str) -> None:
    """From the layers as they are afterwards, on the inputs that they were compressed for."""
    net, given = Net(), batches((90, 6))
    before, hessian = copy.deepcopy(net), dict[str, Tensor]()
    layer_by_layer(
        copy.deepcopy(net), given, lambda group: hessian.update({group.name: group.hessian}), sequential=False
    )
    method = Method(of, Gptq(4, 16), ternary, Compensation(of, rank=2, format=form))
    row, *_ = compress_layers(net, given, method, Calibration(exclude=("blocks.0.out", "blocks.1.*", "blocks.2.*")))
    names = ("blocks.0.a", "blocks.0.b")
    fold_branches(net)
    old, new = (torch.cat([m.get_parameter(f"{n}.weight").detach() for n in names]).double() for m in (before, net))
    h = hessian[row["layer"]]
    assert float(((old - new) @ h * (old - new)).sum() / (old @ h * old).sum()) == pytest.approx(
        row["compensated"], rel=1e-3
    )


def test_a_named_input_is_followed() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(input=x)  # type: ignore[no-any-return]

    seen: list[int] = []
    layer_by_layer(Named(), [{"x": torch.randn(9, 6)}], lambda group: seen.append(group.count))
    assert seen == [9]


def test_a_hessian_that_cannot_be_inverted() -> None:
    net = nn.Sequential(nn.Linear(64, 8))
    x = torch.randn(2, 64).repeat(4, 1) * torch.logspace(-6, 6, 64)
    with pytest.raises(
        CheckFailed, match=r"^0: the Hessian of its inputs cannot be inverted with damping 1e-16; raise damping"
    ):
        compress_layers(net, [{"input": x}], Method("gptq", Gptq(damping=1e-16)))


def test_models_that_cannot_be_followed() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            for block in (*self.blocks, self.blocks[0]):
                h = block(h)
            return cast(Tensor, h)

    class Skips(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return cast(Tensor, self.blocks[1](self.blocks[0](h) * 2))

    class Between(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            for block in self.blocks:
                h = block(h) * 1.5
            return cast(Tensor, h)

    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[1].get_submodule("a").weight = self.blocks[0].get_parameter("a.weight")

    class Transposed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[1].a = Conv1D(8, 8)

    for model, message in (
        (Twice(), r"^blocks\.0: not run once in a pass; calibration goes block by block"),
        (Between(), r"^blocks\.1: its input is not the output of the block before it"),
        (Skips(), r"^blocks\.1: its input is not the output of the block before it"),
        (Tied(), r"^blocks\.0\.a: shares its weight with blocks\.1\.a; leave it out with exclude"),
        (Transposed(), r"^blocks\.1\.a \(Conv1D\): only nn\.Linear layers are calibrated"),
        (nn.Sequential(nn.ReLU()), r"Sequential: no linear layer in its blocks"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            layer_by_layer(model, batches(), halve)


def test_layers_that_nothing_reaches() -> None:
    net = Net()
    net.blocks[1].spare = nn.Linear(8, 8)
    with pytest.raises(UnsupportedError, match=r"^blocks\.1\.spare: the calibration examples never reach it"):
        layer_by_layer(net, batches(), halve)
    layer_by_layer(net, batches(), halve, exclude=["*.spare"])
    with pytest.raises(UsageError, match=r"exclude: '\*\.query' fits no layer; layers are named like blocks\.0\.a"):
        layer_by_layer(net, batches(), halve, exclude=["*.query"])


def test_numbers_that_are_not_finite() -> None:
    net = Net()
    net.get_parameter("blocks.1.a.bias").data[0] = float("inf")
    with pytest.raises(CheckFailed, match=r"^blocks\.1\.out: its input is not finite on the calibration examples"):
        layer_by_layer(net, batches(), halve)
    with pytest.raises(UsageError, match="calibration: no examples"):
        layer_by_layer(net, [], halve)
