"""Rate-constrained training: the formulas, exact zeros, resuming, and the Trainer's callback."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods import Backslash, BackslashCallback, Rate
from edgekit.methods.gaussian import moment_ratio, shape_of_moments
from tests.support.gaussian import entropy_bits


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.ReLU(), nn.Linear(30, 10))
    for layer in (net[0], net[3]):
        nn.init.normal_(layer.weight, std=0.1)  # type: ignore[arg-type]
    return net


def sampled(nu: float, count: int = 200_000) -> np.ndarray:
    """Values of a generalized Gaussian of scale 1."""
    random = np.random.default_rng(3)
    return np.asarray(random.gamma(1 / nu, size=count) ** (1 / nu) * random.choice([-1.0, 1.0], count))


@pytest.mark.parametrize(("nu", "ratio"), [(0.5, 10 / 3), (1.0, 2.0), (2.0, math.pi / 2)])
def test_ratios_of_known_distributions(nu: float, ratio: float) -> None:
    assert moment_ratio(nu) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("nu", [0.5, 0.8, 1.0, 1.3, 2.0])
def test_the_shape_is_read_off_samples(nu: float) -> None:
    values = sampled(nu)
    found = shape_of_moments(len(values), float(np.abs(values).sum()), float((values**2).sum()))
    assert found == pytest.approx(nu, abs=0.03)
    assert shape_of_moments(10, 0.0, 0.0) == 0.1


@pytest.mark.parametrize("nu", [0.7, 1.0, 2.0])
def test_the_entropy_of_rounded_samples(nu: float) -> None:
    values = sampled(nu, 400_000)
    step = float(values.std()) / 20
    _, counts = np.unique(np.round(values / step), return_counts=True)
    chances = counts / counts.sum()
    assert entropy_bits(nu, float(values.std()), step) == pytest.approx(-(chances * np.log2(chances)).sum(), abs=0.02)


def test_the_authors_update() -> None:
    net = model()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    rate = Backslash(net, Rate(steps=100, lam=5.0, variant="decoupled", epsilon=1.0))
    matrices = [before["0.weight"], before["3.weight"]]
    everything = torch.cat([m.flatten() for m in matrices]).double()
    count, nu = everything.numel(), rate.shape
    expected = float(count * (everything**2).sum() / everything.abs().sum() ** 2)
    assert moment_ratio(nu) == pytest.approx(expected, abs=0.01)
    rate.step()
    for name, parameter in net.named_parameters():
        old = before[name]
        pulled = old - 5.0 * nu / count * old.sign() * (old.abs() + 1.0) ** (nu - 1)
        torch.testing.assert_close(parameter.detach(), pulled if old.ndim == 2 else old)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_bits_variant_follows_the_gradient_of_the_bits(scope: str) -> None:
    net = model()
    rate = Backslash(net, Rate(steps=100, lam=1e-4, variant="bits", epsilon=1e-9, scope=scope))
    weights = list(rate.weights.values())
    shapes = [rate.shape] * 2 if scope == "global" else [rate._shape([m]) for m in rate._moments().values()]
    bits = sum(
        w.numel() / rate.count * w.abs().pow(nu).mean().log2() / nu for w, nu in zip(weights, shapes, strict=True)
    )
    bits.backward()  # type: ignore[union-attr]
    expected = [w.detach() - 1e-4 * w.grad for w in weights]  # type: ignore[operator]
    rate.step()
    for weight, wanted in zip(weights, expected, strict=True):
        moved = weight != 0
        torch.testing.assert_close(weight.detach()[moved], wanted[moved], rtol=1e-5, atol=1e-7)


def test_proximal_steps_stop_at_zero_and_zeros_can_be_held() -> None:
    net = model()
    rate = Backslash(net, Rate(steps=50, strength=2.0))
    for _ in range(50):
        rate.step()
    assert 0.5 < rate.zeros() < 1.0
    held = {n: w == 0 for n, w in rate.weights.items()}
    rate.hold()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        net(torch.randn(8, 20)).pow(2).mean().backward()
        optimizer.step()
        rate.step()
    assert all(bool((rate.weights[n][zero] == 0).all()) for n, zero in held.items())
    assert any(bool((rate.weights[n][~zero] != 0).any()) for n, zero in held.items())
    assert rate.done == 50


@pytest.mark.parametrize("epsilon", [1.0, 0.01, 1e-4])
@pytest.mark.parametrize("variant", ["decoupled", "bits"])
def test_a_step_moves_weights_by_the_strength_on_average(variant: str, epsilon: float) -> None:
    net = model()
    rate = Backslash(net, Rate(steps=1000, strength=0.5, variant=variant, epsilon=epsilon))
    before = torch.cat([w.detach().flatten().clone() for w in rate.weights.values()])
    rate.step()
    after = torch.cat([w.detach().flatten() for w in rate.weights.values()])
    assert float((before - after).abs().mean()) == pytest.approx(0.5 * float(before.std()) / 1000, rel=0.05)


@pytest.mark.parametrize(("group", "dim"), [("row", 1), ("column", 0)])
def test_whole_groups_become_zero(group: str, dim: int) -> None:
    net = nn.Linear(16, 24, bias=False)
    with torch.no_grad():
        net.weight[:, :4] *= 1e-3
        net.weight[:6] *= 1e-3
    rate = Backslash(net, Rate(steps=40, strength=0.0, group=group, group_strength=0.5))
    for _ in range(40):
        rate.step()
    dead = (net.weight == 0).all(dim)
    assert dead[: 6 if group == "row" else 4].all() and not dead[10:].any()


def test_whole_heads_become_zero() -> None:
    net = nn.ModuleDict({"v_proj": nn.Linear(8, 12, bias=False), "o_proj": nn.Linear(12, 8, bias=False)})
    value, output = net.get_parameter("v_proj.weight"), net.get_parameter("o_proj.weight")
    with torch.no_grad():
        value[4:8] *= 1e-2  # the second of three heads
        value[0] *= 1e-2  # one row of another: not a head
    before = output.clone()
    rate = Rate(steps=40, strength=0.0, group="row", group_strength=0.5, group_size=4, group_only=("v_proj*",))
    run = Backslash(net, rate)
    for _ in range(40):
        run.step()
    assert (value == 0).all(1).tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert torch.equal(output, before)
    columns = Backslash(net, replace(rate, group="column", group_only=("o_proj*",)))
    with torch.no_grad():
        output[:, 8:] *= 1e-2
    for _ in range(40):
        columns.step()
    assert (output == 0).all(0).tolist() == [False] * 8 + [True] * 4


def test_groups_that_do_not_fit() -> None:
    net = nn.ModuleDict({"v_proj": nn.Linear(8, 12)})
    with pytest.raises(UsageError, match=r"group_size 5: v_proj.weight has 12 rows, no multiple of it; name others in"):
        Backslash(net, Rate(steps=1, group="row", group_size=5))
    with pytest.raises(UsageError, match=r"group_only \['q\*'\]: fits no weight; they are named like v_proj.weight"):
        Backslash(net, Rate(steps=1, group="row", group_only=("q*",)))


def test_shared_weights_count_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    net["b"].weight = net["a"].weight
    assert Backslash(net, Rate(steps=1)).count == 64


def test_training_goes_on_where_it_stopped() -> None:
    whole, parted = model(), model()
    rate = Rate(steps=20, strength=2.0)
    one, two = Backslash(whole, rate), Backslash(parted, rate)
    for _ in range(20):
        one.step()
    for _ in range(7):
        two.step()
    state = two.state_dict()
    three = Backslash(parted, rate)
    three.load_state_dict(state)
    for _ in range(13):
        three.step()
    three.hold()
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert (one.done, three.done) == (20, 20)
    other = Backslash(nn.Linear(3, 3), rate)
    with pytest.raises(UsageError, match=r"masks: 0.weight \[30, 20\] is no weight of this model"):
        other.load_state_dict(three.state_dict())


def test_what_cannot_be_constrained() -> None:
    with pytest.raises(UnsupportedError, match="no trainable matrix or convolution"):
        Backslash(nn.LayerNorm(4), Rate(steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: 0 is less than 1"),
        ({"variant": "l0"}, "variant 'l0', scope 'global', group '': give one of decoupled, proximal, bits"),
        ({"group": "head"}, "group 'head'"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"group_size": 0}, "group_size: 0 is less than 1"),
        ({"strength": -1.0}, "strengths not negative"),
    ],
)
def test_settings_that_are_none(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rate(**{"steps": 10, **changes})  # type: ignore[arg-type]


class Squares(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Inputs that a network learns to return as zero."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.linspace(-1, 1, 20) * index / 64}


class Net(nn.Module):
    """A model as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.inner(x).pow(2).mean()}


