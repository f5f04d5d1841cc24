"""The rate report: its numbers against hand counts, theory and a real code, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import UnsupportedError, UsageError
from edgekit.methods.rate import best_golomb, counted, entropy, golomb, rate_report, rounded
from tests.support.gaussian import entropy_bits


def exp_golomb(value: int, order: int) -> str:
    """The word itself: value + 2^k in binary, after as many zeros as it has digits beyond the first k + 1."""
    digits = format(value + (1 << order), "b")
    return "0" * (len(digits) - 1 - order) + digits


def test_the_words_of_the_paper() -> None:
    assert [exp_golomb(u, 0) for u in range(5)] == ["1", "010", "011", "00100", "00101"]


@settings(max_examples=30)
@given(st.lists(st.integers(-300, 300), min_size=1, max_size=200), st.integers(0, 4))
def test_lengths_are_those_of_the_words(values: list[int], order: int) -> None:
    counts = counted(np.array(values, np.int32))
    assert int(counts.sum()) == len(values) and list(counts) == sorted(counts, reverse=True)
    words = sum(int(n) * len(exp_golomb(rank, order)) for rank, n in enumerate(counts))
    assert golomb(counts, order) == pytest.approx(words / len(values))
    assert entropy(counts) <= golomb(counts, order) + 1e-9
    assert best_golomb(counts)[1] == pytest.approx(min(golomb(counts, k) for k in range(13)))


def test_a_report_by_hand() -> None:
    weights = {"a": torch.tensor([[0.0, 0.0, 0.5, -0.5]]), "b": torch.tensor([0.24, 1.0])}
    report = rate_report(weights, 0.5)
    a, b = report.layers
    assert (a.count, a.zeros, a.rounded_zeros, a.entropy) == (4, 0.5, 0.5, 1.5)
    assert a.golomb == pytest.approx((2 * 1 + 3 + 3) / 4) and a.deviation == pytest.approx(math.sqrt(0.125))
    assert (b.zeros, b.rounded_zeros, b.entropy) == (0.0, 0.5, 1.0)
    total = report.total
    assert total.count == 6 and total.zeros == pytest.approx(2 / 6)
    assert total.entropy == pytest.approx((4 * 1.5 + 2 * 1.0) / 6)
    # -1, 0 three times, 1 and 2 once each
    assert report.pooled.entropy == pytest.approx(-(0.5 * math.log2(0.5) + 3 / 6 * math.log2(1 / 6)))
    assert total.coded is None
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["layers"][0]["name"] == "a" and document["total"]["count"] == 6
    lines = report.lines()
    assert len(lines) == 1 + 2 + 2 + 1 and lines[1].startswith("a ") and "50.0%" in lines[1]


def test_gaussian_weights_cost_what_theory_says() -> None:
    weight = torch.randn(400, 500, generator=torch.Generator().manual_seed(1)) * 0.04
    row = rate_report({"w": weight}, 0.04 / 10).total
    assert row.nu == pytest.approx(2.0, abs=0.05) and row.scale == pytest.approx(0.04 * math.sqrt(2), rel=0.05)
    assert row.entropy == pytest.approx(entropy_bits(2.0, 0.04, 0.004), abs=0.01)
    # methods: 5.37 bits of entropy, 7.28 of EG0, 5.85 of EG3
    assert row.golomb == pytest.approx(7.28, abs=0.1) and row.golomb_order == 3
    assert row.golomb_best == pytest.approx(5.85, abs=0.05)


def test_a_coder_gets_every_layer() -> None:
    seen: list[np.ndarray] = []

    def code(codes: np.ndarray) -> int:
        seen.append(codes)
        return 3 * codes.size

    report = rate_report({"a": torch.tensor([[-1.0, 2.0]]), "b": torch.tensor([4.0])}, {"a": 1.0, "b": 2.0}, code)
    assert [codes.tolist() for codes in seen] == [[-1, 2], [2]] and seen[0].dtype == np.int32
    assert report.total.coded == 3.0 and report.pooled.coded is None


def test_weights_far_apart_are_counted_too() -> None:
    assert counted(np.array([-(2**30), 2**30, 5, 5], np.int32)).tolist() == [2, 1, 1]
    assert rate_report({"zero": torch.zeros(3, 3)}, 0.1).total.entropy == 0.0


def test_what_has_no_rate() -> None:
    weight = torch.ones(2, 2)
    with pytest.raises(UsageError, match="weights: none are given"):
        rate_report({}, 0.1)
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"step: .* is not above 0"):
            rate_report({"w": weight}, step)
    with pytest.raises(UnsupportedError, match="w: holds NaN or infinity"):
        rounded("w", torch.tensor([math.nan]), 0.1)
    with pytest.raises(UnsupportedError, match=r"w: its largest weight is 1e\+12 steps of 1e-12; give a larger step"):
        rounded("w", weight, 1e-12)
