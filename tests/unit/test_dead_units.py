"""Dead units in small graphs: all found, nothing else, outputs as before, and a reason where one has to stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.initializers import WeightTensor
from edgekit.lowbit.weights import RowWeight
from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.passes.dead_units.weights import CHUNK, Alive, Scans
from edgekit.spec.facts import facts_of, set_plan
from edgekit.spec.names import EDGEKIT, MICROSOFT
from edgekit.spec.records import DeadUnits, Plan
from tests.support.dead_units import Net, kept, removed, rewritten, same, widths

ACTIVATIONS: dict[str, dict[str, object]] = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "Gelu": {}, "HardSwish": {}, "Softplus": {}, "Elu": {}, "Erf": {},
    "LeakyRelu": {"alpha": 0.2}, "QuickGelu": {"domain": MICROSOFT, "alpha": 1.0}, "FastGelu": {"domain": MICROSOFT},
}  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_constant_units_are_folded_through_the_activation(activation: str, normalize: bool) -> None:
    net = Net()
    w, bias = net.draw(6, 4), net.draw(6)
    w[[1, 4]] = 0
    hidden = net.op(activation, net.dense(net.input(4), w, bias, "up"), **ACTIVATIONS[activation])
    model = net.model(y=(net.dense(hidden, net.draw(3, 6), name="down"), ["batch", 3]))
    after, table = rewritten(model, normalize)
    same(model, after, 4)
    assert widths(after) == {"up": [4, 4], "down": [3, 4]}
    reasons = removed(table)
    assert sum(reasons.values()) == 2
    assert {reason for _, reason in reasons} <= {"constant, folded into the next bias", "always zero"}


@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    biased=st.booleans(),
    normalize=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_random_mlps(seed: int, shape: list[int], biased: bool, normalize: bool) -> None:
    """Exactly the units that an independent rule calls dead go."""
    net = Net(seed)
    random = net.random
    weights = [net.draw(n, k) for k, n in zip([5, *shape], [*shape, 3], strict=True)]
    for w in weights[:-1]:
        w[random.random(len(w)) < 0.3] = 0
    for w in weights[1:]:
        w[:, random.random(w.shape[1]) < 0.2] = 0
    biases = [net.draw(len(w)) if biased else None for w in weights]
    x = net.input(5)
    for index, (w, bias) in enumerate(zip(weights, biases, strict=True)):
        x = net.dense(x, w, bias, f"layer{index}")
        if index < len(shape):
            x = net.op("Tanh", x)
    model = net.model(y=(x, ["batch", 3]))
    after, _ = rewritten(model, normalize)
    same(model, after, 5)
    left = widths(after)
    assert [left[f"layer{i}"][0] for i in range(len(shape))] == _left_of_mlp(weights)
    assert not RemoveDeadUnits()(after).modified


def _left_of_mlp(weights: list[np.ndarray]) -> list[int]:
    """Units that stay in each hidden layer: read, and made from something alive; at least one."""
    alive = [np.ones(len(w), bool) for w in weights[:-1]]
    before = np.ones(weights[0].shape[1], bool)
    while True:
        new = []
        for i, units in enumerate(alive):
            inputs = alive[i - 1] if i else before
            outputs = alive[i + 1] if i + 1 < len(alive) else np.ones(len(weights[-1]), bool)
            made = (weights[i][:, inputs] != 0).any(axis=1)
            read = (weights[i + 1][outputs] != 0).any(axis=0)
            found = units & made & read
            if not found.any():
                found[np.flatnonzero(units)[0]] = True
            new.append(found)
        if all((a == b).all() for a, b in zip(alive, new, strict=True)):
            return [int(units.sum()) for units in alive]
        alive = new


@given(seed=st.integers(0, 10_000), width=st.integers(2, 12), normalize=st.booleans())
@settings(max_examples=25, deadline=None)
def test_random_gated_layers(seed: int, width: int, normalize: bool) -> None:
    """down(silu(gate x) * up x): a unit goes when its gate or up row, or its down column, is zero."""
    net = Net(seed)
    gate, up, down = net.draw(width, 4), net.draw(width, 4), net.draw(4, width)
    zero = [net.random.random(width) < 0.25 for _ in range(3)]
    gate[zero[0]], up[zero[1]], down[:, zero[2]] = 0, 0, 0
    x = net.input(4)
    opened = net.op("QuickGelu", net.dense(x, gate, name="gate"), domain=MICROSOFT, alpha=1.0)
    both = net.op("Mul", opened, net.dense(x, up, name="up"))
    model = net.model(y=(net.op("Add", x, net.dense(both, down, name="down")), ["batch", 4]))
    after, table = rewritten(model, normalize)
    same(model, after, 4)
    dead = int((zero[0] | zero[1] | zero[2]).sum())
    assert widths(after)["down"][1] == max(1, width - dead)
    assert sum(removed(table).values()) == min(dead, width - 1)
    assert all(layer == "gate+up" for layer, _ in removed(table))
    assert not RemoveDeadUnits()(after).modified


def test_a_gate_that_is_zero_makes_its_unit_zero_but_a_constant_up_does_not() -> None:
    net = Net()
    gate, up, bias = net.draw(5, 4), net.draw(5, 4), net.draw(5)
    gate[1], up[3] = 0, 0
    x = net.input(4)
    opened = net.op("Relu", net.dense(x, gate, name="gate"))
    both = net.op("Mul", opened, net.dense(x, up, bias, name="up"))
    model = net.model(y=(net.dense(both, net.draw(2, 5), name="down"), ["batch", 2]))
    after, table = rewritten(model, True)
    same(model, after, 4)
    assert removed(table) == {("gate+up", "always zero"): 1}
    assert kept(table)["up", "zero row"] == "down reads it, and it varies"


def test_dead_units_in_a_row_go_round_after_round() -> None:
    net = Net()
    first, second, third = net.draw(6, 4), net.draw(5, 6), net.draw(3, 5)
    second[:, 2] = 0  # nothing reads unit 2 of the first layer
    second[1] = 0
    second[1, 4] = 1.0  # unit 1 of the second reads unit 4 of the first alone,
    first[4] = 0  # which is always zero
    net_input = net.input(4)
    x = net.op("Relu", net.dense(net_input, first, name="first"))
    x = net.op("Relu", net.dense(x, second, name="second"))
    model = net.model(y=(net.dense(x, third, name="third"), ["batch", 3]))
    after, table = rewritten(model, True)
    same(model, after, 4)
    assert widths(after) == {"first": [4, 4], "second": [4, 4], "third": [3, 4]}
    assert removed(table) == {
        ("first", "nothing reads it"): 1,
        ("first", "always zero"): 1,
        ("second", "always zero"): 1,
    }
    assert [row.of for row in table if row.layer == "second"] == [5]


def _half_without_bias(net: Net) -> ir.Model:
    """sigmoid(0) = 0.5 goes into a MatMul, which has no bias."""
    w = net.draw(5, 4)
    w[2] = 0
    half = net.op("Sigmoid", net.dense(net.input(4), w, name="up"))
    return net.model(y=(net.op("MatMul", half, net.constant(net.draw(5, 3), "down.weight")), ["batch", 3]))


def _padded(net: Net) -> ir.Model:
    """A constant channel differs at the border of a padded convolution."""
    w, bias = net.draw(4, 2, 3, 3), net.draw(4)
    w[1] = 0
    x = net.op("Sigmoid", net.conv(net.input(2, 6, 6), w, bias, 1, name="first"))
    return net.model(y=(net.conv(x, net.draw(3, 4, 3, 3), None, 1, name="second"), ["batch", 3, 6, 6]))


def _residual(net: Net) -> ir.Model:
    w = net.draw(4, 4)
    w[1] = 0
    x = net.dense(net.input(4), net.draw(4, 4), name="stem")
    total = net.op("Add", x, net.dense(net.op("Relu", x), w, name="branch"))
    return net.model(y=(net.dense(total, net.draw(2, 4), name="head"), ["batch", 2]))


def _two_readers(net: Net) -> ir.Model:
    w = net.draw(2, 4)
    w[:, 1] = 0
    x = net.op("Relu", net.dense(net.input(4), net.draw(4, 4), name="stem"))
    return net.model(
        y=(net.dense(x, w, name="a"), ["batch", 2]), z=(net.dense(x, net.draw(2, 4), name="b"), ["batch", 2])
    )


def _output(net: Net) -> ir.Model:
    w = net.draw(3, 4)
    w[0] = 0
    return net.model(y=(net.dense(net.input(4), w, net.draw(3), "head"), ["batch", 3]))


def _hidden_output(net: Net) -> ir.Model:
    """The hidden layer is an output of the model too."""
    w = net.draw(4, 4)
    w[0] = 0
    hidden = net.op("Relu", net.dense(net.input(4), w, name="up"))
    return net.model(h=(hidden, ["batch", 4]), y=(net.dense(hidden, net.draw(2, 4), name="down"), ["batch", 2]))


def _normalized(net: Net) -> ir.Model:
    w = net.draw(4, 4)
    w[2] = 0
    x = net.dense(net.input(4), w, name="up")
    x = net.op("LayerNormalization", x, net.constant(np.ones(4)), axis=-1)
    return net.model(y=(net.dense(x, net.draw(2, 4), name="down"), ["batch", 2]))


def _input(net: Net) -> ir.Model:
    w = net.draw(3, 4)
    w[:, 2] = 0
    return net.model(y=(net.op("Relu", net.dense(net.input(4), w, name="up")), ["batch", 3]))


def _grouped(net: Net) -> ir.Model:
    w = net.draw(4, 2, 1, 1)
    w[1] = 0
    x = net.conv(net.input(2, 4, 4), w, name="first")
    x = net.conv(x, net.draw(4, 2, 3, 3), group=2, name="second")
    return net.model(y=(net.conv(x, net.draw(2, 4, 1, 1), name="third"), ["batch", 2, 2, 2]))


def _unknown(net: Net) -> ir.Model:
    w = net.draw(4, 4)
    w[2] = 0
    x = net.op("CumSum", net.dense(net.input(4), w, name="up"), net.g.constant("axis", np.array(1, np.int64)))
    return net.model(y=(net.dense(x, net.draw(2, 4), name="down"), ["batch", 2]))


def _last(net: Net) -> ir.Model:
    """All of the single unit's inputs are zero; a width of 0 is none."""
    x = net.op("Relu", net.dense(net.input(4), np.zeros((1, 4), np.float32), name="up"))
    return net.model(y=(net.dense(x, net.draw(2, 1), name="down"), ["batch", 2]))


