"""Exported graphs with the cache in place, as the runtime drives them, against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle, BundleWriter, write_graph
from edgekit.frontend.decoder import build
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from edgekit.runtime.decoder import Decoder
from edgekit.spec.facts import facts_of
from tests.support.tiny_bundle import manifest, recipe
from tests.support.tiny_decoders import DECODERS
from tests.support.tiny_decoders import build as tiny

LENGTH = 20
NAMES = ("llama", "mistral-sliding", "gpt2", "gemma3", "phi3-partial")


def exported(model: nn.Module, path: Path) -> Bundle:
    """An fp32 bundle without golden vectors."""
    graph = build(model)
    for step in pipeline(Recipe.load("fp32")):
        graph = step(graph).model
    info = facts_of(graph).decoder
    with BundleWriter(path) as writer:
        write_graph(graph, writer.directory)
        return writer.commit(replace(manifest(graph, "text-generation", recipe(), decoder=info), taps={}))


def reference(model: nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_in_place_cache(name: str, tmp_path: Path) -> None:
    model = tiny(*DECODERS[name])
    decoder = Decoder(exported(model, tmp_path / "b"), max_length=LENGTH + 5)
    a, b = np.random.default_rng(0).integers(3, 97, (2, 1, LENGTH))
    want_a, want_b = reference(model, a), reference(model, b)
    scale = max(1.0, float(np.abs(want_a).max()))

    def close(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, atol=2e-5 * scale)

    for pieces in ((LENGTH,), (12, 5, 1, 1, 1)):
        decoder.reset()
        at = 0
        for count in pieces:
            close(decoder.run(a[:, at : at + count], keep=0)[0], want_a[at : at + count])
            at += count
    for side in ("left", "right"):
        decoder.reset()
        real = slice(0, 9) if side == "right" else slice(5, 14)
        ids, mask = np.zeros((2, 14), np.int64), np.zeros((2, 14), np.int64)
        ids[0], mask[0] = a[0, :14], 1
        ids[1, real], mask[1, real] = b[0, :9], 1
        prefill = decoder.run(ids, mask, keep=0)
        close(prefill[0], want_a[:14])
        close(prefill[1, real], want_b[:9])
        for step in range(3):
            logits = decoder.run(np.array([a[0, 14 + step], b[0, 9 + step]])[:, None])
            close(logits[0, 0], want_a[14 + step])
            close(logits[1, 0], want_b[9 + step])
        several = decoder.run(np.stack([a[0, 17:19], b[0, 12:14]]), keep=0)
        close(several[0], want_a[17:19])
        close(several[1], want_b[12:14])
