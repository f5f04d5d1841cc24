"""The programs of docs/guides/other-runtimes.md, run as they stand there: runtimes without edgekit write edgekit's text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import generate
from tests.support.tooling import ROOT, need, require
from tools.demo_models import smollm2

GUIDE = ROOT / "docs" / "guides" / "other-runtimes.md"
TERNARY = ROOT / "tools" / "own_ternary" / "ternary"
PROMPT, COUNT = "Once upon a time, in a small village by the sea,", 24


def programs(heading: str) -> list[str]:
    """The blocks of code below a heading of the guide."""
    section = GUIDE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    return re.findall(r"```(?:python|js)\n(.*?)```", section, re.S)


@pytest.fixture(scope="module", params=["int4", "ternary"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 in standard operators, and a small ternary model whose layers are functions of ai.edgekit."""
    source = smollm2() if request.param == "int4" else TERNARY
    return export(str(source), request.param, tmp_path_factory.mktemp("other-runtimes") / request.param)


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> str:
    """What edgekit writes; the ternary layers' bodies round activations in other blocks than the library."""
    library = {"EDGEKIT_OPS_LIBRARY": "none"} if bundle.manifest.uses_operators else {}
    generate = (sys.executable, "-m", "edgekit", "generate", bundle.directory, PROMPT, "--raw", "-n", str(COUNT))
    written = run(*generate, PYTHONPATH=str(ROOT), **library)
    assert len(written.split()) > 8
    return written


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A directory from which Node finds the packages of tests/node."""
    need("node", "npm")
    packages = ROOT / "build" / "node" / "node_modules"
    require(packages.is_dir(), f"{packages} is not there; run make test")
    (tmp_path / "node_modules").symlink_to(packages)
    return tmp_path


def run(*command: str | Path, **variables: str) -> str:
    """What a program prints, without the end of line; it has no network, and edgekit only where ``variables`` say so."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "ORT_DISABLE_TELEMETRY": "1", "https_proxy": "http://127.0.0.1:9", **variables}
    done = subprocess.run(
        [*map(str, command)],
        env=environment,
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.removesuffix("\n")


def test_plain_onnxruntime_in_python(bundle: Bundle, text: str, tmp_path: Path) -> None:
    (code,) = programs("ONNX Runtime in Python")
    kept = code.replace(
        "    logits, *present", '    inputs["logits_to_keep"] = np.ones(1, np.int64)\n    logits, *present'
    )
    assert code != kept and "edgekit" not in code
    for name, lines in (("all.py", code), ("last.py", kept)):
        (tmp_path / name).write_text(lines, encoding="utf-8")
        assert run(sys.executable, "-I", tmp_path / name, bundle.directory, PROMPT, str(COUNT)) == text


@pytest.mark.parametrize("heading", ["ONNX Runtime in Node", "transformers.js"])
def test_node(heading: str, bundle: Bundle, text: str, node: Path) -> None:
    (node / "program.mjs").write_text(programs(heading)[0], encoding="utf-8")
    assert run("node", node / "program.mjs", bundle.directory, PROMPT, str(COUNT)) == text


def test_chat_in_transformers_js(bundle: Bundle, node: Path) -> None:
    if not (bundle.directory / "chat_template.jinja").is_file():
        assert bundle.manifest.recipe["name"] == "ternary"  # that model knows no chats
        return
    text, chat = programs("transformers.js")
    code = text.split("const [{")[0] + chat
    (node / "chat.mjs").write_text(code, encoding="utf-8")
    question = "What is the capital of France?"
    found = run("node", node / "chat.mjs", bundle.directory, question, str(COUNT))
    assert found == "".join(generate(bundle, question, max_new_tokens=COUNT))


def test_logits_to_keep_may_be_left_out(bundle: Bundle) -> None:
    session = ort.InferenceSession(bundle.graph_path, providers=["CPUExecutionProvider"])
    assert "logits_to_keep" not in {i.name for i in session.get_inputs()}
    info = bundle.manifest.decoder
    assert info is not None
    ids = np.arange(5, 16)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for layer, (heads, dim) in enumerate(zip(info.kv_heads, info.head_dim, strict=True)):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros((1, heads, 0, dim), np.float32)
    every = session.run(["logits"], feeds)[0]
    assert every.shape == (1, 11, info.vocab_size)
    for keep in (0, 1, 4):
        (some,) = session.run(["logits"], {**feeds, "logits_to_keep": np.array([keep])})
        np.testing.assert_allclose(some, every[:, -keep:], rtol=0, atol=1e-4)
    in_place = Decoder(bundle).run(ids, keep=0)
    assert (in_place.argmax(-1) == every.argmax(-1)).all()


def test_names_are_those_of_hugging_face(bundle: Bundle) -> None:
    inputs = {i.name: i.dims for i in bundle.manifest.inputs}
    outputs = {o.name: o.dims for o in bundle.manifest.outputs}
    heads, dim = inputs["past_key_values.0.key"][1::2]
    assert inputs["input_ids"] == ("batch_size", "sequence_length")
    assert inputs["attention_mask"] == ("batch_size", "total_sequence_length")
    assert inputs["past_key_values.0.value"] == ("batch_size", heads, "past_sequence_length", dim)
    assert outputs["present.0.key"] == ("batch_size", heads, "total_sequence_length", dim)
    assert outputs["logits"][0] == "batch_size"
    assert json.loads((bundle.directory / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
