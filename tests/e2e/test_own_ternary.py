"""The ternary language model that edgekit's own tool trained: learned weights from the checkpoint to greedy text."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.frontend.compressed import compressed, native_activations
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.golden import packed_weights
from edgekit.parity import verify
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.tokenizer import Tokenizer
from tools.train_ternary import SHIPPED

PROMPTS = ("HAMLET\n", "My lord, ", "What is ")
TOKENS = 40
CLOSE = {True: 0.02, False: 0.05}
"""Logits: PyTorch's lead over a token that the bundle may choose instead. With the bundle's weights a last bit turns an int8 code, no
more (0.007 at most in 512 tokens); with the checkpoint's the vocabulary is not yet rounded to 8 bits (at most 0.025)."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(str(SHIPPED / "ternary"), "ternary", tmp_path_factory.mktemp("own") / "b", abis=["linux-x86_64"])


def test_is_small_and_learned() -> None:
    report = json.loads((SHIPPED / "report.json").read_text(encoding="utf-8"))
    shape, ternary, twin = report["shape"], report["ternary"], report["float"]
    assert (SHIPPED / "ternary" / "model.safetensors").stat().st_size == ternary["bytes"] < 2.5e6
    assert ternary["held_out_loss"] < 0.6 * math.log(shape["vocabulary"])  # nats; an untrained model has all of it
    assert abs(ternary["held_out_loss"] - twin["held_out_loss"]) < 0.25
    rows = [json.loads(line) for line in (SHIPPED / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row["held_out"] for row in rows if row["model"] == "ternary" and "held_out" in row][-1]
    assert last == pytest.approx(ternary["held_out_loss"], abs=1e-4)


def test_exports_and_verifies(bundle: Bundle) -> None:
    inner = [layer for layer in bundle.manifest.layers if "layers" in layer.name]
    assert {layer.format for layer in inner} == {"t2"}
    report = verify(bundle)
    assert report.passed, "\n".join(report.lines())
    assert "TernaryMatMul: native operator (" in report.kernel


@pytest.mark.parametrize("rounded", [True, False], ids=["the bundle's weights", "the checkpoint's"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_pytorchs(bundle: Bundle, prompt: str, rounded: bool) -> None:
    module: Any = materialize(load_module(str(SHIPPED / "ternary")).module)
    decoder = Decoder(bundle)
    ids = Tokenizer(bundle).encode(prompt)
    logits = decoder.run(np.array([ids], np.int64))[0, -1]
    for _ in range(TOKENS):
        mine = int(logits.argmax())
        with torch.no_grad(), compressed(module, *packed_weights(bundle)) if rounded else native_activations(module):
            theirs = module(input_ids=torch.tensor([ids])).logits[0, -1]
        assert theirs.max() - theirs[mine] < CLOSE[rounded]
        ids.append(mine)
        logits = decoder.step(mine)
