"""The runner for Android on a JVM with Android's ONNX Runtime: every request of docs/runner.md against edgekit's own runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import export, generate
from edgekit.bundle import Bundle
from edgekit.devices import runner as twin
from edgekit.devices.job import packed
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import prepare
from edgekit.runtime.replay import feeds, for_encoder, replay_text
from edgekit.runtime.session import Session
from tests.device.test_runner import Running, arrays
from tests.support import golden_operators as golden
from tests.support.android import jvm
from tests.support.bionic import shim
from tests.support.tiny_bundle import EOS, decoder_bundle
from tests.support.tiny_models import broken_graph, linear_bundle
from tests.support.tiny_translators import translator_directory

CLOSE = 1e-4
"""Between ONNX Runtime for Android and the one here, whose versions and matrix products differ."""


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    jvm.needed()


@contextmanager
def started(argument: str, **variables: str) -> Iterator[Running]:
    """A runner with any argument; what it says on stderr is not read."""
    process = subprocess.Popen(
        [*jvm.runner_command(), argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=jvm.environment(**variables), cwd="/",
    )  # fmt: skip
    with process:
        try:
            yield Running(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=1800)


@contextmanager
def running(directory: Path, variables: dict[str, str] | None = None, **settings: object) -> Iterator[Running]:
    given = {"bundle": str(directory), "threads": 1, "library": "", **settings}
    with started(json.dumps(given), **(variables or {})) as device:
        yield device


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("runner") / "b")


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return linear_bundle(tmp_path_factory.mktemp("ternary") / "b", "t2")


def test_a_golden_text_gives_what_the_desktop_gives(bundle: Bundle) -> None:
    file, vector = bundle.manifest.vectors[0].file, bundle.vectors()[0][1]
    at = {who: vector[f"{who}.top_indices"] for who in ("compressed", "original")}
    expected = replay_text(Decoder(bundle, 1, 40), vector["input.input_ids"], 8, at)
    with running(bundle.directory, max_length=40) as device:
        hello = device.line()
        assert hello["runner"] == twin.PROTOCOL and hello["onnxruntime"] == "1.29.0" and "17" in hello["runtime"]
        assert hello["pid"] == device.process.pid
        assert device.ask("load")["operators"] == ""
        found = arrays(device.ask("replay", vector=file))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE, err_msg=name)


def test_the_tokens_that_are_compared_may_come_with_the_request(bundle: Bundle) -> None:
    file, vector = bundle.manifest.vectors[0].file, bundle.vectors()[0][1]
    wanted = vector["original.top_indices"][:, ::-1].copy()
    with running(bundle.directory, max_length=40) as device:
        device.line()
        device.ask("load")
        own = arrays(device.ask("replay", vector=file))
        asked = arrays(device.ask("replay", vector=file, arrays=packed({"original.top_indices": wanted})))
    np.testing.assert_array_equal(asked["at.original"], own["at.original"][:, ::-1])


def test_a_translation_reads_its_source(tmp_path: Path) -> None:
    translator_directory(tmp_path / "model", "bart", suppress_tokens=[90])
    bundle = export(tmp_path / "model", "fp32", tmp_path / "bundle", abis=())
    file, vector = bundle.manifest.vectors[0].file, bundle.vectors()[0][1]
    at = {who: vector[f"{who}.top_indices"] for who in ("compressed", "original")}
    ids, source = vector["input.input_ids"], for_encoder(vector)
    decoder = Decoder(bundle, 1, ids.shape[1])
    decoder.encode(source)
    expected = replay_text(decoder, ids, len(vector["compressed.logits"]) - 1, at)
    prompt = prepare(bundle, "Hello there!", 12, None, None, (), 128)
    text = generate(bundle, "Hello there!", max_new_tokens=12)
    list(text)
    with running(bundle.directory, max_length=ids.shape[1], prompt_tokens=30, new_tokens=5) as device:
        device.line()
        device.ask("load")
        found = arrays(device.ask("replay", vector=file))
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-3, err_msg=name)
        lines = [device.ask("generate", ids=prompt.ids, max_new_tokens=12, stop=[2], arrays=packed(prompt.source))]
        while "token" in lines[-1]:
            lines.append(device.line())
        assert [line["token"] for line in lines[:-1]] == text.tokens
        assert device.ask("first")["ms"] > 0 and len(device.ask("round")["times"]["decode"]) == 5
        assert len(device.ask("profile")["events"]) > 10
        device.ask("load")
        shorter = {name: array[:, :-2] for name, array in prompt.source.items()} | {
            "attention_mask": prompt.source["attention_mask"]
        }
        assert (
            "ONNX Runtime stopped"
            in device.ask("generate", ids=prompt.ids, max_new_tokens=1, stop=[], arrays=packed(shorter))["message"]
        )


def test_a_profile_lets_go_of_what_was_loaded(bundle: Bundle) -> None:
    with running(bundle.directory) as device:
        device.line()
        device.ask("load")
        assert len(device.ask("profile")["events"]) > 10
        assert device.ask("round")["message"] == "request before load"


def test_a_round_times_prefill_and_decode(bundle: Bundle) -> None:
    with running(bundle.directory, prompt_tokens=30, new_tokens=5) as device:
        device.line()
        load, first = device.ask("load"), device.ask("first")
        assert load["ms"] > 0 and first["after"]["peak"] >= load["before"]["peak"] > 1
        times = device.ask("round")["times"]
        assert set(times) == {"prefill", "decode"} and len(times["decode"]) == 5 and 2 <= len(times["prefill"]) <= 200
        last = device.ask("finish")
        assert last["memory"]["private"] > 1 and last["memory"]["file"] > 1 and last["operators"] == ""
    assert device.process.returncode == 0


def test_text_is_generated_token_by_token(bundle: Bundle) -> None:
    prompt = bundle.vectors()[0][1]["input.input_ids"][0, :10].tolist()
    decoder, expected = Decoder(bundle), []
    token = int(decoder.run(np.array([prompt]))[0, -1].argmax())
    for _ in range(12):
        expected.append(token)
        token = int(decoder.step(token).argmax())
    with running(bundle.directory, max_length=64) as device:
        device.line()
        device.ask("load")
        lines = [device.ask("generate", ids=prompt, max_new_tokens=12, stop=[EOS])]
        while "token" in lines[-1]:
            lines.append(device.line())
        assert [line["token"] for line in lines[:-1]] == expected
        assert lines[-1] == {"done": True, "finish": "length", "ms": 0.0}
        assert all(line["ms"] > 0 for line in lines[:-1])
        stopped = device.ask("generate", ids=prompt, max_new_tokens=12, stop=[expected[0]])
        assert stopped["finish"] == "stop" and stopped["ms"] > 0
        full = device.ask("generate", ids=list(range(65)), max_new_tokens=1, stop=[])
        assert full == {"error": "UsageError", "message": "context full: 0 + 65 tokens, 64 slots"}


def test_logits_to_keep_may_be_an_input_that_is_always_given(bundle: Bundle, tmp_path: Path) -> None:
    prompt = bundle.vectors()[0][1]["input.input_ids"][0, :10].tolist()
    shutil.copytree(bundle.directory, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "logits_to_keep"))
    onnx.save(model, tmp_path / "model.onnx")
    answers = []
    for directory in (bundle.directory, tmp_path):
        with running(directory, max_length=40) as device:
            device.line()
            device.ask("load")
            token = device.ask("generate", ids=prompt, max_new_tokens=1, stop=[])
            assert "token" in token and "done" in device.line()
            answers.append((token["token"], device.ask("replay", vector=bundle.manifest.vectors[0].file)))
    assert answers[0] == answers[1]


def test_values_inside_the_graph_can_be_asked_for(bundle: Bundle) -> None:
    ids = bundle.vectors()[0][1]["input.input_ids"]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_to_keep": np.full(1, 2, np.int64)}
    for layer in range(3):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = np.zeros((1, 1, 0, 16), np.float32)
    expected = Session(bundle, 1).run(inputs, ["logits", "present.1.key"])
    with running(bundle.directory, max_length=40) as device:
        device.line()
        device.ask("load")
        found = arrays(device.ask("run", outputs=list(expected), arrays=packed(inputs)))
        unknown = device.ask("run", outputs=["tap0"], arrays=packed(inputs))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE)
    assert unknown["error"] == "UsageError" and "outputs: [tap0] given, the graph has [logits, " in unknown["message"]


@pytest.mark.parametrize("format_name", ["fp32", "t2"])
def test_other_models_and_the_operator_library(tmp_path: Path, format_name: str) -> None:
    bundle = linear_bundle(tmp_path / "b", format_name)
    library = str(jvm.operators()) if format_name == "t2" else ""
    info, vector = bundle.vectors()[0]
    expected = Session(bundle, 1).run(feeds(vector))
    with running(bundle.directory, library=library) as device:
        device.line()
        load = device.ask("load")
        assert bool(load["operators"]) == (format_name == "t2")
        found = arrays(device.ask("replay", vector=info.file))
        assert set(device.ask("round")["times"]) == {"latency"}
        ran = {event["op"]: event["us"] for event in device.ask("profile")["events"]}
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=0 if format_name == "t2" else CLOSE)
    assert ("TernaryMatMul" in ran) == (format_name == "t2") and all(us >= 0 for us in ran.values())


def test_a_decoder_is_profiled(bundle: Bundle) -> None:
    with running(bundle.directory) as device:
        device.line()
        ran = [event["op"] for event in device.ask("profile")["events"]]
    assert ran.count("GroupQueryAttention") == 3


def test_the_operators_golden_vectors_bit_for_bit(ternary: Bundle, tmp_path: Path) -> None:
    shutil.copytree(ternary.directory, tmp_path, dirs_exist_ok=True)
    golden.write_model(tmp_path)
    expected = np.load(tmp_path / "expected.npz")
    settings: dict[str, Any] = {"library": str(jvm.operators()), "threads": 2}
    with running(tmp_path, **settings) as device:
        device.line()
        version = device.ask("load")["operators"]
    supported = version.partition(";")[0].split()[2:]
    assert int(version.partition("; ")[2]) == len(golden.golden()) and supported[-1] == "scalar"
    for isa in supported:
        with running(tmp_path, {"EDGEKIT_ISA": isa}, **settings) as device:
            device.line()
            assert device.ask("load")["operators"].split()[1] == isa
            found = arrays(device.ask("run", outputs=expected.files, arrays={}))
        for name in expected.files:
            assert found[name].dtype == expected[name].dtype and found[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        ({"do": "dance"}, "UsageError", "request 'dance': this runner does not know it; push the runner again"),
        ({"do": "replay", "vector": "../secret"}, "BundleError", "../secret is no golden vector of its manifest"),
        ({"do": "run", "arrays": {}, "outputs": "y"}, "UsageError", '"outputs": a list is expected; push the runner again'),
        ({"do": "run", "arrays": {}, "outputs": ["logits"]}, "BundleError", "ONNX Runtime stopped: "),
        ({"do": "generate", "ids": [10**6], "max_new_tokens": 1, "stop": []}, "BundleError", "ONNX Runtime stopped: "),
        ({"do": "generate", "ids": [], "max_new_tokens": 1, "stop": []}, "UsageError", "ids: no tokens"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_answered(bundle: Bundle, request_: dict[str, object], kind: str, message: str) -> None:
    with running(bundle.directory) as device:
        device.line()
        device.ask("load")
        answer = device.ask(str(request_["do"]), **{key: value for key, value in request_.items() if key != "do"})
    assert answer["error"] == kind and message in answer["message"]
    assert device.process.returncode == 1


def test_requests_before_load_and_for_other_models(bundle: Bundle, ternary: Bundle) -> None:
    with running(bundle.directory) as device:
        device.line()
        assert device.ask("round") == {"error": "UsageError", "message": "request before load"}
    with running(ternary.directory, library=str(jvm.operators())) as device:
        device.line()
        device.ask("load")
        answer = device.ask("generate", ids=[1], max_new_tokens=1, stop=[])
        assert answer["error"] == "UnsupportedError" and "no language model; nothing to generate" in answer["message"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("no JSON", "a request is not JSON"),
        ("[]", "a request is no JSON object"),
        ('{"bundle": 1}', '"bundle": text is expected; push the runner again'),
    ],
)
def test_settings_that_make_no_sense(argument: str, message: str) -> None:
    with started(argument) as device:
        answer = device.line()
    assert answer["error"] == "UsageError" and message in answer["message"]
    assert device.process.returncode == 1


def test_a_bundle_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with running(tmp_path / "none") as device:
        answer = device.line()
    assert answer["error"] == "BundleError" and "no readable manifest.json" in answer["message"]
    assert device.process.returncode == 1
    broken_graph(linear_bundle(tmp_path / "broken").directory)
    with running(tmp_path / "broken") as device:
        device.line()
        answer = device.ask("load")
        assert answer["error"] == "BundleError" and "model.onnx: ONNX Runtime 1.29.0 refuses it: " in answer["message"]
    bundle = linear_bundle(tmp_path / "cut")
    vector = bundle.directory / bundle.manifest.vectors[0].file
    vector.write_bytes(vector.read_bytes()[:-1])
    with running(bundle.directory) as device:
        device.line()
        answer = device.ask("load")
        assert answer["error"] == "BundleError" and f"{vector}: golden vector cannot be read" in answer["message"]


def test_a_library_that_cannot_be_loaded(ternary: Bundle, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    with running(ternary.directory, library=str(wrong)) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "RuntimeUnavailable" and f"{wrong}: cannot be loaded here" in answer["message"]


IDLE = """
typedef const void *const *Env;
const char *EdgekitOpsVersion(void) { return "0.1.0 scalar scalar; 0"; }
void *Java_dev_edgekit_Operators_version(Env *env, void *type) {
  (void)type;
  return ((void *(*)(Env *, const char *))(*env)[167])(env, EdgekitOpsVersion());
}
void *RegisterCustomOps(void *options, const void *base) { return (void)options, (void)base, (void *)0; }
"""


def test_operators_that_do_not_take_over_are_noticed(ternary: Bundle, tmp_path: Path) -> None:
    source, library = tmp_path / "idle.c", tmp_path / "libidle.so"
    source.write_text(IDLE)
    shim.compile_(jvm.ABI, [source], library, "-shared", "-fPIC")
    with running(ternary.directory, library=str(library)) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "RuntimeUnavailable"
    assert (
        "was registered, but ONNX Runtime 1.29.0 runs the function bodies instead of its operators" in answer["message"]
    )


def test_an_instruction_set_that_the_processor_lacks(ternary: Bundle) -> None:
    with running(ternary.directory, {"EDGEKIT_ISA": "neon_i8mm"}, library=str(jvm.operators())) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "RuntimeUnavailable"
    assert answer["message"].startswith("EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has ")
    assert answer["message"].partition("; it has ")[2].startswith(("avx", "scalar"))
    assert device.process.returncode == 1


def test_a_host_that_goes_away_ends_it(bundle: Bundle) -> None:
    with running(bundle.directory) as device:
        device.line()
        device.ask("load")
    assert device.process.returncode == 0
