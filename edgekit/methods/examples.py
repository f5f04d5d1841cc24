"""What a model is trained and judged with: examples, and a loss and scores for language models and classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UnsupportedError, UsageError
from edgekit.spec.names import LABELS

REFERENCE = "reference"
Batch = Mapping[str, Tensor]
ROWS, LOGITS = 64, 1 << 25
"""Examples, and logits of them, that are looked at together: 128 MB."""


@dataclass(frozen=True)
class Examples:
    """Arrays [n, ...] by name: a model's inputs, and for classifiers ``labels`` int64 [n]."""

    arrays: dict[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise UsageError(
                f"examples: arrays of {lengths or 'nothing'}; all need the same number of rows, at least 1"
            )

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def select(self, rows: Tensor | slice) -> dict[str, Tensor]:
        """Some rows of each array."""
        return {name: array[rows] for name, array in self.arrays.items()}

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[dict[str, Tensor]]:
        """All rows in order, ``size`` at a time, on a device."""
        for start in range(0, len(self), size):
            yield {name: array.to(device) for name, array in self.select(slice(start, start + size)).items()}


@dataclass(frozen=True)
class Objective:
    """A kind of model: ``loss`` is what training lowers; ``score`` gives sums over a batch and how many it summed,
    ``answer`` what of the output counts.
    """

    name: str
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module, Batch], tuple[dict[str, float], int]]
    answer: Callable[[nn.Module, Batch], Tensor]

    @staticmethod
    def inputs(batch: Batch) -> dict[str, Tensor]:
        """What of a batch the model itself takes."""
        return {name: array for name, array in batch.items() if name not in (LABELS, REFERENCE)}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Examples, batch_size: int = 0) -> dict[str, float]:
        """Mean scores over all examples, in eval mode; "loss" (nats) is one of them, the model's mode is put back.

        ``batch_size`` 0: at most 64, as many as keep the logits small.
        """
        training = model.training
        model.eval()
        sums: dict[str, float] = {}
        count = 0
        for batch in examples.batches(batch_size or most_rows(model, examples), device_of(model)):
            scores, size = self.score(model, batch)
            sums = {name: sums.get(name, 0.0) + value for name, value in scores.items()}
            count += size
        model.train(training)
        return {name: value / count for name, value in sums.items()}


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def most_rows(model: nn.Module, examples: Examples) -> int:
    """Examples at a time without training: 64, or fewer where a language model's logits would take much memory."""
    ids = examples.arrays.get("input_ids")
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if ids is None or ids.ndim < 2 or not isinstance(vocabulary, int):
        return ROWS
    return max(1, min(ROWS, LOGITS // max(1, ids.shape[1] * vocabulary)))


def outputs(model: nn.Module, inputs: Batch) -> Tensor:
    """The logits: a tensor, the entry "logits", or the first of several."""
    output: Any = model(**inputs)
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits  # type: ignore[no-any-return]
    first = next(iter(output.values() if isinstance(output, Mapping) else output), None)
    if not isinstance(first, Tensor):
        raise UnsupportedError(f"{type(model).__name__}: returns a {type(output).__name__} without a tensor in it")
    return first


def _tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [n * (T - 1), V] and the tokens they should give."""
    ids = batch["input_ids"]
    return outputs(model, {"input_ids": ids})[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()


def _classes(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    labels = batch[LABELS]
    logits = outputs(model, Objective.inputs(batch)).float()
    if logits.ndim != 2 or len(logits) != len(labels):
        raise UnsupportedError(
            f"{type(model).__name__}: gives logits {list(logits.shape)} for {len(labels)} labels; a classifier gives "
            "[n, classes]"
        )
    if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
        wrong = int(labels.max()) if int(labels.min()) >= 0 else int(labels.min())
        raise UsageError(f"labels: {wrong} is no class of {type(model).__name__}, which has {logits.shape[1]}")
    return logits, labels


def embeddings(model: nn.Module, batch: Batch) -> Tensor:
    """The sentence embeddings of an encoder [n, hidden], or the mean of its hidden states over what is no padding."""
    output: Any = model(**Objective.inputs(batch))
    if "sentence_embedding" in output:
        return output["sentence_embedding"]  # type: ignore[no-any-return]
    mask = batch["attention_mask"].unsqueeze(-1)
    return (output["last_hidden_state"] * mask).sum(1) / mask.sum(1).clamp(min=1)  # type: ignore[no-any-return]


@torch.no_grad()
def with_reference(model: nn.Module, examples: Examples, batch_size: int = 64) -> Examples:
    """Examples with what an encoder makes of them now, in eval mode, as ``reference``."""
    training = model.training
    model.eval()
    reference = torch.cat([embeddings(model, batch).cpu() for batch in examples.batches(batch_size, device_of(model))])
    model.train(training)
    return Examples({**examples.arrays, REFERENCE: reference})


def _distance(model: nn.Module, batch: Batch) -> Tensor:
    """1 - cosine to the reference of each example [n]."""
    return 1 - functional.cosine_similarity(embeddings(model, batch), batch[REFERENCE], dim=1)


def _score_distance(model: nn.Module, batch: Batch) -> tuple[dict[str, float], int]:
    distance = _distance(model, batch)
    return {"loss": float(distance.sum()), "cosine": float((1 - distance).sum())}, len(distance)


def _objective(name: str, compare: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]) -> Objective:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(*compare(model, batch))

    def score(model: nn.Module, batch: Batch) -> tuple[dict[str, float], int]:
        logits, wanted = compare(model, batch)
        loss = float(functional.cross_entropy(logits, wanted, reduction="sum"))
        return {"loss": loss, "accuracy": int((logits.argmax(1) == wanted).sum())}, len(wanted)

    return Objective(name, loss, score, lambda model, batch: outputs(model, Objective.inputs(batch)))


LANGUAGE = _objective("language", _tokens)
"""Next tokens of ``input_ids`` int64 [n, T]; accuracy is the share predicted."""
CLASSES = _objective("classes", _classes)
"""``labels`` int64 [n] from all other arrays, which are the model's inputs by name."""
EMBEDDINGS = Objective("embeddings", lambda model, batch: _distance(model, batch).mean(), _score_distance, embeddings)
"""To keep an encoder's own embeddings: the loss is 1 - cosine to ``reference`` (:func:`with_reference`)."""
