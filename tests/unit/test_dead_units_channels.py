"""Dead channels of convolutional nets and dead heads of GroupQueryAttention in small graphs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.spec.facts import facts_of
from edgekit.spec.names import MICROSOFT
from edgekit.spec.records import DecoderInfo
from tests.support.dead_units import Net, kept, outputs, removed, rewritten, same, widths
from tests.support.tiny_bundle import FLOAT

SIDE = 8


def _norm(net: Net, x: ir.Value, channels: int, dead: Any = ()) -> ir.Value:
    """BatchNormalization; ``dead`` channels have scale and shift 0."""
    scale, shift, mean = net.draw(channels), net.draw(channels), net.draw(channels)
    variance = net.random.uniform(0.5, 1.5, channels)
    scale[list(dead)], shift[list(dead)] = 0, 0
    return net.op("BatchNormalization", x, *(net.constant(a) for a in (scale, shift, mean, variance)))


@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(2, 7),
    pad=st.booleans(),
    block=st.sampled_from(["plain", "depthwise", "residual", "concat"]),
)
@settings(max_examples=40, deadline=None)
def test_random_convolutional_nets(seed: int, channels: int, pad: bool, block: str) -> None:
    """Answers are the same, what the numbers in the weights keep alive stays, and a second time nothing goes."""
    net = Net(seed)
    random, border = net.random, int(pad)
    one, two, last = net.draw(channels, 2, 3, 3), net.draw(channels, channels, 3, 3), net.draw(3, channels, 1, 1)
    for w in (one, two):
        w[random.random(channels) < 0.3] = 0
    for w in (two, last):
        w[:, random.random(w.shape[1]) < 0.2] = 0
    biases = [np.where(random.random(channels) < 0.5, 0, net.draw(channels)) for _ in range(2)]
    x = net.op("Relu", _norm(net, net.conv(net.input(2, SIDE, SIDE), one, biases[0], border, name="one"), channels))
    if block == "depthwise":
        small = net.draw(channels, 1, 3, 3)
        small[random.random(channels) < 0.3] = 0
        x = net.op("Relu", net.conv(x, small, biases[1], border, group=channels, name="small"))
    y = net.op("Relu", net.conv(x, two, biases[1], 1, name="two"))
    if block == "residual":
        y = net.op("Add", x, y)
    if block == "concat":
        y, last = net.op("Concat", x, y, axis=1), np.concatenate([last, net.draw(3, channels, 1, 1)], axis=1)
    y = net.conv(net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), last, name="last")
    model = net.model(y=(y, ["batch", 3, "height", "width"]))
    after, table = rewritten(model, normalize=False)
    same(model, after, 2, SIDE, SIDE)
    living = (one != 0).any(axis=(1, 2, 3)) & (two != 0).any(axis=(0, 2, 3))
    assert widths(after)["one"][0] >= max(1, int(living.sum()) if block != "depthwise" else 1)
    assert widths(after)["one"][0] == channels - sum(row.count for row in table if row.removed and "one" in row.layer)
    assert not RemoveDeadUnits()(after).modified


def test_batch_norm_depthwise_and_pointwise_shrink_together() -> None:
    net = Net()
    expand, small, reduce = net.draw(6, 3, 1, 1), net.draw(6, 1, 3, 3), net.draw(4, 6, 1, 1)
    expand[0] = 0
    reduce[:, 2] = 0
    x = net.op("Relu", _norm(net, net.conv(net.input(3, SIDE, SIDE), expand, name="expand"), 6, dead=[0, 4]))
    x = net.op("Relu", _norm(net, net.conv(x, small, pad=1, group=6, name="small"), 6))
    model = net.model(y=(net.conv(x, reduce, name="reduce"), ["batch", 4, SIDE, SIDE]))
    after, table = rewritten(model, False)
    same(model, after, 3, SIDE, SIDE)
    assert widths(after) == {"expand": [3, 3, 1, 1], "small": [3, 1, 3, 3], "reduce": [4, 3, 1, 1]}
    depthwise = [n for n in after.graph if n.op_type == "Conv"][1]
    assert depthwise.attributes["group"].as_int() == 3
    assert sum(removed(table).values()) == 3 and {layer for layer, _ in removed(table)} == {"expand"}


def test_a_channel_goes_through_concat_pool_and_flatten_into_a_linear_layer() -> None:
    net = Net()
    a, b, head = net.draw(3, 1, 3, 3), net.draw(4, 1, 3, 3), net.draw(2, 7 * 9)
    a[1] = 0
    head[:, (3 + 2) * 9 : (3 + 3) * 9] = 0  # nothing reads channel 2 of b
    head[:, (3 + 1) * 9 : (3 + 2) * 9 - 1] = 0  # one pixel of its channel 1 is read
    x = net.input(1, SIDE, SIDE)
    both = net.op("Concat", net.conv(x, a, net.draw(3), name="a"), net.conv(x, b, name="b"), axis=1)
    pooled = net.op("AveragePool", net.op("Tanh", both), kernel_shape=[2, 2], strides=[2, 2])
    target = net.g.constant("target", np.array([-1, 63], np.int64))
    model = net.model(y=(net.dense(net.g.op("Reshape", pooled, target)[0], head, name="head"), ["batch", 2]))
    after, table = rewritten(model, True)
    same(model, after, 1, SIDE, SIDE)
    assert widths(after) == {"a": [2, 1, 3, 3], "b": [3, 1, 3, 3], "head": [2, 45]}
    assert removed(table) == {("a", "constant, folded into the next bias"): 1, ("b", "nothing reads it"): 1}
    assert kept(table)["head", "zero column"] == "a part of a unit that is used elsewhere"


def test_squeezed_channels_scale_the_wide_ones() -> None:
    """Squeeze and excitation: the mean of each channel, through two layers, multiplies it."""
    net = Net()
    stem, down, up, last = net.draw(6, 1, 3, 3), net.draw(3, 6, 1, 1), net.draw(6, 3, 1, 1), net.draw(2, 6, 1, 1)
    down[1] = 0
    last[:, 4], down[:, 4] = 0, 0
    x = net.op("Relu", net.conv(net.input(1, SIDE, SIDE), stem, name="stem"))
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), down, net.draw(3), name="down"))
    gate = net.op("HardSigmoid", net.conv(gate, up, name="up"))
    model = net.model(y=(net.conv(net.op("Mul", x, gate), last, name="last"), ["batch", 2, 6, 6]))
    after, _ = rewritten(model, False)
    same(model, after, 1, SIDE, SIDE)
    assert {name: shape[:2] for name, shape in widths(after).items()} == {
        "stem": [5, 1],
        "down": [2, 5],
        "up": [5, 2],
        "last": [2, 5],
    }


HEADS, SIZE, WIDTH = 6, 8, 12


def _attention(seed: int, groups: int, packed: bool, dead: np.ndarray, values: np.ndarray) -> ir.Model:
    """Heads whose output nobody reads (``dead``) and key-value heads whose value is zero, in one GroupQueryAttention."""
    net = Net(seed)
    rows = (HEADS + 2 * groups) * SIZE
    qkv, out = net.draw(rows, WIDTH), net.draw(WIDTH, HEADS * SIZE)
    qkv[(HEADS + groups) * SIZE :].reshape(groups, SIZE, WIDTH)[values] = 0
    out.reshape(WIDTH, HEADS, SIZE)[:, dead] = 0
    x = net.g.input("x", FLOAT, ["batch", "sequence", WIDTH])
    lengths = net.g.input("lengths", ir.DataType.INT32, ["batch"])
    total = net.g.input("total", ir.DataType.INT32, [])
    past = [
        net.g.input(f"past_key_values.0.{part}", FLOAT, ["batch", groups, "past", SIZE]) for part in ("key", "value")
    ]
    cuts = [0, HEADS * SIZE, (HEADS + groups) * SIZE, rows]
    parts = [qkv] if packed else [qkv[a:b] for a, b in pairwise(cuts)]
    made = [_matmul(net, x, w, f"part{i}") for i, w in enumerate(parts)]
    inputs = [*made, None, None][:3]
    facts: dict[str, object] = {"num_heads": HEADS, "kv_num_heads": groups, "domain": MICROSOFT, "outputs": 3}
    answer, key, value = net.g.op("GroupQueryAttention", *inputs, *past, lengths, total, **facts)  # type: ignore[arg-type]
    dims: list[int | str] = ["batch", groups, "present", SIZE]
    y = _matmul(net, answer, out, "out"), ["batch", "sequence", WIDTH]
    model = net.g.model({"y": y, "present.0.key": (key, dims), "present.0.value": (value, list(dims))})  # type: ignore[dict-item]
    facts_of(model).decoder = DecoderInfo(1, (groups,), (SIZE,), WIDTH, 64)
    return model


def _matmul(net: Net, x: ir.Value, weight: np.ndarray, name: str) -> ir.Value:
    return net.op("MatMul", x, net.constant(np.ascontiguousarray(weight.T), f"{name}.weight"))


def _generate(model: ir.Model) -> list[np.ndarray]:
    """Five tokens, then one more on the cache."""
    groups = next(int(v.shape[1]) for v in model.graph.inputs if v.name == "past_key_values.0.key")  # type: ignore[index, arg-type]
    x, found = np.random.default_rng(3).normal(size=(1, 6, WIDTH)).astype(np.float32), []
    past = [np.zeros((1, groups, 0, SIZE), np.float32)] * 2
    for start, stop in ((0, 5), (5, 6)):
        feeds = {"x": x[:, start:stop], "lengths": np.array([stop - 1], np.int32), "total": np.array(stop, np.int32)}
        feeds |= {f"past_key_values.0.{part}": array for part, array in zip(("key", "value"), past, strict=True)}
        y, *past = outputs(model, feeds)
        found.append(y)
    return found


def _left(groups: int, dead: np.ndarray, values: np.ndarray) -> tuple[int, int]:
    """Query and key-value heads that must stay: whole groups go, then as many of each group as the most alive one has to spare."""
    silent = dead.reshape(groups, -1) | values[:, None]
    rest = silent[~silent.all(axis=1)]
    if not len(rest):
        return 1, 1
    return len(rest) * int((~rest).sum(axis=1).max()), len(rest)


@given(seed=st.integers(0, 10_000), groups=st.sampled_from([1, 2, 3, 6]), packed=st.booleans(), normalize=st.booleans())
@settings(max_examples=40, deadline=None)
def test_random_heads(seed: int, groups: int, packed: bool, normalize: bool) -> None:
    random = np.random.default_rng(seed)
    dead, values = random.random(HEADS) < 0.5, random.random(groups) < 0.3
    model = _attention(seed, groups, packed, dead, values)
    before = _generate(model)
    after, table = rewritten(model, normalize)
    for want, got in zip(before, _generate(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * max(1.0, float(np.abs(want).max())))
    node = next(n for n in after.graph if n.op_type == "GroupQueryAttention")
    heads, keys = _left(groups, dead, values)
    assert (node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) == (heads, keys)
    assert facts_of(after).decoder == DecoderInfo(1, (keys,), (SIZE,), WIDTH, 64)
    for value in (*after.graph.inputs, *after.graph.outputs):
        if value.name and "key" in value.name:
            assert value.shape is not None and value.shape[1] == keys
    silent = int((dead.reshape(groups, -1) | values[:, None]).sum())
    stayed = sum(row.count for row in table if not row.removed and row.unit == "query head")
    assert stayed == silent - (HEADS - heads)
    assert not RemoveDeadUnits()(after).modified


def test_query_heads_of_unequal_groups_stay_with_a_reason() -> None:
    dead = np.array([True, False, False, True, True, False])
    after, table = rewritten(_attention(0, 2, False, dead, np.zeros(2, bool)), True)
    assert removed(table) == {("part0", "nothing reads it"): 2}
    assert kept(table)["part0", "query head"] == "GroupQueryAttention needs as many query heads for each key-value head"
    assert widths(after)["part0"] == [4 * SIZE, WIDTH]


@pytest.mark.parametrize("name", ["past_key_values.0.key", "x"])
def test_a_cache_that_is_read_elsewhere_keeps_its_heads(name: str) -> None:
    model = _attention(0, 3, False, np.zeros(HEADS, bool), np.array([True, False, False]))
    value = next(v for v in model.graph.inputs if v.name == name)
    probe = ir.Node("", "Abs", [value], num_outputs=1, name="probe")
    probe.outputs[0].name, probe.outputs[0].type = "probe", ir.TensorType(FLOAT)
    model.graph.append(probe)
    model.graph.outputs.append(probe.outputs[0])
    _, table = rewritten(model, True)
    assert bool(removed(table)) == (name == "x")
