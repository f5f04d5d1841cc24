"""The scores of benchmarks/accuracy.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.compress.accuracy_scores import Subject
from edgekit.methods.examples import EMBEDDINGS, Examples, with_reference


class Encoder(nn.Module):
    """A table with dropout behind it, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(50, 16), nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.dropout(self.table(input_ids))}


def test_a_copy_of_an_encoder_answers_as_it_does() -> None:
    ids = torch.arange(40).view(8, 5)
    module = Encoder()
    texts = with_reference(module, Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    subject = Subject("encoder", module, texts, texts, EMBEDDINGS)
    (scores,) = subject.scores([copy.deepcopy(subject.module)])
    assert scores[0].accuracy == pytest.approx(1) and scores[0].neighbours == 1
