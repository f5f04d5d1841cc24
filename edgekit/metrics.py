"""Numbers that say how far two sets of outputs are apart, and whether that is within limits. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.recipe import Limits

Arrays = Mapping[str, np.ndarray]
UPPER = ("max_abs", "kl", "perplexity_ratio")
LOWER = ("sqnr_db", "cosine", "top1")
MOST_DECIBELS = 200.0


@dataclass(frozen=True)
class Check:
    """One measured number beside its limit; ``limit`` None was not asked for and cannot fail."""

    metric: str
    value: float
    limit: float | None
    passed: bool

    @property
    def bound(self) -> str:
        """The limit in words: "<= 0.001", or nothing."""
        return "" if self.limit is None else f"{'<=' if self.metric in UPPER else '>='} {self.limit:g}"


def judge(measured: Mapping[str, float], limits: Limits) -> tuple[Check, ...]:
    """Each limit that the recipe sets against what was measured; metrics without a limit are listed and cannot fail.

    A NaN fails whatever limit there is.
    """
    checks = []
    for metric in (*UPPER, *LOWER):
        if metric not in measured:
            continue
        value, limit = measured[metric], getattr(limits, metric)
        passed = limit is None or (value <= limit if metric in UPPER else value >= limit)
        checks.append(Check(metric, value, limit, bool(passed)))
    return tuple(checks)


def tensor_distance(reference: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """``max_abs``, ``sqnr_db`` (signal over squared error, at most 200) and ``cosine`` of float arrays of one shape.

    NaN or infinity in ``measured`` gives infinite max_abs, -200 dB and cosine 0: it can never pass.
    """
    a, b = reference.astype(np.float64).ravel(), measured.astype(np.float64).ravel()
    if reference.shape != measured.shape:
        raise ValueError(f"shapes {reference.shape} and {measured.shape} differ")
    if not np.isfinite(b).all():
        return {"max_abs": float("inf"), "sqnr_db": -MOST_DECIBELS, "cosine": 0.0}
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    lengths = float(np.sqrt(signal * float(b @ b)))
    return {
        "max_abs": float(np.abs(a - b).max(initial=0.0)),
        "sqnr_db": _decibels(signal, noise),
        "cosine": float(a @ b) / lengths if lengths > 0 else float(noise == 0.0),
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return MOST_DECIBELS
    return float(np.clip(10.0 * np.log10(max(signal, 1e-300) / noise), -MOST_DECIBELS, MOST_DECIBELS))


def summarize(logits: np.ndarray, targets: np.ndarray, at: Arrays) -> dict[str, np.ndarray]:
    """Next-token predictions in short, from logits float32 [T, V].

    ``targets`` are the tokens that really follow, int64 [T] or [T - 1]; ``at`` for each reference by name tokens int
    [T, n] whose logits it wants. Returns ``top_indices`` int64 [T], the likeliest tokens; ``logsumexp`` float32 [T];
    ``nll`` float32, nats of each target; ``at.<name>`` float32 [T, n].
    """
    peak = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(axis=-1, dtype=np.float64)).astype(np.float32) + peak[:, 0]
    nll = total[: len(targets)] - logits[np.arange(len(targets)), targets]
    asked = {f"at.{name}": np.take_along_axis(logits, t.astype(np.int64), axis=-1) for name, t in at.items()}
    return {"top_indices": logits.argmax(axis=-1), "logsumexp": total, "nll": nll, **asked}


def prediction_distance(reference: Arrays, measured: Arrays, name: str, margin: float = 0.0) -> dict[str, float]:
    """How far ``measured`` (from :func:`summarize`) is from a reference's predictions over the same T tokens.

    ``reference`` has ``top_values`` and ``top_indices`` [T, n] in descending order, ``logsumexp`` [T] and ``nll`` [T -
    1]; ``name`` is its name in ``measured``'s ``at.<name>``; a changed top-1 counts only where it led by more than
    ``margin`` logits. Returns ``top1``, the share of positions without a counted change; ``flips``, all changes;
    ``widest_flip``, the reference's largest lead among them (logits); ``kl``, D(reference || measured) in nats, mean
    over positions, everything but the reference's n tokens being one class; ``perplexity``; ``perplexity_ratio``;
    ``max_abs`` over the n logits.
    """
    values, at = reference["top_values"].astype(np.float64), measured[f"at.{name}"].astype(np.float64)
    lead = values[:, 0] - values[:, 1] if values.shape[1] > 1 else np.full(len(values), np.inf)
    changed = reference["top_indices"][:, 0] != measured["top_indices"]
    theirs, ours = reference["nll"].mean(dtype=np.float64), measured["nll"].mean(dtype=np.float64)
    if not np.isfinite(measured["logsumexp"]).all():
        infinite = dict.fromkeys(("kl", "perplexity", "perplexity_ratio", "max_abs", "widest_flip"), float("inf"))
        return {"top1": 0.0, "flips": float(len(values)), **infinite}
    return {
        "top1": 1.0 - float((changed & (lead > margin)).mean()),
        "flips": float(changed.sum()),
        "widest_flip": float(lead[changed].max(initial=0.0)),
        "kl": _divergence(values - reference["logsumexp"][:, None], at - measured["logsumexp"][:, None]),
        "perplexity": perplexity(measured["nll"]),
        "perplexity_ratio": float(np.exp(min(ours - theirs, 700.0))),
        "max_abs": float(np.abs(values - at).max(initial=0.0)),
    }


def _divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    p, q = np.exp(log_p), np.exp(log_q)
    rest_p, rest_q = np.clip(1.0 - p.sum(-1), 1e-12, None), np.clip(1.0 - q.sum(-1), 1e-12, None)
    each = (p * (log_p - log_q)).sum(-1) + rest_p * np.log(rest_p / rest_q)
    return float(np.maximum(each, 0.0).mean())


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean negative log-likelihood (nats)."""
    return float(np.exp(min(np.mean(nll, dtype=np.float64), 700.0)))


