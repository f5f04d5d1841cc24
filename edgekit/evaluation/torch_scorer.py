"""A PyTorch model as a scorer: the original beside its bundles. The one place of this room that needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgekit.errors import UnsupportedError
from edgekit.evaluation.scorers import Likelihood, likelihood
from edgekit.frontend.compressed import native_activations
from edgekit.frontend.loading import load_module
from edgekit.frontend.source import stored_bytes
from edgekit.frontend.streamed import widen
from edgekit.golden import text_vector
from edgekit.runtime.decoder import DEFAULT_LENGTH
from edgekit.runtime.tokenizer import Tokenizer


class TorchScorer:
    """A model as `edgekit export` takes it, in float32; layers that round their own input (BitNet) do."""

    def __init__(self, source: str) -> None:
        """Raises SourceError, UnsupportedError for what is no language model or has no tokenizer."""
        opened = load_module(source)
        if opened.task != "text-generation":
            raise UnsupportedError(f"{source}: {opened.task} is no language model; evaluate is for those")
        file = next((asset for asset in opened.assets if asset.name == "tokenizer.json"), None)
        if file is None:
            raise UnsupportedError(f"{source}: no tokenizer.json beside it; evaluate reads texts with it")
        self.tokenizer = Tokenizer(file.parent)
        self.name, self.method = opened.name, "PyTorch"
        self.bytes = stored_bytes(opened)
        self.bits_per_weight = float("nan")
        self.limit = min(int(getattr(opened.config, "max_position_embeddings", DEFAULT_LENGTH)), DEFAULT_LENGTH)
        self._opened, self._model = opened, widen(opened.module).eval()  # its assets live as long as the source

    def text(self, ids: Sequence[int]) -> np.ndarray:
        """See ``Scorer``."""
        with native_activations(self._model):
            return text_vector(self._model, np.array([ids], np.int64))["nll"]

    def continuations(self, context: Sequence[int], choices: Sequence[Sequence[int]]) -> list[Likelihood]:
        """See ``Scorer``; each choice runs with the whole context."""
        likelihoods = []
        for choice in choices:
            ids = torch.tensor([[*context, *choice]])
            with torch.no_grad(), native_activations(self._model):
                logits = self._model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
            likelihoods.append(likelihood(logits.float().numpy(), choice))
        return likelihoods
