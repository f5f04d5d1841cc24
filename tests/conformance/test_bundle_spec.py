"""docs/spec.md alone is enough: a reader written from it, with nothing of edgekit, finds the weights of a bundle."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import load_file

from edgekit.bundle import Bundle
from tests.support.tiny_bundle import Weights, decoder_bundle

SPEC = Path(__file__).parent.parent.parent / "docs" / "spec.md"
TYPES = {1: np.float32, 2: np.uint8, 7: np.int64, 10: np.float16}


def read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the external weights, as sections 1 to 3 say."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema_version"] == 1
    for file in manifest["files"]:
        content = (directory / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    weights = {}
    for tensor in onnx.load(directory / "model.onnx", load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            raw = (directory / place["location"]).read_bytes()[int(place["offset"]) :][: int(place["length"])]
            weights[tensor.name] = np.frombuffer(raw, TYPES[tensor.data_type]).reshape(list(tensor.dims))
            assert int(place["offset"]) % 4096 == 0
    return manifest, weights


def test_a_stranger_can_read_it(tmp_path: Path) -> None:
    directory = decoder_bundle(tmp_path / "b").directory
    manifest, weights = read(directory)
    np.testing.assert_array_equal(weights["embed"], Weights().arrays["embed"])
    vector = load_file(directory / manifest["vectors"][0]["file"])
    assert vector["compressed.nll"].shape == (vector["input.input_ids"].shape[1] - 1,)
    assert vector["compressed.logits"].shape == (9, manifest["decoder"]["vocab_size"])


def test_every_key_is_in_the_spec(tmp_path: Path) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value)) if value else set()
        return set(value).union(*map(keys, value.values())) if isinstance(value, dict) else set()

    manifest = json.loads((decoder_bundle(tmp_path / "b").directory / "manifest.json").read_text(encoding="utf-8"))
    of_recipes = {"rules", "parity", "accuracy", "static"}
    for free in ("recipe", "taps", "evaluation", "versions"):
        manifest[free] = {}
    words = set(re.findall(r"[a-z0-9_]+", SPEC.read_text(encoding="utf-8")))
    assert keys(manifest) | of_recipes <= words
    assert Bundle.open(tmp_path / "b").manifest.decoder is not None
