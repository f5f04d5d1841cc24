"""docs/architectures.md's table of encoders, vision and audio models: a sample of rows comes out again, with nothing missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgekit
from benchmarks import architectures, encoders
from edgekit.errors import UnsupportedError
from tests.support.tooling import ROOT

TABLE = ROOT / "docs" / "measured" / "encoders.csv"
SAMPLE = [
    "BertModel",  # its pooler
    "AlbertModel",  # one layer that runs twice
    "FNetModel",  # no mask
    "T5EncoderModel",  # half of what AutoModel would load
    "CLIPModel",  # outputs that are no tensors
    "SiglipTextModel",  # a class that AutoModel does not know
    "ResNetForImageClassification",  # no table of tokens
    "Wav2Vec2ForCTC",  # sound of any length
]


@pytest.mark.parametrize("model", SAMPLE)
def test_a_sample_comes_out_again(model: str) -> None:
    [row] = architectures.survey([model], encoders.outcome)
    assert row["outcome"] == "equal", row


def test_the_table_has_every_class_and_no_wrong_row() -> None:
    outcomes = {name: row["outcome"] for name, row in architectures.read(TABLE).items()}
    assert set(outcomes) == set(encoders.CASES)
    assert not {"wrong", "crash", "incomplete"} & set(outcomes.values())


def test_a_layer_that_runs_twice_is_stored_once(tmp_path: Path) -> None:
    model = encoders.tiny("AlbertModel")
    model.save_pretrained(tmp_path / "model")
    np.savez(tmp_path / "samples.npz", **encoders.inputs(model, 4, 12))  # type: ignore[arg-type]
    edgekit.export(tmp_path / "model", "int8", tmp_path / "bundle", samples=tmp_path / "samples.npz")
    values = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "bundle" / "model.onnx.data").stat().st_size < 1.5 * values  # bytes; two copies would be more


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LongformerModel", "torch.onnx cannot export it: Could not guard on data-dependent expression"),
        ("ViTMAEModel", "gives two answers to the same input, so something in its forward is drawn at random"),
    ],
)
def test_what_cannot_be_a_graph_is_refused_with_the_cause(tmp_path: Path, name: str, words: str) -> None:
    model = encoders.tiny(name)
    model.save_pretrained(tmp_path / "model")
    np.savez(tmp_path / "samples.npz", **encoders.inputs(model, 4, 12))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=words):
        edgekit.export(tmp_path / "model", "fp32", tmp_path / "bundle", samples=tmp_path / "samples.npz")
    assert not (tmp_path / "bundle").exists()
