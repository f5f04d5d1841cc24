"""The engine for Android, tested by JUnit on a JVM with Android's ONNX Runtime; what it must answer comes from edgekit's own runtime."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import export
from edgekit.bundle import Bundle
from edgekit.metrics import judge
from edgekit.parity.measure import measure
from edgekit.recipe import Recipe
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import generate
from edgekit.runtime.replay import feeds, for_encoder, replay_text
from edgekit.runtime.session import Session
from tests.support.android import junit, jvm
from tests.support.tiny_bundle import Weights, decoder_bundle
from tests.support.tiny_models import broken_graph, linear_bundle
from tests.support.tiny_translators import translator_directory
from tools import kotlin

BURNED, BURNED_SIZE = 2000, 512
TEXTS: tuple[dict[str, Any], ...] = (
    {"prompt": "abc", "chat": False, "system": None, "stop": [], "max_new_tokens": 20},
    {"prompt": "hello there", "chat": None, "system": None, "stop": [], "max_new_tokens": 256},
    {"prompt": "Zeile 2", "chat": True, "system": "be brief", "stop": ["never"], "max_new_tokens": 7},
    {"prompt": "q", "chat": False, "system": None, "stop": [], "max_new_tokens": 1},
)
TRANSLATED: tuple[dict[str, Any], ...] = (
    {"prompt": "Hello there, how are you?", "chat": None, "system": None, "stop": [], "max_new_tokens": 24},
    {"prompt": "Zeile 2", "chat": None, "system": None, "stop": [], "max_new_tokens": 9, "begin": "ab"},
)


def slow_decoder(path: Path) -> None:
    """A decoder whose every run multiplies matrices for seconds."""
    decoder_bundle(path)
    graph = path / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "quick"
    zeros = np.zeros((BURNED_SIZE, BURNED_SIZE), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "zeros"))
    nodes = [
        onnx.helper.make_node("Cast", ["input_ids"], ["whole"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceSum", ["whole"], ["sum"], keepdims=0),
        onnx.helper.make_node("Add", ["zeros", "sum"], ["burn0"]),
    ]
    # The constant is the left side: a right one would be copied into a layout of its own for each node.
    nodes += [onnx.helper.make_node("MatMul", ["zeros", f"burn{i}"], [f"burn{i + 1}"]) for i in range(BURNED)]
    nodes.append(onnx.helper.make_node("ReduceSum", [f"burn{BURNED}"], ["nothing"], keepdims=0))
    nodes.append(onnx.helper.make_node("Add", ["quick", "nothing"], ["logits"]))
    model.graph.node.extend(nodes)
    onnx.save(model, graph)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    entry = next(file for file in manifest["files"] if file["path"] == "model.onnx")
    entry["bytes"], entry["sha256"] = graph.stat().st_size, hashlib.sha256(graph.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def translator_bundle(path: Path, recipe: str) -> Bundle:
    """A tiny BART, which never says one of its tokens."""
    translator_directory(path / "model", "bart", suppress_tokens=[90])
    return export(path / "model", recipe, path / "bundle", abis=())


def parity(bundle: Bundle) -> dict[str, object]:
    """How far the first vector's answer is from the compressed model's, and whether that passes."""
    info, vector = bundle.vectors()[0]
    limits = Recipe.from_dict(bundle.manifest.recipe).parity
    if bundle.manifest.decoder is not None:
        ids = vector["input.input_ids"]
        at = {who: vector[f"{who}.top_indices"] for who in ("compressed", "original")}
        decoder = Decoder(bundle, 1, ids.shape[1])
        if bundle.encoder is not None:
            decoder.encode(for_encoder(vector))
        answer = replay_text(decoder, ids, len(vector["compressed.logits"]) - 1, at)
    else:
        answer = Session(bundle, 1).run(feeds(vector))
    margins = {"compressed": limits.margin, "original": limits.margin}
    checks = judge(measure(bundle, [vector], [answer], margins)["compressed"].metrics, limits)
    passed = all(check.passed for check in checks) and info.kind != "random"
    return {"passed": passed, "metrics": {check.metric: check.value for check in checks}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    jvm.needed()
    folder = tmp_path_factory.mktemp("bundles")
    measured = {
        "decoder": decoder_bundle(folder / "decoder", max_abs=1e-3, kl=1e-3, top1=0.99),
        "states": decoder_bundle(folder / "states", Weights(window=3), max_abs=1e-3, kl=1e-3, top1=0.99),
        "other": decoder_bundle(folder / "other", graph_weights=Weights(1), kl=0.1),
        "bart/bundle": translator_bundle(folder / "bart", "fp32"),
        "linear": linear_bundle(folder / "linear", rows=3),
        "random": linear_bundle(folder / "random", kind="random"),
        "shifted": linear_bundle(folder / "shifted", "int8", task="image-classification", shift=0.3),
    }
    linear_bundle(folder / "ternary", "t2")
    translator_bundle(folder / "bart-int8", "int8")
    slow_decoder(folder / "slow")
    broken_graph(linear_bundle(folder / "broken").directory)
    texts_of = {"decoder": TEXTS, "states": TEXTS, "bart/bundle": TRANSLATED, "bart-int8/bundle": TRANSLATED}
    texts = {
        name: [{"begin": "", **case, "text": "".join(generate(folder / name, **case))} for case in cases]
        for name, cases in texts_of.items()
    }
    answers = {"texts": texts, "parity": {name: parity(bundle) for name, bundle in measured.items()}}
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    return folder


def test_the_engine(bundles: Path) -> None:
    tests = sorted((junit.TESTS / "dev" / "edgekit").glob("*Test.kt"))
    options = [f"-Dedgekit.bundles={bundles}", f"-Dedgekit.library={jvm.operators()}"]
    command = jvm.command("org.junit.runner.JUnitCore", [*junit.engine_tests(), *kotlin.JUNIT], *options)
    done = subprocess.run(
        [*command, *junit.names(tests)],
        env=jvm.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "OK (43 tests)" in done.stdout
