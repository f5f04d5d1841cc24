"""ONNX files made by optimum go through edgekit. Runs in an environment of its own: ``make test-optimum``.

optimum-onnx needs transformers 4.57; the rest of the suite runs on transformers 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum.exporters.onnx import main_export

from edgekit.exporter import export
from edgekit.parity import verify

pytestmark = pytest.mark.filterwarnings("default")  # optimum's exporter warns on every line


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT exported by optimum."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    source, target = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("onnx")
    BertModel(BertConfig(vocab_size=101, max_position_embeddings=64, **sizes)).eval().save_pretrained(source)
    main_export(str(source), target, task="feature-extraction", library_name="transformers", do_validation=False)
    return target / "model.onnx"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    ids = random.integers(0, 101, (6, 12))
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    return path


@pytest.mark.parametrize(("recipe", "bits"), [("int8", 8.5), ("int4", 4.5)])
def test_layers_of_an_optimum_graph_are_quantized(
    recipe: str, bits: float, encoder: Path, samples: Path, tmp_path: Path
) -> None:
    bundle = export(str(encoder), recipe, tmp_path / "out", samples=samples)
    linear = [layer for layer in bundle.manifest.layers if len(layer.shape) == 2 and layer.activation_block_size > 0]
    assert len(linear) >= 12  # 2 layers of query, key, value, output, two of the feed-forward
    assert all(layer.bits_per_weight == bits for layer in linear)
    assert verify(bundle).parity.passed
