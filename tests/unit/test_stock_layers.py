"""Every weight is listed: what no format is for, with the reason; and how layers are named when they are printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.inspection import Inspection
from edgekit.passes.stock_layers import CONVOLUTION, PRODUCT, RECURRENT, ListStockLayers, stock_layers
from edgekit.spec.facts import facts_of
from edgekit.spec.records import Layer
from tests.support.tiny_bundle import decoder_bundle


def graph(nodes: list[Any], weights: dict[str, np.ndarray]) -> ir.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializers))
    return ir.from_proto(proto)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_what_no_format_is_for() -> None:
    model = graph(
        [
            helper.make_node("Conv", ["x", "body.0.weight", "body.0.bias"], ["a"]),
            helper.make_node("Conv", ["a", "body.0.weight"], ["b"]),  # the same layer again
            helper.make_node("ConvTranspose", ["b", "half"], ["c"]),
            helper.make_node("LSTM", ["c", "w", "r", "bias"], ["d"], hidden_size=4, name="rnn"),
            helper.make_node("MatMul", ["left", "d"], ["e"]),
            helper.make_node("MatMul", ["e", "x"], ["y"]),  # two activations
        ],
        {
            "body.0.weight": floats(4, 3, 3, 3), "body.0.bias": floats(4), "half": floats(4, 2, 2, 2).astype(np.float16),
            "w": floats(1, 16, 8), "r": floats(1, 16, 4), "bias": floats(1, 32), "left": floats(5, 6),
        },
    )  # fmt: skip
    facts_of(model).layers = [Layer("before", "int8", 64, 8.5, (2, 2))]
    ListStockLayers()(model)
    assert facts_of(model).layers == [
        Layer("before", "int8", 64, 8.5, (2, 2)),
        Layer("body.0", "fp32", 0, 32.0, (4, 3, 3, 3), reason=CONVOLUTION),
        Layer("half", "fp16", 0, 16.0, (4, 2, 2, 2), reason=CONVOLUTION),
        Layer("w.weight_ih", "fp32", 0, 32.0, (1, 16, 8), reason=RECURRENT),
        Layer("r.weight_hh", "fp32", 0, 32.0, (1, 16, 4), reason=RECURRENT),
        Layer("left", "fp32", 0, 32.0, (5, 6), reason=PRODUCT),
    ]


def test_weights_that_are_quantized_already() -> None:
    model = graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scales"], ["c.weight_DequantizeLinear_Output"], axis=0),
            helper.make_node("Conv", ["x", "c.weight_DequantizeLinear_Output"], ["y"]),
        ],
        {"q": np.zeros((4, 3, 3, 3), np.int8), "scales": floats(4)},
    )
    given, made = (next(stock_layers(model, calibrated)) for calibrated in (False, True))
    assert made == Layer("c", "int8-static", 0, 9.1852, (4, 3, 3, 3))  # 8 + 4 * 32 / 108
    assert given == replace(made, reason="quantized already in the model that was given")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("features.0", "features.3"), ["features.0", "features.3"]),
        (("l.0.q", "l.1.q", "l.2.q", "l.9.q", "l.5.q"), ["l.{0-2,9}.q", "l.5.q"]),
        (("l.0.q", "l.1.q", "k"), ["l.*.q", "k"]),
        (("a.0.1", "a.1.2", "a.7.7"), ["a.*.*", "a.7.7"]),
        (("l.²", "l." + "9" * 5000), ["l.²", "l." + "9" * 5000]),
    ],
)
def test_layers_that_differ_have_names_that_do(names: tuple[str, ...], labels: list[str], tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    layers = tuple(Layer(n, "fp32", 0, 32.0, (2, 2) if i < len(names) - 1 else (9, 9)) for i, n in enumerate(names))
    bundle = replace(bundle, manifest=replace(bundle.manifest, layers=layers))
    lines = list(Inspection(bundle, {}).lines())
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["layer", "count"])
    assert [line.split()[0] for line in lines[first + 1 : first + 1 + len(labels)]] == labels
