"""Every verb once, as a shell calls it, on the small language model that the repository carries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.cli.verbs import VERBS
from tests.support.tooling import ROOT

MODEL = ROOT / "tools" / "own_ternary" / "ternary"
TEXT = ROOT / "README.md"
PROMPT = "HAMLET\n"


def edgekit(*arguments: object) -> str:
    """What ``edgekit ARGUMENTS`` prints on stdout; it has to succeed."""
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(*arguments: object) -> dict[str, Any]:
    """The one JSON document that it prints."""
    document = json.loads(edgekit(*arguments, "--json"))
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's bundle, made by the verb."""
    path = tmp_path_factory.mktemp("verbs") / "bundle"
    edgekit("export", MODEL, "--recipe", "ternary", "-o", path)
    return path


def test_every_verb_is_called_here() -> None:
    assert [verb.name for verb in VERBS if f'"{verb.name}"' not in Path(__file__).read_text(encoding="utf-8")] == []


def test_export_and_inspect(bundle: Path) -> None:
    assert "t2" in edgekit("inspect", bundle)
    assert {layer.format for layer in Bundle.open(bundle).manifest.layers} == {"t2", "int8-channel"}


def test_verify(bundle: Path) -> None:
    assert edgekit("verify", bundle).splitlines()[-1] == "verdict: PASS"


def test_bench(bundle: Path) -> None:
    rows = answer("bench", bundle, "--prompt-tokens", 8, "--new-tokens", 2)["rows"]
    assert {row["phase"] for row in rows} >= {"prefill", "decode"} and all(row["p50_ms"] > 0 for row in rows)


def test_generate(bundle: Path) -> None:
    first = edgekit("generate", bundle, PROMPT, "--raw", "--max-new-tokens", 8)
    assert first.strip() and first == edgekit("generate", bundle, PROMPT, "--raw", "--max-new-tokens", 8)


def test_evaluate(bundle: Path) -> None:
    (row,) = answer("evaluate", bundle, "--text", TEXT, "--tokens", 128, "--window", 64)["rows"]
    assert row["bytes"] > 0


def test_compress(tmp_path: Path) -> None:
    config = tmp_path / "compress.yaml"
    config.write_text(
        'version: 1\ndata: {train: ["tests.unit.test_compress:points"]}\nmethod: prune\n'
        "training: {steps: 20, learning_rate: 0.01}\nprune: {sparsity: 0.5, steps: 10, every: 5}\n",
        encoding="utf-8",
    )
    edgekit("compress", "tests.unit.test_compress:classifier", "--config", config, "-o", tmp_path / "pruned")
    assert (tmp_path / "pruned").is_dir()


def test_pack_and_unpack(bundle: Path, tmp_path: Path) -> None:
    edgekit("pack", bundle, "-o", tmp_path / "b.edgepack")
    edgekit("unpack", tmp_path / "b.edgepack", "-o", tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx.data").read_bytes() == (bundle / "model.onnx.data").read_bytes()


def test_doctor() -> None:
    assert "onnxruntime" in edgekit("doctor")


def test_recipes_and_help() -> None:
    assert "int8-static" in edgekit("recipes")
    assert edgekit("help", "export") == edgekit("export", "--help")


def test_devices() -> None:
    """What can be said without a device."""
    assert "edgekit devices setup" in edgekit("devices", "--help")
    command = [sys.executable, "-m", "edgekit", "devices", "show", "local"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "edgekit: target 'local': is this machine, no device\n")
