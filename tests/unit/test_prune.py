"""Magnitude pruning: how much becomes zero, what, when, and that it stays so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods import Pruner, Pruning
from edgekit.methods.prune import largest, two_of_four


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))


def trained(net: nn.Module, pruner: Pruner, steps: int) -> list[float]:
    """The share of zeros after each step."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    zeros = []
    for step in range(steps):
        torch.manual_seed(step)
        net(torch.randn(8, 3, 4, 4)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        zeros.append(pruner.zeros())
    return zeros


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0, 0.99), st.integers(0, 9), st.booleans())
def test_the_smallest_go_and_no_more_than_asked(sizes: list[int], sparsity: float, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {str(i): torch.randn(size, 3, generator=generator) for i, size in enumerate(sizes)}
    if ties:
        weights = {name: w.round() for name, w in weights.items()}
    masks = largest(weights, sparsity)
    kept = torch.cat([weights[n][m].abs() for n, m in masks.items()])
    gone = torch.cat([weights[n][~m].abs() for n, m in masks.items()])
    assert len(gone) == round(sparsity * 3 * sum(sizes))
    assert not len(gone) or not len(kept) or gone.max() <= kept.min()


def test_one_shot_and_then_held() -> None:
    net = model()
    biases = [p.detach().clone() for p in net.parameters() if p.ndim == 1]
    pruner = Pruner(net, Pruning(sparsity=0.75))
    assert pruner.zeros() == pytest.approx(0.75, abs=0.002)
    assert all(torch.equal(b, p) for b, p in zip(biases, (p for p in net.parameters() if p.ndim == 1), strict=True))
    where = {name: w == 0 for name, w in pruner.weights.items()}
    trained(net, pruner, 5)
    assert all(torch.equal(where[name], w == 0) for name, w in pruner.weights.items())


def test_layers_can_share_alike() -> None:
    net = model()
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(1e-3)
    apart = Pruner(net, Pruning(sparsity=0.5, scope="layer"))
    assert [float((w == 0).float().mean()) for w in apart.weights.values()] == [0.5, 0.5]
    together = Pruner(model(), Pruning(sparsity=0.5))
    assert abs(float((together.weights["0.weight"] == 0).float().mean()) - 0.5) > 0.02


def test_the_gradual_schedule() -> None:
    net = model()
    pruner = Pruner(net, Pruning(sparsity=0.8, steps=20, every=5))
    assert pruner.zeros() == 0
    zeros = trained(net, pruner, 24)
    assert zeros[3] == 0 and zeros == sorted(zeros)
    for step in (5, 10, 15, 20):
        assert zeros[step - 1] == pytest.approx(0.8 * (1 - (1 - step / 20) ** 3), abs=0.003)
    assert len(set(zeros[19:])) == 1  # renewed no more


def test_an_early_end_of_the_schedule() -> None:
    net = model()
    pruner = Pruner(net, Pruning(sparsity=0.8, steps=20, every=5))
    zeros = trained(net, pruner, 10)
    pruner.hold()
    assert set(trained(net, pruner, 12)) == {zeros[-1]}


def test_two_of_four_keeps_the_two_largest() -> None:
    weight = torch.tensor([[3.0, -4.0, 1.0, 0.5, 0.1, 0.2, 0.3, -0.4, 9.0], [1.0, 1.0, 1.0, 1.0, 0, 0, 0, 7, 9.0]])
    mask = two_of_four(weight)
    assert mask[0].tolist() == [True, True, False, False, False, False, True, True, True]
    assert [int(mask[1, i : i + 4].sum()) for i in (0, 4)] == [2, 2] and bool(mask[1, 7])
    net = model()
    pruner = Pruner(net, Pruning(pattern="2:4"))
    trained(net, pruner, 3)
    rows = pruner.weights["4.weight"]
    assert int((rows.reshape(len(rows), -1, 4) != 0).sum(2).max()) == 2
    with pytest.raises(UnsupportedError, match=r"2:4: a weight \[4, 3\] has rows shorter than 4"):
        two_of_four(torch.ones(4, 3))


def test_excluded_weights_stay() -> None:
    net = model()
    pruner = Pruner(net, Pruning(sparsity=0.9, exclude=("0.*",)))
    assert list(pruner.weights) == ["4.weight"] and int((net.get_parameter("0.weight") == 0).sum()) == 0
    with pytest.raises(
        UsageError, match=r"exclude: 'head\*' fits no weight; weights are named like 0.weight, 4.weight"
    ):
        Pruner(net, Pruning(exclude=("head*",)))


def test_pruning_goes_on_where_it_stopped() -> None:
    whole, parted = model(), model()
    one = Pruner(whole, Pruning(sparsity=0.8, steps=12, every=4))
    two = Pruner(parted, one.pruning)
    for pruner, net in ((one, whole), (two, parted)):
        trained(net, pruner, 6)
    three = Pruner(parted, one.pruning)
    three.load_state_dict(two.state_dict())
    trained(whole, one, 6), trained(parted, three, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))
    with pytest.raises(UsageError, match=r"masks: 0.weight .* is no weight of this model"):
        Pruner(nn.Linear(8, 8), one.pruning).load_state_dict(three.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0 is not a share of at least 0 and below 1"),
        ({"steps": 0}, "steps 0, every 10: both are at least 1"),
        ({"scope": "row"}, "scope 'row', pattern '': give one of global, layer"),
        ({"pattern": "1:4"}, "pattern '1:4'"),
    ],
)
def test_settings_that_are_none(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruning(**changes)  # type: ignore[arg-type]
