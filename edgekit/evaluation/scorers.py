"""What a language model says about tokens: one interface for bundles and, in ``torch_scorer``, PyTorch models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgekit.bundle import Bundle, BundleLike
from edgekit.errors import UnsupportedError
from edgekit.inspection import inspect
from edgekit.metrics import summarize
from edgekit.runtime.decoder import DEFAULT_LENGTH, Decoder
from edgekit.runtime.replay import replay_text
from edgekit.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: nats of each of its tokens float32 [n], and whether each was the likeliest one."""

    nats: np.ndarray
    greedy: bool


class Scorer(Protocol):
    """A language model with its tokenizer; ``limit`` tokens of context at most.

    ``bytes`` are those of graph and weights, ``bits_per_weight`` counts scales, NaN where it is not known.
    """

    name: str
    method: str
    bytes: int
    bits_per_weight: float
    limit: int
    tokenizer: Tokenizer

    def text(self, ids: Sequence[int]) -> np.ndarray:
        """Nats of each next token of at most ``limit`` ids: float32 [len(ids) - 1]."""

    def continuations(self, context: Sequence[int], choices: Sequence[Sequence[int]]) -> list[Likelihood]:
        """How likely each of ``choices`` is after ``context``; context and the longest choice fit into ``limit``."""


class BundleScorer:
    """A bundle in ONNX Runtime."""

    def __init__(self, model: BundleLike, threads: int = 1) -> None:
        """Raises BundleError, UnsupportedError for a bundle that is no language model or has no tokenizer."""
        bundle = Bundle.open(model)
        path, info = bundle.directory, bundle.manifest.decoder
        if info is None or info.encoder is not None:
            raise UnsupportedError(f"{path}: {bundle.manifest.task} is no language model; evaluate is for those")
        self.tokenizer = Tokenizer(bundle)
        self.name, self.method = path.name or str(path), str(bundle.manifest.recipe.get("name") or "")
        self.bytes, self.bits_per_weight = bundle.model_bytes, inspect(bundle).bits_per_weight
        self.limit = min(info.max_length, DEFAULT_LENGTH)
        self._decoder = Decoder(bundle, threads, max_length=self.limit)

    def text(self, ids: Sequence[int]) -> np.ndarray:
        """See :class:`Scorer`."""
        return replay_text(self._decoder, np.array([ids], np.int64), steps=0)["nll"]

    def continuations(self, context: Sequence[int], choices: Sequence[Sequence[int]]) -> list[Likelihood]:
        """See :class:`Scorer`; the context runs once."""
        self._decoder.reset()
        first = self._decoder.run(np.array([context], np.int64))[0]
        likelihoods = []
        for choice in choices:
            logits = first
            if len(choice) > 1:
                more = self._decoder.run(np.array([choice[:-1]], np.int64), keep=0)[0]
                self._decoder.rewind(len(context))
                logits = np.concatenate([first, more])
            likelihoods.append(likelihood(logits, choice))
        return likelihoods


def likelihood(logits: np.ndarray, choice: Sequence[int]) -> Likelihood:
    """From logits float32 [n, V], each the prediction of one of the n tokens of ``choice``."""
    summary = summarize(logits, np.array(choice), {})
    return Likelihood(summary["nll"], bool((summary["top_indices"] == np.array(choice)).all()))
