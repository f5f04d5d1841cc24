"""Distances between outputs: checked against their definitions, and that nothing broken can pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.metrics import (
    class_distance,
    judge,
    neighbour_distance,
    perplexity,
    prediction_distance,
    summarize,
    tensor_distance,
)
from edgekit.recipe import Limits

RANDOM = np.random.default_rng(0)


def test_tensor_distance_by_hand() -> None:
    found = tensor_distance(np.array([3.0, 4.0]), np.array([3.0, 3.5]))
    assert found["max_abs"] == 0.5
    assert found["sqnr_db"] == pytest.approx(20.0)  # 25 / 0.25
    assert found["cosine"] == pytest.approx(23.0 / (5.0 * np.hypot(3.0, 3.5)))


def test_equal_tensors_are_as_good_as_it_gets() -> None:
    a = RANDOM.normal(size=(3, 5)).astype(np.float32)
    assert tensor_distance(a, a) == {"max_abs": 0.0, "sqnr_db": 200.0, "cosine": pytest.approx(1.0)}
    zero = np.zeros((2, 2), np.float32)
    assert tensor_distance(zero, zero) == {"max_abs": 0.0, "sqnr_db": 200.0, "cosine": 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_can_never_pass(bad: float) -> None:
    a = np.ones(4, np.float32)
    b = np.array([1, 1, 1, bad], np.float32)
    limits = Limits(max_abs=1e9, sqnr_db=-100.0, cosine=0.0001)
    assert not any(check.passed for check in judge(tensor_distance(a, b), limits))
    logits = np.ones((3, 4), np.float32)
    logits[1, 2] = bad
    with np.errstate(invalid="ignore"):
        assert class_distance(np.ones((3, 4)), logits)["top1"] == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(3, 2\) differ"):
        tensor_distance(np.zeros((2, 3)), np.zeros((3, 2)))


def summaries(ours: np.ndarray, theirs: np.ndarray, kept: int, margin: float = 0.0) -> dict[str, float]:
    """prediction_distance of two sets of logits [T, V], ``kept`` of which the reference stores."""
    targets = np.arange(len(theirs)) % theirs.shape[1]
    top = np.argsort(-theirs, -1)[:, :kept]
    peak = theirs.max(-1, keepdims=True)
    total = np.log(np.exp(theirs - peak).sum(-1)) + peak[:, 0]
    reference = {
        "top_indices": top,
        "top_values": np.take_along_axis(theirs, top, -1),
        "logsumexp": total,
        "nll": (total - theirs[np.arange(len(theirs)), targets])[:-1],
    }
    return prediction_distance(reference, summarize(ours, targets[:-1], {"ref": top}), "ref", margin)


def test_predictions_against_their_definitions() -> None:
    theirs = RANDOM.normal(size=(12, 9)) * 3
    ours = theirs + RANDOM.normal(size=theirs.shape)
    found = summaries(ours.astype(np.float32), theirs, kept=9)
    log_p, log_q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (theirs, ours))
    assert found["kl"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-4)
    rows, targets = np.arange(11), (np.arange(12) % 9)[:-1]
    assert found["perplexity"] == pytest.approx(np.exp(-log_q[rows, targets].mean()), rel=1e-4)
    expected = np.exp(log_p[rows, targets].mean() - log_q[rows, targets].mean())
    assert found["perplexity_ratio"] == pytest.approx(expected, rel=1e-4)
    changed = theirs.argmax(-1) != ours.argmax(-1)
    assert found["flips"] == changed.sum() > 0
    assert found["top1"] == pytest.approx(1 - changed.mean())
    assert found["max_abs"] == pytest.approx(np.abs(theirs - ours).max(), rel=1e-4)


def test_kept_tokens_bound_the_divergence_from_below() -> None:
    theirs = RANDOM.normal(size=(6, 50))
    ours = (theirs + RANDOM.normal(size=theirs.shape)).astype(np.float32)
    assert 0 < summaries(ours, theirs, kept=8)["kl"] <= summaries(ours, theirs, kept=50)["kl"]


def test_only_leads_beyond_the_margin_count_as_flips() -> None:
    theirs = np.array([[2.0, 1.9, 0.0], [2.0, 0.0, 1.0]])
    ours = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]], np.float32)
    assert summaries(ours, theirs, kept=3)["top1"] == 0.0
    found = summaries(ours, theirs, kept=3, margin=0.5)
    assert (found["top1"], found["flips"]) == (0.5, 2.0)
    assert found["widest_flip"] == pytest.approx(1.0)
    assert class_distance(theirs, ours, margin=0.5)["top1"] == 0.5


def test_broken_logits_fail_everything() -> None:
    ours = np.zeros((4, 6), np.float32)
    ours[2] = np.nan
    found = summaries(ours, RANDOM.normal(size=(4, 6)), kept=3)
    limits = Limits(top1=0.01, kl=1e9, perplexity_ratio=1e9, max_abs=1e9)
    assert not any(check.passed for check in judge(found, limits))


@given(st.floats(-5, 5), st.floats(0, 10))
def test_equal_predictions_have_no_distance(shift: float, scale: float) -> None:
    theirs = np.random.default_rng(1).normal(size=(5, 7)) * scale
    found = summaries((theirs + shift).astype(np.float32), theirs, kept=4)
    assert found["kl"] == pytest.approx(0.0, abs=1e-5)
    assert found["perplexity_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_neighbours() -> None:
    rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert neighbour_distance(rows, rows * 3) == {"top1": 1.0, "flips": 0.0, "widest_flip": 0.0}
    # The second row now lies with the last two: it has another neighbour, and has become the last row's.
    moved = np.array([[1.0, 0.0], [0.1, 0.8], [0.0, 1.0], [0.1, 0.9]])
    found = neighbour_distance(rows, moved)
    assert (found["top1"], found["flips"]) == (0.5, 2.0)
    assert found["widest_flip"] == pytest.approx(0.774, abs=1e-3)
    assert neighbour_distance(rows, moved, margin=0.9)["top1"] == 1.0


def test_perplexity_of_a_uniform_guess() -> None:
    assert perplexity(np.full(10, np.log(50), np.float32)) == pytest.approx(50, rel=1e-5)
    assert perplexity(np.array([1e6])) < np.inf


def test_limits_are_upper_or_lower() -> None:
    checks = judge({"max_abs": 1.0, "cosine": 0.9, "kl": 3.0, "flips": 7.0}, Limits(max_abs=0.5, cosine=0.8))
    assert [(c.metric, c.passed, c.bound) for c in checks] == [
        ("max_abs", False, "<= 0.5"),
        ("kl", True, ""),
        ("cosine", True, ">= 0.8"),
    ]
    assert not judge({"kl": float("nan")}, Limits(kl=1.0))[0].passed
