"""Sparse formats in a graph: chosen only where that is faster, said why, and computed as stored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgekit.errors import RecipeError
from edgekit.lowbit.formats import CODECS
from edgekit.lowbit.library import load_library
from edgekit.lowbit.reference import sparse_matmul
from edgekit.metrics import tensor_distance
from edgekit.passes import choose_formats
from edgekit.recipe import Recipe, Rule
from edgekit.spec.facts import facts_of, plan_of
from edgekit.spec.formats import FORMATS
from edgekit.spec.records import Layer
from tests.unit.test_passes import Net, X, lowered, recipe, run

NAMES = ("sparse-int4", "sparse-int8")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no cache held the model."""
    monkeypatch.setattr(choose_formats, "CACHE_BYTES", 0)


def pruned(rows: int, zeros: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, 64)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    return weight


def graph(*zeros: float) -> ir.Model:
    """A layer mlp.0, mlp.1, ... for each share of zeros."""
    net = Net()
    weights = [net.weight(f"mlp.{i}.weight", pruned(32, share, i)) for i, share in enumerate(zeros)]
    return net.model(
        *(net.op("Relu", net.linear(f"mlp.{i}", net.x, 32, i == 0, weight=w)) for i, w in enumerate(weights))
    )


def layers_of(model: ir.Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in facts_of(model).layers}


@pytest.mark.parametrize("name", NAMES)
def test_sparse_only_from_where_it_is_faster_and_said_why(name: str, large: None) -> None:
    dense, least = FORMATS[name].stand_in, choose_formats.BREAK_EVEN
    model = lowered(graph(0.97, 0.0), recipe(Rule("*", name)))
    found = layers_of(model)
    assert (found["mlp.0"].format, found["mlp.1"].format) == (name, dense)
    assert f"% zeros: faster than {dense} from {least:.0%}" in found["mlp.0"].reason
    expected = f"% zeros, {name} is faster than {dense} from {least:.0%}; stored as {dense}"
    assert found["mlp.1"].reason.endswith(expected)
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["SparseMatMul"], kinds[FORMATS[dense].operator]) == (1, 1)


def test_what_a_cache_holds_stays_dense() -> None:
    found = layers_of(lowered(graph(0.97), recipe(Rule("*", "sparse-int4"))))
    expected = "the model's weights stay in a cache of 32 MiB, where int4 is faster; stored as int4"
    assert (found["mlp.0"].format, found["mlp.0"].reason) == ("int4", expected)


def test_a_bundle_for_other_processors_stays_dense(large: None) -> None:
    for abis, chosen in (
        (("linux-x86_64", "android-x86_64"), "sparse-int4"),
        (("linux-x86_64", "linux-aarch64"), "int4"),
    ):
        model = graph(0.97)
        choose_formats.ChooseFormats(recipe(Rule("*", "sparse-int4")), abis)(model)
        (layer,) = [n for n in model.graph if n.op_type == "Linear"]
        assert plan_of(layer).format == chosen
    expected = "for linux-aarch64 too (--abi), where sparse-int4 was not measured to be faster; stored as int4"
    assert plan_of(layer).reason == expected


def test_an_embedding_stays_dense(large: None) -> None:
    net = Net()
    ids = net.op("Cast", net.x, to=ir.DataType.INT64.value)
    table = net.weight("table", pruned(32, 0.97))
    model = net.model(net.op("Embedding", ids, table, domain="ai.edgekit", layer="embed", shape=["b", "s", 64, 64]))
    found = layers_of(lowered(model, recipe(Rule("*", "sparse-int8"))))
    assert found["embed"].format == "int8"
    assert found["embed"].reason == "embedding: looked up by row; stored as int8"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("native", [False, True])
def test_layers_compute_what_is_stored(name: str, native: bool, large: None) -> None:
    model = lowered(graph(0.95, 0.9, 0.97), recipe(Rule("*", name)))
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["SparseMatMul"], kinds["Split"]) == (3, 0)  # nothing to gain by merging them
    found = layers_of(model)["mlp.2"]
    stored = model.graph.initializers[found.tensor].const_value.numpy()  # type: ignore[union-attr]
    assert found.bits_per_weight == pytest.approx(8 * (stored.nbytes + 4 * 32) / (32 * 64), abs=1e-4)
    if native:
        library = load_library()
        assert library is not None
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library.path))
        outputs = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, {"x": X})
    else:
        outputs = run(model)
    bias = next(w for n, w in model.graph.initializers.items() if "bias" in n).const_value.numpy()  # type: ignore[union-attr]
    for index, (share, output) in enumerate(zip((0.95, 0.9, 0.97), outputs, strict=True)):
        packed = CODECS[name].quantize(pruned(32, share, index), 0)
        expected = sparse_matmul(X.reshape(-1, 64), packed, bias if index == 0 else None, 128)
        distance = tensor_distance(np.maximum(expected, 0), output.reshape(expected.shape))
        assert distance["sqnr_db"] > (120 if native else 80)


def test_sparse_has_no_blocks() -> None:
    with pytest.raises(RecipeError, match=r"rules\[0\].block_size: 64 given, sparse-int4 takes 0: it has no blocks"):
        Recipe(version=1, name="test", rules=(Rule("*", "sparse-int4", 64),))