def class_distance(reference: np.ndarray, measured: np.ndarray, margin: float = 0.0) -> dict[str, float]:
    """``top1``, ``flips`` and ``kl`` of class logits float [n, C], as :func:`prediction_distance` defines them."""
    a, b = reference.astype(np.float64), measured.astype(np.float64)
    if not np.isfinite(b).all():
        return {"top1": 0.0, "flips": float(len(a)), "kl": float("inf")}
    ordered = np.sort(a, axis=-1)
    lead = ordered[:, -1] - ordered[:, -2] if a.shape[1] > 1 else np.full(len(a), np.inf)
    changed = a.argmax(-1) != b.argmax(-1)
    return {
        "top1": 1.0 - float((changed & (lead > margin)).mean()),
        "flips": float(changed.sum()),
        "kl": _divergence(_log_softmax(a), _log_softmax(b)),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def neighbour_distance(reference: np.ndarray, measured: np.ndarray, margin: float = 0.0) -> dict[str, float]:
    """``top1``, ``flips`` and ``widest_flip`` of two sets of embeddings float [n, D], n > 2.

    A row flips when its nearest other row (by cosine) is another one; it counts where the reference's nearest led the
    next by more than ``margin`` (of cosine). ``widest_flip`` is the largest such lead.
    """
    alike = _similarity(reference)
    ordered = np.sort(alike, axis=-1)
    lead = ordered[:, -1] - ordered[:, -2]
    changed = alike.argmax(-1) != _similarity(measured).argmax(-1)
    return {
        "top1": 1.0 - float((changed & (lead > margin)).mean()),
        "flips": float(changed.sum()),
        "widest_flip": float(lead[changed].max(initial=0.0)),
    }


def _similarity(rows: np.ndarray) -> np.ndarray:
    unit = rows.astype(np.float64) / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    alike: np.ndarray = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)  # no row is its own neighbour
    return alike