LIVING: dict[str, tuple[Callable[[Net], ir.Model], str, str]] = {
    "no bias": (_half_without_bias, "zero row", "its constant 0.5 stays: in down a MatMul has no bias to take it"),
    "padding": (_padded, "zero row", "in second it pads with zeros, so a constant is another one at the border"),
    "residual": (_residual, "zero row", "added to another branch that is alive there"),
    "two readers": (_two_readers, "zero column", "b reads it, and it varies"),
    "output": (_output, "zero row", "an output of the model (y)"),
    "hidden output": (_hidden_output, "zero row", "an output of the model (h)"),
    "norm": (_normalized, "zero row", "normalized together in LayerNormalization"),
    "input": (_input, "zero column", "comes from the model's input x, through which channels are not followed"),
    "groups": (_grouped, "zero row", "second convolves in 2 groups of equal size"),
    "unknown operator": (_unknown, "zero row", "read by CumSum"),
    "last": (_last, "zero row", "the last one stays: no operator takes a width of 0"),
}


@pytest.mark.parametrize("name", LIVING)
def test_what_looks_dead_and_is_not_stays_with_a_reason(name: str) -> None:
    """The graph is as it was and the table says why."""
    build, unit, reason = LIVING[name]
    model = build(Net())
    shape = [d for d in model.graph.inputs[0].shape or () if isinstance(d, int)]
    after, table = rewritten(model, normalize=False)
    same(model, after, *shape)
    assert widths(after) == widths(model)
    assert not removed(table)
    assert any(row.unit == unit and reason in row.reason for row in table), table


