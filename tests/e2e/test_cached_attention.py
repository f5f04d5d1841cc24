"""CachedAttention in the graphs of whole decoders: every kind of attention, against its function body, token by token and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgekit.frontend.decoder import build
from edgekit.lowbit.library import load_library
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from edgekit.spec.names import CACHED_ATTENTION, EDGEKIT, GROUP_QUERY_ATTENTION
from tests.e2e.test_decoder_architectures import LENGTH, close
from tests.support.tiny_decoders import DECODERS
from tests.support.tiny_decoders import build as tiny


def graph(name: str, path: Path, recipe: str = "fp32") -> ir.Model:
    prefix, settings = DECODERS[name]
    model = build(tiny(prefix, settings))
    for step in pipeline(Recipe.load(recipe)):
        model = step(model).model
    ir.save(model, path / "model.onnx")
    return model


def session(path: Path, native: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    library = load_library()
    assert library is not None
    if native:
        options.register_custom_ops_library(str(library.path))
    return ort.InferenceSession(path / "model.onnx", options)


def run(of: ort.InferenceSession, ids: np.ndarray, past: list[np.ndarray] | None, length: int) -> list[np.ndarray]:
    feed: dict[str, Any] = {
        "input_ids": ids, "logits_to_keep": np.zeros(1, np.int64), "attention_mask": np.ones((1, length), np.int64)
    }  # fmt: skip
    caches = [i for i in of.get_inputs() if i.name.startswith("past_key_values")]
    for index, cache in enumerate(caches):
        _, heads, _, dim = cache.shape
        feed[cache.name] = np.zeros((1, heads, 0, dim), np.float32) if past is None else past[index]
    return list(of.run(None, feed))


KINDS = ("llama", "mistral-sliding", "gemma2", "gpt-oss", "cohere", "phi3-partial", "deepseek-v3", "bloom")
"""Packed, windows, soft caps, sinks, neighbouring pairs, a part of each head turned, latent, slopes."""


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_attention(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where nothing else rounds: the operator is put in as if fp32 were one of edgekit's formats."""
    monkeypatch.setattr("edgekit.passes.lower_attention.NATIVE_FORMATS", ("fp32",))
    kinds = [node.op_type for node in graph(name, tmp_path).graph]
    assert kinds.count(CACHED_ATTENTION) > 0
    assert kinds.count(GROUP_QUERY_ATTENTION) == 0
    ids = np.random.default_rng(0).integers(1, 90, (1, LENGTH + 3))
    native, body = (session(tmp_path, native) for native in (True, False))
    whole = run(native, ids, None, LENGTH + 3)
    for found, expected in zip(whole, run(body, ids, None, LENGTH + 3), strict=True):
        close(found, expected)
    answer = run(native, ids[:, :LENGTH], None, LENGTH)
    close(answer[0], whole[0][:, :LENGTH])
    for step in range(3):
        answer = run(native, ids[:, LENGTH + step : LENGTH + step + 1], answer[1:], LENGTH + step + 1)
        close(answer[0][:, 0], whole[0][:, LENGTH + step])


def test_it_comes_with_edgekits_formats_alone(tmp_path: Path) -> None:
    name = next(iter(DECODERS))
    for recipe in ("int4", "int8"):
        assert {n.op_type for n in graph(name, tmp_path, recipe).graph if n.domain == EDGEKIT} >= {CACHED_ATTENTION}
    for recipe in ("fp32", "fp16"):
        assert GROUP_QUERY_ATTENTION in {n.op_type for n in graph(name, tmp_path, recipe).graph}
