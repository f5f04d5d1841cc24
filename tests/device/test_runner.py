"""The runner for Linux devices, on this machine: every request of docs/runner.md against edgekit's own runtime."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.devices import job
from edgekit.devices import runner as module
from edgekit.lowbit.library import built_library, host_abi
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.replay import feeds, replay_text
from edgekit.runtime.session import Session
from tests.support.tiny_bundle import EOS, decoder_bundle
from tests.support.tiny_models import linear_bundle

RUNNER = Path(module.__file__)


class Running:
    """A runner process; ``ask`` gives the next line that it answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def ask(self, what: str, **more: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self.process.stdin.flush()
        return self.line()


@contextmanager
def running(directory: Path, environment: dict[str, str] | None = None, **settings: object) -> Iterator[Running]:
    """A runner outside the checkout, as on a device."""
    library = str(settings.pop("library", ""))
    process = subprocess.Popen(
        [sys.executable, "-I", str(RUNNER), job.settings(str(directory), 1, library, "set it up", **settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment, cwd="/",
    )  # fmt: skip
    with process:
        yield Running(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=1800)


def arrays(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(base64.b64decode(a["data"]), a["dtype"]).reshape(a["shape"])
        for name, a in answer["arrays"].items()
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("runner") / "b")


def test_a_golden_text_gives_what_the_desktop_gives(bundle: Bundle) -> None:
    file, vector = bundle.manifest.vectors[0].file, bundle.vectors()[0][1]
    at = {who: vector[f"{who}.top_indices"] for who in ("compressed", "original")}
    expected = replay_text(Decoder(bundle, 1, 40), vector["input.input_ids"], 8, at)
    with running(bundle.directory, max_length=40) as device:
        assert device.line()["runner"] == 1
        assert device.ask("load")["operators"] == ""
        found = arrays(device.ask("replay", vector=file))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_tokens_that_are_compared_may_come_with_the_request(bundle: Bundle) -> None:
    file, vector = bundle.manifest.vectors[0].file, bundle.vectors()[0][1]
    wanted = vector["original.top_indices"][:, ::-1].copy()
    with running(bundle.directory, max_length=40) as device:
        device.line()
        device.ask("load")
        own = arrays(device.ask("replay", vector=file))
        asked = arrays(device.ask("replay", vector=file, arrays=job.packed({"original.top_indices": wanted})))
    np.testing.assert_array_equal(asked["at.original"], own["at.original"][:, ::-1])
    np.testing.assert_array_equal(asked["at.compressed"], own["at.compressed"])


def test_a_context_that_the_model_does_not_reach(bundle: Bundle) -> None:
    with running(bundle.directory, max_length=65) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "UsageError" and answer["message"].endswith("65 tokens; the context holds 64")


def test_a_graph_elsewhere_has_the_bundles_weights(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(bundle.graph_path.read_bytes())
    with running(bundle.directory, graph=str(tmp_path / "other.onnx")) as device:
        device.line()
        assert device.ask("load")["ms"] > 0
        assert "latency" not in device.ask("round")["times"]


def test_a_profile_lets_go_of_what_was_loaded(bundle: Bundle) -> None:
    with running(bundle.directory) as device:
        device.line()
        device.ask("load")
        assert len(device.ask("profile")["events"]) > 10
        assert device.ask("round")["message"] == "request before load"


def test_an_onnxruntime_that_is_too_old(bundle: Bundle) -> None:
    with running(bundle.directory, oldest_onnxruntime=[99, 0]) as device:
        answer = device.line()
    assert answer["error"] == "RuntimeUnavailable"
    assert answer["message"].endswith(" is installed, bundles need 99.0 or newer; set it up")


def test_a_round_times_prefill_and_decode(bundle: Bundle) -> None:
    with running(bundle.directory, prompt_tokens=30, new_tokens=5) as device:
        device.line()
        load, first = device.ask("load"), device.ask("first")
        assert load["ms"] > 0 and first["after"]["peak"] >= load["before"]["peak"] > 1
        times = device.ask("round")["times"]
        assert set(times) == {"prefill", "decode"} and len(times["decode"]) == 5 and 2 <= len(times["prefill"]) <= 200
        assert device.ask("finish")["memory"]["private"] > 1


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


def test_values_inside_the_graph_can_be_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    vector = bundle.vectors()[0][1]
    ids = vector["input.input_ids"]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_to_keep": np.ones(1, np.int64)}
    for layer in range(3):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = np.zeros((1, 1, 0, 16), np.float32)
    expected = Session(bundle, 1).run(inputs, ["logits"])["logits"]
    with running(bundle.directory, max_length=40) as device:
        device.line()
        device.ask("load")
        found = arrays(device.ask("run", outputs=["logits"], arrays=job.packed(inputs)))
    np.testing.assert_array_equal(found["logits"], expected)


@pytest.mark.parametrize("format_name", ["fp32", "t2"])
def test_other_models_and_the_operator_library(tmp_path: Path, format_name: str) -> None:
    bundle = linear_bundle(tmp_path / "b", format_name)
    library = str(built_library(host_abi())) if format_name == "t2" else ""
    info, vector = bundle.vectors()[0]
    expected = Session(bundle, 1).run(feeds(vector))
    with running(bundle.directory, library=library) as device:
        device.line()
        load = device.ask("load")
        assert bool(load["operators"]) == (format_name == "t2")
        found = arrays(device.ask("replay", vector=info.file))
        assert set(device.ask("round")["times"]) == {"latency"}
        ran = {event["op"] for event in device.ask("profile")["events"]}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert ("TernaryMatMul" in ran) == (format_name == "t2")


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        ({"do": "dance"}, "UsageError", "request 'dance': this runner does not know it; push the runner again"),
        ({"do": "replay", "vector": "../secret"}, "BundleError", "../secret is no golden vector of its manifest"),
        ({"do": "round"}, "UsageError", "request before load"),
    ],
)
def test_requests_that_cannot_be_answered(bundle: Bundle, request_: dict[str, str], kind: str, message: str) -> None:
    with running(bundle.directory) as device:
        device.line()
        answer = device.ask(request_.pop("do"), **request_)
        assert answer["error"] == kind and message in answer["message"]
    assert device.process.returncode == 1


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with running(tmp_path / "none") as device:
        answer = device.line()
    assert answer["error"] == "BundleError" and "no readable manifest.json" in answer["message"]
    assert device.process.returncode == 1


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    bundle, wrong = linear_bundle(tmp_path / "b", "t2"), tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    with running(bundle.directory, library=str(wrong)) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "RuntimeUnavailable" and f"{wrong}: cannot be loaded here" in answer["message"]


def test_an_instruction_set_that_the_processor_lacks(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "b", "t2")
    with running(bundle.directory, {"EDGEKIT_ISA": "neon_i8mm"}, library=str(built_library(host_abi()))) as device:
        device.line()
        answer = device.ask("load")
    assert answer["error"] == "RuntimeUnavailable"
    assert answer["message"].startswith("EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has ")
