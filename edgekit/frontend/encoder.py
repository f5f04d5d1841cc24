"""The encoder of an encoder-decoder as a model of its own, which becomes a bundle within the bundle."""

from __future__ import annotations

import dataclasses

import torch

from edgekit.frontend.decoder.cross import CrossEncoder, SpeechEncoder
from edgekit.frontend.inputs import Inputs
from edgekit.frontend.source import ModuleSource


def encoder_of(source: ModuleSource) -> ModuleSource:
    """The encoder with the decoder's projections of its output. Raises UnsupportedError as ``cross_attentions`` does."""
    if source.hearing is not None:
        return dataclasses.replace(source, task="feature-extraction", module=SpeechEncoder(source.module).eval())
    examples = {}
    if not any(path.name == "tokenizer.json" for path in source.assets):
        ids = torch.arange(16).reshape(2, 8) + 3
        examples = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return dataclasses.replace(
        source, task="feature-extraction", module=CrossEncoder(source.module).eval(), example_inputs=examples
    )


def sentence_pairs(inputs: Inputs) -> Inputs:
    """Two batches of two: an answer holds the keys and values of all layers, and golden vectors keep it twice."""
    pairs = ({name: array[:2] for name, array in batch.items()} for batch in inputs.batches[:2])
    return dataclasses.replace(inputs, batches=tuple(pairs))