def trainer(tmp_path: Path, net: nn.Module, steps: int, callback: BackslashCallback) -> object:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, report_to=[],
        save_steps=6, disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    return Trainer(model=net, args=arguments, train_dataset=Squares(), callbacks=[callback])


def test_a_fixed_shape_is_ordinary_regularization() -> None:
    for nu, kept in ((1.0, lambda w: w - 1e-3 * w.sign()), (2.0, lambda w: w * (1 - 2e-3))):
        net = model()
        before = net.get_parameter("0.weight").detach().clone()
        rate = Backslash(net, Rate(steps=1, lam=1e-3 * 900, variant="decoupled", epsilon=1e-12, shape=nu))
        assert rate.count == 900
        rate.step()
        torch.testing.assert_close(net.get_parameter("0.weight").detach(), kept(before))  # type: ignore[no-untyped-call]
    with pytest.raises(UsageError, match=r"shape: 0.0 is not above 0 and at most 3"):
        Rate(steps=1, shape=0.0)


def test_the_trainer_takes_it(tmp_path: Path) -> None:
    callback = BackslashCallback(Rate(steps=8, strength=3.0, exclude=("*.3.weight",)))
    net = Net()
    trainer(tmp_path, net, 12, callback).train()  # type: ignore[attr-defined]
    assert callback.backslash is not None
    assert callback.backslash.done == 8 and callback.backslash.masks and callback.backslash.zeros() > 0.3
    state = json.loads(json.dumps(callback.state()))
    again = BackslashCallback.from_state(state)
    assert again.rate == callback.rate and again.deviation == callback.deviation == callback.backslash.deviation
