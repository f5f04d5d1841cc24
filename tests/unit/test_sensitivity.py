"""The sensitivity scan: what each layer alone costs, and the best choice within a budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.errors import UsageError
from edgekit.lowbit.formats import CODECS
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.sensitivity import Cost, Option, Table, choose, distance, scan, to_recipe
from edgekit.recipe import Recipe
from tests.support.tiny_decoders import build


def test_each_layer_alone() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(64, 32), nn.Linear(32, 8)
    net = nn.Sequential(first, nn.ReLU(), second).requires_grad_(False)
    x = torch.randn(50, 64)
    target = net(x).detach()
    originals = [p.clone() for p in net.parameters()]

    def evaluate() -> float:
        return float((net(x) - target).square().mean())

    groups = [{"0": first}, {"2": second}]
    table = scan(groups, evaluate, [("int8", 64), ("int4", 64)])
    assert all(torch.equal(a, b) for a, b in zip(originals, net.parameters(), strict=True))
    for name, layer in (("0", first), ("2", second)):
        before = layer.weight.detach().clone()
        for kind in ("int8", "int4"):
            packed = CODECS[kind].quantize(before.numpy(), 64)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(np.array(CODECS[kind].dequantize(packed))))
            assert table[name][kind, 64] == Cost(packed.nbytes, evaluate())
            layer.weight.data = before.clone()
        assert table[name]["int4", 64].loss > table[name]["int8", 64].loss


def test_the_distance_is_to_the_answers_before() -> None:
    model: Any = build("Llama", {"num_hidden_layers": 1})
    examples = Examples({"input_ids": torch.arange(24).view(2, 12)})
    measure = distance(LANGUAGE, model, examples)
    assert abs(measure()) < 1e-6
    with torch.no_grad():
        before = model(input_ids=examples.arrays["input_ids"]).logits[:, :-1].log_softmax(-1)
        model.get_output_embeddings().weight.mul_(1.5)
        after = model(input_ids=examples.arrays["input_ids"]).logits[:, :-1].log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert expected > 0 and measure() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 300), st.integers(0, 50))
def test_within_the_budget_and_nearly_the_best(extra: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    options: list[Option] = [("int4", 128), ("int4", 32), ("int8", 64)]
    table: Table = {
        f"layer{i}": {
            option: Cost(int(size), float(loss))
            for option, size, loss in zip(
                options, np.sort(random.integers(10, 99, 3)), random.exponential(1, 3), strict=True
            )
        }
        for i in range(4)
    }
    least = sum(min(cost.bytes for cost in costs.values()) for costs in table.values())
    chosen = choose(table, least + extra)
    size = sum(table[name][option].bytes for name, option in chosen.items())
    loss = sum(table[name][option].loss for name, option in chosen.items())
    assert size <= least + extra
    # At the bytes that were really used, one exchange of formats (the dearest loss of all) is the most that can be missed.
    best = min(
        sum(cost.loss for cost in picked)
        for picked in itertools.product(*(costs.values() for costs in table.values()))
        if sum(cost.bytes for cost in picked) <= least + extra
    )
    assert loss <= best + max(cost.loss for costs in table.values() for cost in costs.values())
    everything = choose(table, 10_000)
    for name, costs in table.items():
        assert costs[everything[name]].loss == min(cost.loss for cost in costs.values())


def test_the_layer_that_matters_gets_the_bits() -> None:
    options: list[Option] = [("int4", 64), ("int8", 64)]
    table: Table = {
        "a": dict(zip(options, (Cost(10, 5.0), Cost(20, 0.1)), strict=True)),
        "b+c": dict(zip(options, (Cost(10, 0.2), Cost(20, 0.1)), strict=True)),
    }
    chosen = choose(table, 30)
    assert chosen == {"a": ("int8", 64), "b+c": ("int4", 64)}
    with pytest.raises(UsageError, match="sensitivity: 19 bytes; the smallest formats take 20; allow as many or more"):
        choose(table, 19)
    with pytest.raises(UsageError, match="sensitivity: 0 groups, 1 candidates"):
        scan([], lambda: 0.0, [("int8", 64)])
    rules = to_recipe(chosen, "mixed").rules
    assert [(r.match, r.format) for r in rules[:3]] == [("a", "int8"), ("b", "int4"), ("c", "int4")]


def test_the_recipe_can_be_written(tmp_path: Path) -> None:
    recipe = to_recipe({"a": ("int4", 32)}, "mixed")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe.to_dict(), "rules": [vars(r) for r in recipe.rules]}))
    assert Recipe.load(tmp_path / "r.yaml").rules == recipe.rules