def test_a_weight_that_two_layers_share_stays() -> None:
    net = Net()
    w = net.draw(4, 4)
    w[1] = 0
    shared = net.constant(w, "tied.weight")
    x = net.g.op("Gemm", net.input(4), shared, transB=1)[0]
    y = net.g.op("Gemm", net.op("Relu", x), shared, transB=1)[0]
    model = net.model(y=(y, ["batch", 4]))
    after, table = rewritten(model, False)
    assert widths(after) == {"tied": [4, 4]}
    assert kept(table)["tied", "zero row"] == "the weight tied.weight is shared with another layer"


def test_a_recorded_value_keeps_its_width() -> None:
    net = Net()
    w = net.draw(5, 4)
    w[1] = 0
    hidden = net.g.op("Relu", net.dense(net.input(4), w, name="up"), name="tapped")[0]
    model = net.model(y=(net.dense(hidden, net.draw(2, 5), name="down"), ["batch", 2]))
    facts_of(model).taps["up"] = "tapped"
    after, table = rewritten(model, False)
    assert widths(after)["up"] == [5, 4]
    assert kept(table)["up", "zero row"] == "its values are recorded for parity (tapped)"


def _rounding(block: int, zero_row: bool) -> list[DeadUnits]:
    """A hidden layer before one that rounds its input to int8 in training (BitNet)."""
    net = Net()
    up, down = net.draw(130, 4), net.draw(3, 130)
    if zero_row:
        up[7] = 0
    else:
        down[:, 7] = 0
    hidden = net.op("Relu", _linear(net, net.input(4), up, -1, "up"))
    model = net.model(y=(_linear(net, hidden, down, block, "down"), ["batch", 3]))
    return rewritten(model, False)[1]


def _linear(net: Net, x: ir.Value, weight: np.ndarray, block: int, name: str) -> ir.Value:
    value = net.constant(weight, f"{name}.weight")
    out = net.g.op("Linear", x, value, domain=EDGEKIT, activation_block_size=block)[0]
    set_plan(net.g.nodes[-1], Plan(name))
    return out


