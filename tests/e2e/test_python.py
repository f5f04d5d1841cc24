"""The public API as a user calls it: every function on one tiny model, directories as text and as Path, twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgekit
from edgekit import bench, compress, evaluate, export, generate, inspect, pack, unpack, verify, verify_on
from tests.support.tiny_bundle import VOCABULARY, write_tokenizer
from tests.support.tiny_decoders import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, as a Hugging Face directory."""
    path = tmp_path_factory.mktemp("models") / "llama"
    build("Llama", {"vocab_size": VOCABULARY}).save_pretrained(path)
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_session(kind: type[str] | type[Path], model: Path, tmp_path: Path) -> None:
    text, directory, other, packed = (kind(tmp_path / name) for name in ("a.txt", "bundle", "again", "m.edgepack"))
    Path(text).write_text("words and more words, which go on for a while " * 4)
    bundle = export(kind(model), "int8", directory, samples=text)
    assert isinstance(bundle, edgekit.Bundle) and bundle.directory == tmp_path / "bundle"
    for given in (bundle, directory):
        assert verify(given).parity.passed
        assert inspect(given).to_json()["recipe"] == "int8"
        sampling = edgekit.Sampling(temperature=0.7, seed=1)
        assert len(list(generate(given, "words", max_new_tokens=4, chat=False, sampling=sampling))) > 0
        assert evaluate(given, texts=[text], window=16).rows[0].texts[0].perplexity > 1
        result = bench(given, prompt_tokens=8, new_tokens=4, rounds=5)
        assert {row.phase for row in result.rows} >= {"prefill", "decode"}
    assert verify(directory, text=text).text is not None
    assert [report.target for report in verify_on(directory, ["local"]).reports] == ["local"]
    assert (
        evaluate([directory, kind(model)], texts=[text], window=16).to_json()["rows"][1]["bytes"] > bundle.model_bytes
    )
    assert pack(directory, packed, force=True).bytes < bundle.nbytes
    assert unpack(packed, other).manifest == bundle.manifest
    assert pack(bundle, packed, base=other, force=True).copied > 0
    assert unpack(packed, other, base=directory, force=True).nbytes == bundle.nbytes


@pytest.mark.parametrize("kind", [str, Path])
def test_compressing(kind: type[str] | type[Path], model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words and more words, which go on for a while " * 20)
    config = tmp_path / "c.yaml"
    config.write_text(
        "version: 1\nmethod: prune\ndata: {train: [a.txt], length: 16}\ntraining: {steps: 2}\nprune: {steps: 1}\n"
    )
    small = compress(kind(model), kind(config), kind(tmp_path / "small"))
    assert isinstance(small, edgekit.Compressed) and small.after.total.zeros > small.before.total.zeros
    assert verify(export(small.exportable, "int8", tmp_path / "bundle")).parity.passed
