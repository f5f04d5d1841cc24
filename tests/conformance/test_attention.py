"""``ai.edgekit::CachedAttention``: every instruction set of this processor against the numpy reference, bit for bit, the function
body to rounding, tokens one by one and together, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.lowbit.attention_reference import exp_of, fused
from edgekit.lowbit.functions import ATTENTION_FLOATS, ATTENTION_INTS
from edgekit.metrics import tensor_distance
from tests.conformance.test_operators import ISAS
from tests.support.attention import Case, case, run, session

GOOD = case(0, 6, 3, 16, 4, 10, slots=20, turned=16, sink=True)


def same(expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def arbitrary(draw: st.DataObject) -> Case:
    groups, shared, batch = (draw.draw(st.integers(1, most)) for most in (3, 4, 2))
    dim = 8 * draw.draw(st.integers(1, 10))
    past, tokens = draw.draw(st.sampled_from([0, 1, 63, 64, 65, 130])), draw.draw(st.sampled_from([1, 2, 3, 9, 20]))
    return case(
        draw.draw(st.integers(0, 999)), groups * shared, groups, dim, tokens, past, batch,
        slots=draw.draw(st.integers(0, 1)) * (past + tokens + 5), packed=draw.draw(st.booleans()),
        turned=draw.draw(st.sampled_from([0, dim, 8])), sink=draw.draw(st.booleans()),
        rotary_interleaved=draw.draw(st.integers(0, 1)), softcap=draw.draw(st.sampled_from([0.0, 3.0, 50.0])),
        local_window_size=draw.draw(st.sampled_from([-1, 1, 5, 64, 100])),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_any_shape_on_every_instruction_set(draw: st.DataObject) -> None:
    one = arbitrary(draw)
    expected = one.expected()
    for isa in ISAS:
        same(expected, run(one, isa))


@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_threads_and_instruction_sets_agree(draw: st.DataObject) -> None:
    """Longer than the reference has patience for."""
    groups, shared, eights = (draw.draw(st.integers(1, most)) for most in (4, 5, 16))
    one = case(
        draw.draw(st.integers(0, 999)), groups * shared, groups, 8 * eights, draw.draw(st.integers(1, 140)),
        draw.draw(st.integers(0, 900)), turned=8 * eights, local_window_size=draw.draw(st.sampled_from([-1, 90, 500])),
    )  # fmt: skip
    expected = run(one, ISAS[0], threads=1)
    same(expected, run(one, ISAS[0], threads=4))
    for isa in ISAS:
        same(expected, run(one, isa, threads=2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [-1, 50])
def test_tokens_together_are_tokens_one_by_one(isa: str, window: int) -> None:
    one = case(3, 6, 2, 32, 90, 37, slots=140, turned=32, sink=True, softcap=30.0, local_window_size=window)
    together = run(one, isa)
    inputs, rows = dict(one.inputs), []
    for token in range(90):
        inputs |= {
            "query": one.inputs["query"][:, token : token + 1],
            "seqlens_k": np.array([37 + token], np.int32),
            "total_sequence_length": np.array([38 + token], np.int32),
        }
        row, inputs["past_key"], inputs["past_value"] = run(Case(one.facts, inputs), isa)
        rows.append(row)
    same(together, (np.concatenate(rows, axis=1), inputs["past_key"], inputs["past_value"]))


def test_rows_of_a_batch_are_rows_alone() -> None:
    one = case(5, 4, 2, 16, 12, 80, batch=3, slots=100, turned=16)
    together = run(one)
    for b in range(3):
        alone = {
            name: array[b : b + 1] if name in ("query", "past_key", "past_value", "seqlens_k") else array
            for name, array in one.inputs.items()
        }
        same(tuple(array[b : b + 1] for array in together), run(Case(one.facts, alone)))


def test_a_cache_is_written_in_place() -> None:
    one = case(1, 6, 3, 16, 4, 10, slots=20)
    expected = run(one)
    ort = session(one.facts, tuple(one.inputs), "")
    binding, held = ort.io_binding(), []
    made = {"output": np.empty_like(expected[0])}
    for name, array in one.inputs.items():
        own = array.copy()
        held.append(own)
        binding.bind_cpu_input(name, own)
        if name.startswith("past_"):
            made[name.replace("past", "present")] = own
    for name, array in made.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    ort.run_with_iobinding(binding)
    same((expected[0],), (made["output"],))
    for name, array in zip(("present_key", "present_value"), expected[1:], strict=True):
        same((array[:, :, :14],), (made[name][:, :, :14],))
        np.testing.assert_array_equal(made[name][:, :, 14:], one.inputs[name.replace("present", "past")][:, :, 14:])


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize(
    "attributes",
    [{}, {"local_window_size": 30}, {"softcap": 20.0}, {"turned": 16}, {"turned": 16, "rotary_interleaved": 1}, {"sink": True}],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_the_function_body_computes_the_same(tokens: int, attributes: dict[str, Any], packed: bool) -> None:
    one = case(2, 6, 2, 32, tokens, 60, slots=110, packed=packed, **attributes)
    for expected, found in zip(run(one), run(one, "body"), strict=True):
        rows = slice(0, 60 + tokens)
        both = (expected, found) if expected.ndim == 3 else (expected[:, :, rows], found[:, :, rows])
        assert tensor_distance(*both)["sqnr_db"] >= 110


def test_what_no_token_sees_is_not_read() -> None:
    """NaN behind the last position, and before the window, reaches nothing."""
    one = case(2, 6, 2, 32, 20, 200, slots=300, local_window_size=50)
    clean = run(one)
    dirty = {name: array.copy() for name, array in one.inputs.items()}
    for name in ("past_key", "past_value"):
        dirty[name][:, :, 220:] = np.nan
        dirty[name][:, :, :150] = np.nan
    same((clean[0],), (run(Case(one.facts, dirty))[0],))


def test_a_later_token_reaches_no_earlier_one() -> None:
    one = case(4, 4, 2, 16, 40, 100)
    changed = {**one.inputs, "query": one.inputs["query"].copy()}
    changed["query"][:, 30:] = np.nan
    same((run(one)[0][:, :30],), (run(Case(one.facts, changed))[0][:, :30],))


@pytest.mark.parametrize("isa", ISAS)
def test_extremes(isa: str) -> None:
    """Scores so far apart that all weights but one are 0, very small numbers, and none at all."""
    for factor in (0.0, 1e-40, 1e-20, 1e3, 1e15):
        one = case(6, 4, 2, 16, 9, 70)
        inputs = dict(one.inputs)
        inputs["query"] = inputs["query"] * np.float32(factor)
        scaled = Case(one.facts, inputs)
        same(scaled.expected(), run(scaled, isa))


def test_no_tokens_and_no_rows() -> None:
    one = case(0, 4, 2, 16, 1, 5)
    empty = {**one.inputs, "query": one.inputs["query"][:, :0], "seqlens_k": np.array([4], np.int32)}
    output, *caches = run(Case(one.facts, {**empty, "total_sequence_length": np.array([5], np.int32)}))
    assert output.shape == (1, 0, 64)
    same(tuple(caches), (one.inputs["past_key"], one.inputs["past_value"]))  # also where they are not in place


def changed(**arrays: np.ndarray | None) -> Case:
    return Case(GOOD.facts, {k: v for k, v in {**GOOD.inputs, **arrays}.items() if v is not None})


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def refusal(one: Case) -> str:
    with pytest.raises(Exception, match="CachedAttention: ") as caught:
        run(one)
    return str(caught.value)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (changed(query=zeros(1, 4, 190)), "query is [1, 4, 190], its last dimension is no multiple of 12 heads (packed: query, key and value)"),
        (changed(query=zeros(1, 4, 12 * 12)), "query is [1, 4, 144], heads of 12; a multiple of 8 up to 512 expected"),
        (changed(query=zeros(1, 4, 12 * 520)), "query is [1, 4, 6240], heads of 520; a multiple of 8 up to 512 expected"),
        (changed(query=zeros(1, 4, 96), key=zeros(1, 4, 48)), "value is missing"),
        (changed(query=zeros(1, 4, 96), value=zeros(1, 4, 48)), "key is missing"),
        (changed(query=zeros(1, 4, 96), key=zeros(1, 4, 32), value=zeros(1, 4, 48)), "key is [1, 4, 32], [1, 4, 48] expected (as query, kv_num_heads heads)"),
        (changed(query=zeros(1, 4, 96), key=zeros(1, 4, 48), value=zeros(1, 3, 48)), "value is [1, 3, 48], [1, 4, 48] expected"),
        (changed(query=zeros(0, 2**20, 192), seqlens_k=ints()), "query is [0, 1048576, 192], fewer than 2^20 rows and tokens expected"),
        (changed(past_key=zeros(0, 3, 2**30, 16)), "past_key is [0, 3, 1073741824, 16], fewer than 2^30 positions expected"),
        (changed(past_key=zeros(1, 2, 20, 16)), "past_key is [1, 2, 20, 16], [1, 3, 20, 16] expected (batch, kv_num_heads, positions, head size)"),
        (changed(past_value=zeros(1, 3, 19, 16)), "past_value is [1, 3, 19, 16], [1, 3, 20, 16] expected"),
        (changed(past_key=zeros(2, 3, 20, 16)), "past_key is [2, 3, 20, 16], [1, 3, 20, 16] expected"),
        (changed(past_key=zeros(1, 3, 20, 8)), "past_key is [1, 3, 20, 8], [1, 3, 20, 16] expected"),
        (changed(seqlens_k=ints(13, 13)), "seqlens_k is [2], [1] expected (batch)"),
        (changed(seqlens_k=ints(13), past_value=zeros(1, 3, 20, 8)), "past_value is [1, 3, 20, 8], [1, 3, 20, 16] expected"),
        (changed(seqlens_k=ints(2)), "seqlens_k of row 0 is 2, 3 (of 4 new tokens the last) to 13 (total_sequence_length) expected"),
        (changed(seqlens_k=ints(14)), "seqlens_k of row 0 is 14, 3 (of 4 new tokens the last) to 13"),
        (changed(seqlens_k=ints(-1)), "seqlens_k of row 0 is -1, 3"),
        (changed(seqlens_k=ints(2**31 - 1)), "seqlens_k of row 0 is 2147483647, 3"),
        (changed(total_sequence_length=ints(2**30)), "total_sequence_length is 1073741824, 4 (the new tokens) to 2^30 expected"),
        (changed(total_sequence_length=ints(-1)), "total_sequence_length is -1, 4 (the new tokens) to 2^30 expected"),
        (changed(total_sequence_length=ints(3)), "total_sequence_length is 3, 4 (the new tokens) to 2^30 expected"),
        (changed(total_sequence_length=ints(14, 14)), "total_sequence_length is [2], [1] expected (one number)"),
        (changed(cos_cache=None), "cos_cache is missing"),
        (changed(cos_cache=zeros(14, 9)), "cos_cache is [14, 9], [positions, 1 to 8] expected"),
        (changed(sin_cache=zeros(14, 7)), "sin_cache is [14, 7], [14, 8] expected (as cos_cache)"),
        (changed(cos_cache=zeros(13, 8), sin_cache=zeros(13, 8)), "cos_cache is [13, 8], a token stands at position 13"),
        (changed(head_sink=zeros(5)), "head_sink is [5], [6] expected (num_heads)"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(one: Case, message: str) -> None:
    assert f"CachedAttention: {message}" in refusal(one)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0, 1 to 2^20 expected"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0, 1 to num_heads expected"),
        ({"kv_num_heads": 7}, "kv_num_heads is 7, 1 to num_heads expected"),
        ({"kv_num_heads": 4}, "kv_num_heads is 4, a divisor of num_heads expected"),
        ({"local_window_size": 0}, "local_window_size is 0, -1 (no window) or 1 to 2^30 expected"),
        ({"local_window_size": -2}, "local_window_size is -2, -1 (no window)"),
        ({"do_rotary": 2}, "do_rotary is 2, 0 or 1 expected"),
        ({"rotary_interleaved": -1}, "rotary_interleaved is -1, 0 or 1 expected"),
        ({"scale": 0.0}, "scale is not above 0 and below 1e30"),
        ({"scale": float("nan")}, "scale is not above 0 and below 1e30"),
        ({"softcap": -1.0}, "softcap is not 0 (none) or above, and below 1e30"),
        ({"softcap": float("inf")}, "softcap is not 0 (none) or above"),
        ({"scale": 1e30}, "scale is not above 0 and below 1e30"),
        ({"num_heads": 2**20}, "num_heads is 1048576, 1 to 2^20 expected"),
        ({"local_window_size": 2**30}, "local_window_size is 1073741824, -1 (no window) or 1 to 2^30 expected"),
    ],
)  # fmt: skip
def test_attributes_out_of_range_are_refused(facts: dict[str, Any], message: str) -> None:
    assert f"CachedAttention: attribute {message}" in refusal(Case(replace(GOOD.facts, **facts), GOOD.inputs))


@pytest.mark.parametrize("name", [*ATTENTION_INTS, *ATTENTION_FLOATS])
def test_a_missing_attribute_is_named(name: str) -> None:
    kind = "float" if name in ("scale", "softcap") else "integer"
    with pytest.raises(Exception, match=f"CachedAttention: attribute {name} is missing or no {kind}; export the model"):
        session(GOOD.facts, tuple(GOOD.inputs), "", left_out=name)


@pytest.mark.parametrize(
    ("name", "kind"), [("query", "float16"), ("past_key", "float16"), ("seqlens_k", "int64"), ("head_sink", "double")]
)
def test_inputs_of_other_types_are_refused_by_onnx_runtime(name: str, kind: str) -> None:
    with pytest.raises(
        Exception,
        match=rf"'tensor\({kind}\)' of input parameter \({name}\) of operator \(CachedAttention\) in node \(node\) is invalid",
    ):
        session(GOOD.facts, tuple(GOOD.inputs), "", kinds=((name, kind),))


@pytest.mark.parametrize("name", ["query", "past_key", "past_value", "seqlens_k", "total_sequence_length"])
def test_an_input_that_is_left_out_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="CachedAttention"):
        run(changed(**{name: None}))


@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_whatever_comes_is_computed_or_refused(draw: st.DataObject) -> None:
    """Any ranks, sizes and numbers: a message that names the operator, or an answer, and the process lives on."""
    inputs = dict(GOOD.inputs)
    for name in draw.draw(st.lists(st.sampled_from(sorted(inputs)), max_size=3, unique=True)):
        array = inputs[name]
        shape = tuple(draw.draw(st.sampled_from([0, 1, 2, n, n + 1, max(n - 1, 0)])) for n in array.shape)
        inputs[name] = np.resize(array, shape)
        if array.dtype == np.int32:
            inputs[name] = np.full(shape, draw.draw(st.integers(-(2**31), 2**31 - 1)), np.int32)
    try:
        run(Case(GOOD.facts, inputs))
        said = "CachedAttention"
    except Exception as error:
        said = str(error)
    assert "CachedAttention" in said or "Got invalid dimensions" in said


@settings(max_examples=200, deadline=None)
@given(a=st.floats(width=32), b=st.floats(width=32), c=st.floats(width=32))
def test_the_reference_rounds_once(a: float, b: float, c: float) -> None:
    with np.errstate(all="ignore"):
        found = float(fused(*(np.array([x], np.float32) for x in (a, b, c)))[0])
    if not np.isfinite([a, b, c]).all():
        return
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    with np.errstate(all="ignore"):
        candidates = [np.float32(found), *(np.nextafter(np.float32(found), np.float32(s * np.inf)) for s in (-1, 1))]
    if np.isfinite(candidates).all():
        assert abs(Fraction(found) - exact) == min(abs(Fraction(float(x)) - exact) for x in candidates)


def test_exp_is_within_two_units() -> None:
    x = np.linspace(-87, 0, 100_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp_of(x) / exact - 1).max() < 2 * 2.0**-23
    assert exp_of(np.array([0.0, -87.5, -np.inf], np.float32)).tolist() == [1.0, 0.0, 0.0]
