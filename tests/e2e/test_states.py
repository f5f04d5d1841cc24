"""Decoders with states through the whole of edgekit: a directory, a low-bit recipe, verify, generate, a session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import export, generate, verify
from edgekit.cli.verbs import main
from edgekit.errors import UnsupportedError
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_decoders import DECODERS
from tests.support.tiny_decoders import build as tiny

WIDE: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 2048, "bos_token_id": 256,
    "eos_token_id": 257, "pad_token_id": 258,
}  # fmt: skip
"""As wide as a block of weights, with the tokens of the tokenizer of the tests."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("int4", {}),
    "qwen3.5": ("int8", {}),
    "mamba2": ("int4", {"num_heads": 16}),
    "falcon-h1": ("int8", {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_parity_in_low_bits_and_text_that_goes_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, settings = DECODERS[name]
    recipe, more = MODELS[name]
    tiny(prefix, {**settings, **WIDE, **more}).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    bundle = export(tmp_path / "model", recipe, tmp_path / "bundle")
    assert bundle.manifest.decoder is not None and bundle.manifest.decoder.states
    assert {"int4": "int4-fp16"}.get(recipe, recipe) in {layer.format for layer in bundle.manifest.layers}
    report = verify(bundle)
    assert report.passed, "\n".join(report.lines())

    whole = generate(bundle, "hello", chat=False, max_new_tokens=8)
    text = "".join(whole)
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(bundle.directory), "hello", "--max-new-tokens", "8", "--raw", "--json"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["text"] == text
    session = tmp_path / "session"
    list(generate(bundle, "hel", chat=False, max_new_tokens=4, session=session))
    later = generate(bundle, "lo", chat=False, max_new_tokens=4, session=session)
    list(later)
    assert later.reused_tokens == later.prompt_tokens - 3
    with pytest.raises(UnsupportedError, match="the model has states that no token can be taken out of"):
        generate(bundle, "hello", lookup=4)
