"""``ai.edgekit::ExpertMatMul``: every instruction set of this processor against the numpy reference, bit for bit, the function body
to rounding, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.formats import PackedTensor, pack_t2
from edgekit.lowbit.functions import expert_function
from edgekit.lowbit.library import load_library
from edgekit.lowbit.reference import expert_matmul
from edgekit.metrics import tensor_distance
from edgekit.spec.formats import FORMATS
from tests.conformance.test_blocks import packed
from tests.conformance.test_operators import ISAS, agree, refusal
from tests.support import operator_sessions as sessions

KINDS = (("int4", 16), ("int4", 64), ("int8", 32), ("int8", 256), ("t2", 128))


def case(
    format_name: str, block: int, experts: int, n: int, blocks: int, pairs: tuple[int, int], by_pair: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, PackedTensor]:
    """X, an index, and the experts' weights one below the other, with codes of every value and scales of both signs."""
    random, k = np.random.default_rng(seed), blocks * block
    scales = random.uniform(-2.0, 2.0, (experts * n, blocks)).astype(np.float32)
    if format_name == "t2":
        weight = pack_t2(random.integers(-1, 2, (experts * n, k)).astype(np.int8), scales)
    else:
        codes = random.integers(0, 1 << FORMATS[format_name].bits, (experts * n, k))
        weight = packed(format_name, codes, block, scales)
    x = random.standard_normal((*pairs, k) if by_pair else (pairs[0], k)).astype(np.float32)
    return x, random.integers(0, experts, pairs), weight


def run(x: np.ndarray, index: np.ndarray, weight: PackedTensor, experts: int, native: bool = True) -> np.ndarray:
    """By the operator of the library, or by its function body."""
    library = load_library()
    assert library is not None and weight.scales is not None
    n, k = weight.shape[0] // experts, weight.shape[1]
    inputs: list[sessions.Input] = [
        sessions.graph_input(ir.DataType.FLOAT, x.ndim), sessions.graph_input(ir.DataType.INT64, 2, "index"),
        ("W", weight.data.reshape(experts, n, *weight.data.shape[1:])), ("scales", weight.scales.reshape(experts, n, -1)),
    ]  # fmt: skip
    session = sessions.one_node(
        "ai.edgekit", "ExpertMatMul", inputs, () if native else [expert_function()], library.path if native else None,
        K=k, N=n, bits=FORMATS[weight.format].bits, block_size=weight.block_size,
    )  # fmt: skip
    answer: np.ndarray = session.run(None, {"X": x, "index": index})[0]
    return answer


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 40), each=st.integers(1, 5), experts=st.integers(1, 9), n=st.integers(1, 90), blocks=st.integers(1, 4),
    by_pair=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_any_shape(
    kind: tuple[str, int], isa: str, tokens: int, each: int, experts: int, n: int, blocks: int, by_pair: bool, seed: int
) -> None:
    x, index, weight = case(*kind, experts, n, blocks, (tokens, each), by_pair, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_ISA", isa)
        agree(expert_matmul(x, index, weight, experts), run(x, index, weight, experts), None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_for_one_expert(kind: tuple[str, int], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are multiplied at a time, and experts that nothing goes to."""
    monkeypatch.setenv("EDGEKIT_ISA", isa)
    x, index, weight = case(*kind, 6, 70, 3, (280, 2), False, 3)
    index[:, 0], index[:, 1] = 4, np.arange(280) % 3
    agree(expert_matmul(x, index, weight, 6), run(x, index, weight, 6), None)


@pytest.mark.parametrize("by_pair", [False, True])
@pytest.mark.parametrize("pairs", [(1, 4), (33, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_function_body_reads_the_same_bytes(kind: tuple[str, int], pairs: tuple[int, int], by_pair: bool) -> None:
    x, index, weight = case(*kind, 5, 96, 2, pairs, by_pair, 0)
    found = run(x, index, weight, 5, native=False)
    assert tensor_distance(expert_matmul(x, index, weight, 5), found)["sqnr_db"] >= 110


GOOD: dict[str, np.ndarray] = {
    "X": np.zeros((3, 128), np.float32), "index": np.zeros((3, 2), np.int64), "W": np.zeros((4, 5, 2, 32), np.uint8),
    "scales": np.ones((4, 5, 2), np.float32),
}  # fmt: skip
SIZES: dict[str, Any] = {"K": 128, "N": 5, "bits": 4, "block_size": 64}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"X": np.zeros((3, 127), np.float32)}, "X is [3, 127], [3, 128] or [3, 2, 128] expected (index, K)"),
        ({"index": np.zeros(6, np.int64)}, "index is [6], [tokens, experts of each] expected"),
        ({"W": np.zeros((4, 5, 2, 64), np.uint8)}, "W is [4, 5, 2, 64], [experts, 5, 2, 32] expected (experts, N, K/block_size, bytes of a block)"),
        ({"scales": np.ones((3, 5, 2), np.float32)}, "scales are [3, 5, 2], [4, 5, 2] expected (experts, N, K/block_size)"),
        ({"index": np.array([[0, 1], [2, 4], [0, 0]])}, "index holds 4 at place 3, 0 to 3 expected"),
        ({"index": np.array([[0, 1], [2, 3], [0, -1]])}, "index holds -1 at place 5, 0 to 3 expected"),
        ({"X": np.full((3, 128), np.nan, np.float32)}, "X holds NaN or infinity, which has no 8-bit code; look for the first layer"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    assert f"ExpertMatMul: {message}" in refusal("ExpertMatMul", {**GOOD, **changed}, **SIZES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 3}, "attribute bits is 3, 2, 4 or 8 expected"),
        ({"block_size": 48}, "attribute block_size is 48, 16, 32, 64, 128 or 256 expected"),
        ({"bits": 2}, "attribute block_size is 64, 128 expected with 2 bits"),
        ({"K": 100}, "attribute K is 100, a multiple of 64 up to 131072 expected"),
        ({"N": 0}, "attribute N is 0, 1 to 2^31 - 1 expected"),
    ],
)
def test_attributes_out_of_range_are_refused(changed: dict[str, int], message: str) -> None:
    assert f"ExpertMatMul: {message}" in refusal("ExpertMatMul", GOOD, **{**SIZES, **changed})


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_attribute_is_named(name: str) -> None:
    given_sizes = {key: size for key, size in SIZES.items() if key != name}
    message = f"ExpertMatMul: attribute {name} is missing or no integer; export the model again"
    assert message in refusal("ExpertMatMul", GOOD, **given_sizes)
