"""Passes on small graphs: what they change stays equal in ONNX Runtime, what they decline stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgekit.errors import RecipeError, UnsupportedError
from edgekit.passes import pipeline
from edgekit.passes.fuse_skip_norm import FuseSkipNorm
from edgekit.passes.guard_products import GuardProducts
from edgekit.passes.merge_linears import MergeLinears
from edgekit.passes.normalize_linear import NormalizeLinear
from edgekit.recipe import Recipe, Rule
from edgekit.spec.facts import facts_of, set_plan
from edgekit.spec.names import EDGEKIT
from edgekit.spec.records import Plan

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 64)).astype(np.float32)


class Net:
    """A graph under construction."""

    def __init__(self) -> None:
        self.x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "seq", 64]))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        self.weights.append(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        )
        return self.weights[-1]

    def op(
        self,
        op: str,
        *inputs: ir.Value | None,
        domain: str = "",
        layer: str = "",
        shape: Sequence[Any] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        node = ir.Node(domain, op, inputs, attrs, num_outputs=1, name=f"n{len(self.nodes)}")
        node.outputs[0].name, node.outputs[0].type = f"v{len(self.nodes)}", ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(shape) if shape is not None else None
        if layer:
            set_plan(node, Plan(layer))
        self.nodes.append(node)
        return node.outputs[0]

    def linear(
        self, layer: str, x: ir.Value, rows: int, bias: bool = False, weight: ir.Value | None = None
    ) -> ir.Value:
        w = weight or self.weight(f"{layer}.weight", RANDOM.standard_normal((rows, 64)).astype(np.float32))
        extra = [self.weight(f"{layer}.bias", RANDOM.standard_normal(rows).astype(np.float32))] if bias else []
        return self.op(
            "Linear", x, w, *extra, domain=EDGEKIT, layer=layer, shape=["batch", "seq", rows], activation_block_size=-1
        )

    def model(self, *outputs: ir.Value) -> ir.Model:
        for index, output in enumerate(outputs):
            output.name = f"y{index}"
        opsets = {"": 21, "com.microsoft": 1, EDGEKIT: 1}
        return ir.Model(
            ir.Graph([self.x], outputs, nodes=self.nodes, initializers=self.weights, opset_imports=opsets, name="g"),
            ir_version=10,
        )


def run(model: ir.Model, *outputs: str) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return list(session.run(list(outputs) or None, {"x": X}))


def lowered(model: ir.Model, recipe: Recipe) -> ir.Model:
    for step in pipeline(recipe):
        model = step(model).model
    return model


def recipe(*rules: Rule) -> Recipe:
    return Recipe(version=1, name="test", rules=rules)


def branches(bias: Sequence[bool] = (False, False, False)) -> ir.Model:
    net = Net()
    net.weights.clear()
    outs = [
        net.op("Relu", net.linear(f"mlp.{n}", net.x, rows, b))
        for n, rows, b in zip("abc", (32, 16, 48), bias, strict=True)
    ]
    return net.model(*outs)


@pytest.mark.parametrize("format_name", ["fp32", "fp16", "int8", "int4", "int4-fp16"])
@pytest.mark.parametrize("bias", [(False, False, False), (True, True, True), (True, False, True)])
def test_merging_changes_no_number(format_name: str, bias: Sequence[bool]) -> None:
    global RANDOM
    RANDOM = np.random.default_rng(1)
    merged = lowered(branches(bias), recipe(Rule("*", format_name)))
    kinds = Counter(n.op_type for n in merged.graph)
    assert kinds["Split"] == 1
    assert kinds["Int8BlockMatMul"] + kinds["Int4MatMul"] + kinds["FusedMatMul"] == 1
    layers = {layer.name: layer for layer in facts_of(merged).layers}
    assert layers["mlp.b"].rows == (32, 48)
    for a, b in zip(run(merged), run(lowered_apart(format_name, bias)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def lowered_apart(format_name: str, bias: Sequence[bool]) -> ir.Model:
    """The same layers without the merging pass."""
    global RANDOM
    RANDOM = np.random.default_rng(1)
    model = branches(bias)
    for step in pipeline(recipe(Rule("*", format_name))):
        if not isinstance(step, MergeLinears):
            model = step(model).model
    return model


def test_layers_of_different_formats_do_not_merge() -> None:
    model = lowered(branches(), recipe(Rule("mlp.a", "fp16"), Rule("*", "int8")))
    assert Counter(n.op_type for n in model.graph)["Int8BlockMatMul"] == 1  # b and c
    assert Counter(n.op_type for n in model.graph)["FusedMatMul"] == 1


def test_a_shared_weight_is_not_merged() -> None:
    net = Net()
    first = net.linear("one", net.x, 64)
    again = net.linear("two", net.x, 64, weight=net.weights[0])
    model = net.model(first, again)
    assert not MergeLinears()(model).modified


def test_passes_do_nothing_twice() -> None:
    model = branches()
    for step in pipeline(recipe(Rule("*", "int8"))):
        model = step(model).model
    for step in pipeline(recipe(Rule("*", "int8"))):
        assert not step(model).modified, type(step).__name__


def test_rules() -> None:
    with pytest.raises(
        RecipeError, match=r"rules\[0\] \(match: 'mpl\.\*'\): matches no layer; layers are named like mlp\."
    ):
        lowered(branches(), recipe(Rule("mpl.*", "int4"), Rule("*", "int8")))
    with pytest.raises(RecipeError, match="no layer holds ternary weights"):
        lowered(branches(), recipe(Rule("*", "t2", only="ternary"), Rule("*", "int8")))
    with pytest.raises(UnsupportedError, match=r"mlp\.a.*weights are not ternary.*put a rule"):
        lowered(branches(), recipe(Rule("*", "t2")))


@pytest.mark.parametrize("form", ["matmul", "transposed", "gemm", "gemm-transposed", "constant-node"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_of_foreign_graphs(form: str, bias: bool) -> None:
    random = np.random.default_rng(2)
    weight, offset = random.standard_normal((8, 64)).astype(np.float32), random.standard_normal(8).astype(np.float32)
    net = Net()
    x = net.op("Reshape", net.x, net.weight("flat", np.array([-1, 64]))) if form.startswith("gemm") else net.x
    c = net.weight("c", offset) if bias else None
    if form == "transposed":
        y = net.op("MatMul", x, net.op("Transpose", net.weight("w", weight), perm=[1, 0]))
    elif form == "gemm":
        y = net.op("Gemm", x, net.weight("w", np.ascontiguousarray(weight.T)), *([c] if c else []))
    elif form == "gemm-transposed":
        y = net.op("Gemm", x, net.weight("w", weight), *([c] if c else []), transB=1)
    elif form == "constant-node":
        constant = net.op("Constant", value=ir.tensor(np.ascontiguousarray(weight.T)))
        y = net.op("MatMul", x, constant)
    else:
        y = net.op("MatMul", x, net.weight("w", np.ascontiguousarray(weight.T)))
    if c is not None and not form.startswith("gemm"):
        y = net.op("Add", y, c)
    model = net.model(net.op("Identity", y))
    expected = X @ weight.T + (offset if bias else 0)
    model = lowered(model, recipe(Rule("*", "fp32")))
    kinds = Counter(n.op_type for n in model.graph)
    assert kinds["FusedMatMul"] == 1
    assert kinds["MatMul"] == kinds["Gemm"] == 0
    np.testing.assert_allclose(run(model)[0].reshape(expected.shape), expected, atol=1e-4)


def test_products_of_activations_are_left_alone() -> None:
    net = Net()
    turned = net.op("Transpose", net.x, perm=[0, 2, 1])
    assert not NormalizeLinear()(net.model(net.op("MatMul", net.x, turned))).modified


@pytest.mark.parametrize("kind", ["SimplifiedLayerNormalization", "LayerNormalization"])
def test_residual_and_norm_become_one(kind: str) -> None:
    def build() -> ir.Model:
        net = Net()
        shape = ["batch", "seq", 64]
        left, right = net.op("Relu", net.x, shape=shape), net.op("Tanh", net.x, shape=shape)
        total = net.op("Add", left, right, shape=shape)
        extra = [net.weight("beta", np.linspace(0, 1, 64, dtype=np.float32))] if kind == "LayerNormalization" else []
        norm = net.op(
            kind, total, net.weight("gamma", np.linspace(1, 2, 64, dtype=np.float32)), *extra, axis=-1, epsilon=1e-5
        )
        return net.model(norm, net.op("Neg", total))

    fused = build()
    assert FuseSkipNorm()(fused).modified
    assert Counter(n.op_type for n in fused.graph)["Add"] == 0
    for a, b in zip(run(fused), run(build()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_adding_a_constant_is_no_residual() -> None:
    net = Net()
    total = net.op("Add", net.x, net.weight("bias", np.ones(64, np.float32)), shape=["batch", "seq", 64])
    norm = net.op(
        "SimplifiedLayerNormalization", total, net.weight("gamma", np.ones(64, np.float32)), axis=-1, epsilon=1e-5
    )
    assert not FuseSkipNorm()(net.model(norm)).modified


def guarded(axis: int, second_reader: bool) -> ir.Model:
    """Attention of x on itself whose scores are -inf in rows that are masked whole."""
    net = Net()
    keys = net.op("Transpose", net.x, perm=[0, 2, 1])
    scores = net.op("Add", net.op("MatMul", net.x, keys), net.weight("mask", MASK))
    softmax = net.op("Softmax", scores, axis=axis)
    bad = net.op("IsNaN", softmax)
    bad.type = ir.TensorType(ir.DataType.BOOL)
    rows = net.op("Where", bad, net.weight("zero", np.array(0, np.float32)), softmax)
    out = net.op("MatMul", rows, net.x)
    return net.model(out, net.op("Neg", rows)) if second_reader else net.model(out)


MASK = np.where(np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]]), np.float32(0), np.float32(-np.inf))


def test_the_guard_of_masked_rows_moves_behind_the_product() -> None:
    before, after = guarded(-1, False), guarded(-1, False)
    assert GuardProducts()(after).modified
    kinds = [node.op_type for node in after.graph]
    assert kinds.index("MatMul", kinds.index("Softmax")) < kinds.index("Where") and kinds.count("IsNaN") == 1
    (wanted,), (got,) = run(before), run(after)
    np.testing.assert_array_equal(got, wanted)
    assert not got[:, 1].any() and np.abs(got[:, [0, 2]]).min() > 0
    assert not GuardProducts()(after).modified


@pytest.mark.parametrize(("axis", "second_reader"), [(1, False), (-1, True)])
def test_other_guards_stay(axis: int, second_reader: bool) -> None:
    assert not GuardProducts()(guarded(axis, second_reader)).modified
