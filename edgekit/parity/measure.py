"""Replays golden vectors and measures how far the answers are from both PyTorch models'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.metrics import Arrays, class_distance, neighbour_distance, perplexity, prediction_distance, tensor_distance
from edgekit.parity.replayer import REFERENCES

EMBEDDINGS = ("sentence_embedding", "pooler_output", "last_hidden_state")
"""Which output of a text encoder stands for a sentence, the best first; hidden states are averaged."""


@dataclass(frozen=True)
class Distances:
    """Metrics against one reference model, over ``count`` positions or samples; ``outputs`` by graph output."""

    metrics: dict[str, float]
    count: int
    unit: str
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)


def measure(
    bundle: Bundle, vectors: Sequence[Arrays], answers: Sequence[Arrays], margins: dict[str, float]
) -> dict[str, Distances]:
    """The distance of a machine's ``answers`` to each of ``REFERENCES``. ``margins``: see metrics.prediction_distance.

    Raises BundleError when no vector holds the graph's outputs.
    """
    if bundle.manifest.decoder is None:
        return {who: _outputs(bundle, vectors, answers, who, margins[who]) for who in REFERENCES}
    joined = _joined(answers)
    return {
        who: _predictions(_joined([reference(v, who) for v in vectors]), joined, who, margins[who])
        for who in REFERENCES
    }


def measure_between(
    bundle: Bundle, vectors: Sequence[Arrays], ours: Sequence[Arrays], theirs: Sequence[Arrays], margin: float
) -> Distances:
    """The distance of one machine's answers (``theirs``) to another's on the same vectors."""
    who = "other"
    if bundle.manifest.decoder is None:
        beside = [
            {**vector, **{f"{who}.{name}": a for name, a in answer.items()}}
            for vector, answer in zip(vectors, ours, strict=True)
        ]
        return _outputs(bundle, beside, theirs, who, margin)
    measured = [
        {**answer, f"at.{who}": np.take_along_axis(answer["at.compressed"], _order(own), -1)}
        for answer, own in zip(theirs, ours, strict=True)
    ]
    return _predictions(_joined([_as_reference(own) for own in ours]), _joined(measured), who, margin)


def _order(answer: Arrays) -> np.ndarray:
    """How a machine ranks the tokens whose logits were asked for, the best first: int64 [T, n]."""
    return np.argsort(-answer["at.compressed"], axis=-1, kind="stable")


def _as_reference(answer: Arrays) -> dict[str, np.ndarray]:
    """A machine's answer in the form of a reference model's: its own logits in descending order."""
    values = np.take_along_axis(answer["at.compressed"], _order(answer), -1)
    indices = answer["top_indices"][:, None]
    return {
        "top_values": values, "top_indices": indices, "logsumexp": answer["logsumexp"], "nll": answer["nll"],
        "logits": answer["logits"],
    }  # fmt: skip


def reference(vector: Arrays, who: str) -> dict[str, np.ndarray]:
    """What one model answered to a vector, by plain name."""
    return {name.removeprefix(f"{who}."): a for name, a in vector.items() if name.startswith(f"{who}.")}


def _joined(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _predictions(expected: Arrays, measured: Arrays, who: str, margin: float) -> Distances:
    logits = tensor_distance(expected["logits"], measured["logits"])
    metrics = prediction_distance(expected, measured, who, margin)
    metrics = {**logits, **metrics, "max_abs": max(logits["max_abs"], metrics["max_abs"])}
    metrics[f"{who}_perplexity"] = perplexity(expected["nll"])
    return Distances(metrics, len(measured["logsumexp"]), "positions", {"logits": logits})


def _outputs(
    bundle: Bundle, vectors: Sequence[Arrays], answers: Sequence[Arrays], who: str, margin: float
) -> Distances:
    expected = [reference(vector, who) for vector in vectors]
    names = [name for name in answers[0] if all(name in e for e in expected)]
    if not names:
        raise BundleError(
            f"{bundle.directory}: golden vectors hold none of the outputs {', '.join(answers[0])}; export again"
        )
    outputs = {}
    for name in names:
        for e, a in zip(expected, answers, strict=True):
            if e[name].shape != a[name].shape:
                raise BundleError(
                    f"{bundle.directory}: {who}.{name} is {list(e[name].shape)} in a golden vector, the graph answers "
                    f"{list(a[name].shape)}; the bundle is damaged, export again"
                )
        pairs = [(_valid(v, e[name]), _valid(v, a[name])) for v, e, a in zip(vectors, expected, answers, strict=True)]
        outputs[name] = tensor_distance(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))
    worst = {"max_abs": max, "sqnr_db": min, "cosine": min}
    metrics = {metric: pick(o[metric] for o in outputs.values()) for metric, pick in worst.items()}
    rows = sum(len(answer[names[0]]) for answer in answers)
    metrics.update(_task_metrics(bundle.manifest.task, vectors, expected, answers, names, margin))
    return Distances(metrics, rows, "samples", outputs)


def _valid(vector: Arrays, output: np.ndarray) -> np.ndarray:
    """An output's values as one row, those at padded tokens left out: nobody reads them and nothing trains them."""
    mask = vector.get("input.attention_mask")
    if mask is not None and output.ndim > 2 and output.shape[:2] == mask.shape:
        return np.asarray(output[mask.astype(bool)].ravel())
    return output.ravel()


def _task_metrics(
    task: str, vectors: Sequence[Arrays], expected: Sequence[Arrays], answers: Sequence[Arrays], names: Sequence[str],
    margin: float,
) -> dict[str, float]:  # fmt: skip
    if task == "image-classification":
        name = next((n for n in names if answers[0][n].ndim == 2), None)
        if name is not None:
            theirs, ours = (np.concatenate([part[name] for part in side]) for side in (expected, answers))
            return class_distance(theirs, ours, margin)
    if task == "feature-extraction":
        name = next((n for n in (*EMBEDDINGS, *names) if n in names and answers[0][n].ndim in (2, 3)), None)
        if name is not None:
            theirs, ours = _embeddings(vectors, expected, name), _embeddings(vectors, answers, name)
            # One of two neighbours is always right.
            return neighbour_distance(theirs, ours, margin) if len(ours) > 2 else {}
    return {}


def _embeddings(vectors: Sequence[Arrays], side: Sequence[Arrays], name: str) -> np.ndarray:
    return np.concatenate([_embedding(v, part[name]) for v, part in zip(vectors, side, strict=True)])


def _embedding(vector: Arrays, output: np.ndarray) -> np.ndarray:
    """Float [n, D]: as it is, or hidden states [n, T, D] averaged over real tokens."""
    if output.ndim == 2:
        return output
    mask = vector.get("input.attention_mask", np.ones(output.shape[:2]))[..., None].astype(np.float64)
    return np.asarray((output * mask).sum(1) / np.maximum(mask.sum(1), 1.0))