def test_layers_that_round_their_input_lose_only_what_is_always_zero() -> None:
    assert removed(_rounding(0, zero_row=True)) == {("up", "always zero"): 1}
    alive = kept(_rounding(0, zero_row=False))
    assert alive["down", "zero column"] == "it varies, and down rounds its input by the largest value of each row"
    blocks = kept(_rounding(128, zero_row=True))
    assert blocks["up", "zero row"] == "down rounds its input in blocks of 128"


def test_ternary_scales_of_128_columns_do_not_shift() -> None:
    net = Net()
    down = net.random.choice([-1.0, 1.0], (8, 256)).astype(np.float32)
    down[:, :128] *= 0.5
    down[:, 9] = 0
    hidden = net.op("Relu", _linear(net, net.input(4), net.draw(256, 4), -1, "up"))
    model = net.model(y=(_linear(net, hidden, down, -1, "down"), ["batch", 8]))
    after, table = rewritten(model, False)
    assert widths(after)["down"] == [8, 256]
    assert kept(table)["down", "zero column"] == "its weight has a scale for each 128 columns, which would shift"


class _Checkpoint:
    """A weight [200, CHUNK / 16] of ones that notes which rows are asked for; it has a row and a column of zeros."""

    rows, columns = 200, CHUNK // 16

    def __init__(self, silent_row: int, silent_column: int) -> None:
        self.silent_row, self.silent_column = silent_row, silent_column
        self.asked = list[tuple[int, int]]()

    def read(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        part = np.ones((stop - start, self.columns), np.float32)
        part[:, self.silent_column] = 0
        if start <= self.silent_row < stop:
            part[self.silent_row - start] = 0
        return part

    def first(self, count: int) -> np.ndarray:
        found = np.ones((self.rows, count), np.float32)
        found[self.silent_row] = 0
        return found

    def alive(self) -> Alive:
        weight = RowWeight((self.rows, self.columns), self.read, first=self.first)
        tensor, scans = WeightTensor(weight, "w"), Scans()
        assert scans.of(tensor, 0) is scans.of(tensor, 0)
        return scans.of(tensor, 0)


def test_a_weight_is_read_once_and_never_whole() -> None:
    stored = _Checkpoint(7, 5)
    alive = stored.alive()
    assert np.flatnonzero(~alive.rows).tolist() == [7] and np.flatnonzero(~alive.columns).tolist() == [5]
    assert stored.asked == [(0, 16), (0, 16), *((start, min(start + 16, 200)) for start in range(0, 200, 16))]


def test_of_a_dense_weight_a_few_rows_are_read() -> None:
    ones, asked = np.ones((200, CHUNK // 16), bool), list[tuple[int, int]]()

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return ones[start:stop]

    weight = RowWeight(ones.shape, read, first=lambda count: ones[:, :count])
    alive = Scans().of(WeightTensor(weight, "w"), 0)
    assert alive.rows.all() and alive.columns.all()
    assert asked == [(0, 16)]


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    density=st.sampled_from([0.0, 0.01, 0.05, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_scans_find_all_zero_rows_and_columns(seed: int, rows: int, columns: int, density: float) -> None:
    random = np.random.default_rng(seed)
    w = np.where(random.random((rows, columns)) < density, random.normal(size=(rows, columns)), 0).astype(np.float32)
    alive = Scans().of(ir.tensor(w, name="w"), 0)
    np.testing.assert_array_equal(alive.rows, (w != 0).any(axis=1))
    np.testing.assert_array_equal(alive.columns, (w != 0).any(axis=0))


def test_ternary_codes_are_looked_at_instead_of_floats() -> None:
    codes = np.ones((6, 5), np.int8)
    codes[2], codes[:, 3] = 0, 0

    def never(start: int, stop: int) -> np.ndarray:
        raise AssertionError("floats were read")

    weight = RowWeight((6, 5), never, lambda a, b: codes[a:b], np.ones(1, np.float32))
    alive = Scans().of(WeightTensor(weight, "w"), 0)
    assert np.flatnonzero(~alive.rows).tolist() == [2] and np.flatnonzero(~alive.columns).tolist() == [3]


def test_half_precision_stays_half_precision() -> None:
    net = Net()
    up, down = net.draw(6, 4), net.draw(3, 6)
    up[1] = 0
    hidden = net.op("Sigmoid", net.dense(net.input(4), up, net.draw(6), "up"))
    model = net.model(y=(net.dense(hidden, down, name="down"), ["batch", 3]))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.tensor(tensor.numpy().astype(np.float16), name=str(value.name))
    after, table = rewritten(model, False)
    assert removed(table) == {("up", "constant, folded into the next bias"): 1}
    assert widths(after) == {"up": [5, 4], "down": [3, 5]}
    kinds = {v.const_value.dtype for v in after.graph.initializers.values() if v.uses()}  # type: ignore[union-attr]
    assert kinds == {ir.DataType.FLOAT16}
