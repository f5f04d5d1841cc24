"""This machine as a target: a runner in a fresh process, its errors, its end, and what it leaves behind."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import psutil
import pytest

from edgekit.bundle import Bundle
from edgekit.devices import Target
from edgekit.devices.generation import generate_on
from edgekit.devices.job import Job
from edgekit.devices.local import open_local
from edgekit.errors import BundleError, RuntimeUnavailable, UnsupportedError, UsageError
from edgekit.runtime.generation import Generation, generate
from edgekit.runtime.interruptible import interruptible
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import broken_graph, linear_bundle

LOCAL = Target.parse("local")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("local") / "b")


def test_a_runner_is_a_fresh_process_that_ends_with_its_job(bundle: Bundle) -> None:
    with open_local(bundle).job(1) as job:
        assert job.pid != os.getpid() and psutil.pid_exists(job.pid)
        assert job.ask("load")["operators"] == ""
    assert not psutil.pid_exists(job.pid)


def test_another_graph_leaves_the_bundle_as_it_is(bundle: Bundle) -> None:
    before = sorted(bundle.directory.rglob("*"))
    backend = open_local(bundle)
    with backend.graph(bundle.graph_path.read_bytes()) as name, backend.job(1, graph=name) as job:
        job.ask("load")
        assert sorted(bundle.directory.rglob("*")) == before and Path(name).is_file()
    assert not Path(name).exists()


def test_the_operator_library_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ternary = linear_bundle(tmp_path / "b", "t2")
    assert Path(open_local(ternary).library).stem.endswith("edgekit_ops")
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", "none")
    assert open_local(ternary).library == ""
    monkeypatch.setenv("EDGEKIT_OPS_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.raises(RuntimeUnavailable, match="cannot be loaded as edgekit's operator library"):
        open_local(ternary)
    assert open_local(linear_bundle(tmp_path / "c")).library == "", "nothing needs it there"


def test_a_damaged_graph_is_named_as_in_process(tmp_path: Path) -> None:
    directory = linear_bundle(tmp_path / "b").directory
    broken_graph(directory)
    with (
        open_local(Bundle.open(directory)).job(1) as job,
        pytest.raises(BundleError, match=rf"^{directory}/model.onnx: ONNX Runtime .* refuses it: "),
    ):
        job.ask("load")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit(3)", r"^x: the runner ended at 'start' \(exit code 3: without a word\); was it killed for"),
        ("import sys; sys.exit('oops')", r"\(exit code 1: oops\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"\(SIGKILL: without a word\); was it killed for"),
    ],
)
def test_a_runner_that_dies_is_named(script: str, message: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=message):
        Job("x", [sys.executable, "-c", script])


def test_a_runner_that_dies_later_says_at_what(bundle: Bundle) -> None:
    with open_local(bundle).job(1) as job:
        job.ask("load")
        psutil.Process(job.pid).kill()
        with pytest.raises(RuntimeUnavailable, match=rf"^{bundle.directory}: the runner ended at 'round' \(SIGKILL"):
            job.ask("round")


@pytest.mark.parametrize("chat", [False, None])
def test_the_text_is_that_of_generating_in_process(bundle: Bundle, chat: bool | None) -> None:
    expected = generate(bundle, "abc", chat=chat, max_new_tokens=12)
    text = "".join(expected)
    running = generate_on(LOCAL, bundle, "abc", chat=chat, max_new_tokens=12)
    assert "".join(running) == text
    assert running.tokens == expected.tokens and running.prompt_tokens == expected.prompt_tokens
    assert running.finish == expected.finish == "length"
    assert running.prefill_tokens_per_second > 0 and running.decode_tokens_per_second > 0
    assert not children()


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is a letter: those of this model make no text."""

    class Letters:
        def __init__(self, tokenizer: object, before: object) -> None:
            self._next = iter("abcdefghijklmnopqrstuvwxyz" * 2)

        def push(self, token: int) -> str:
            return next(self._next)

        def rest(self) -> str:
            return ""

    monkeypatch.setattr("edgekit.runtime.generation.Stream", Letters)


def test_a_stop_string_ends_the_runner_and_keeps_the_speed(bundle: Bundle, letters: None) -> None:
    running = generate_on(LOCAL, bundle, "abc", chat=False, max_new_tokens=40, stop=["de"])
    assert "".join(running) == "abc" and running.finish == "stop"
    assert running.prefill_tokens_per_second > 0 and running.decode_tokens_per_second > 0 and not children()


def test_a_generation_that_is_cancelled_ends_its_runner(bundle: Bundle, letters: None) -> None:
    running = generate_on(LOCAL, bundle, "abc", chat=False, max_new_tokens=40)
    assert next(running) == "a"
    running.cancel()
    assert list(running) == [] and running.finish == "cancelled" and len(running.tokens) == 1 and not children()


def test_a_prompt_that_is_cancelled_before_any_token(bundle: Bundle) -> None:
    running = generate_on(LOCAL, bundle, "abc", chat=False, max_new_tokens=40)
    running.cancel()
    assert list(running) == [] and running.finish == "cancelled" and not running.tokens and not children()


def test_ctrl_c_ends_the_runner_at_once(bundle: Bundle, letters: None) -> None:
    running = generate_on(LOCAL, bundle, "abc", chat=False, max_new_tokens=40)
    pieces = interruptible(running)
    assert next(pieces) == "a"
    with pytest.raises(KeyboardInterrupt):
        while True:  # what was ready comes first
            pieces.throw(KeyboardInterrupt)
    assert running.finish in ("cancelled", "length") and not children()


def test_leaving_the_text_ends_the_runner(bundle: Bundle, letters: None) -> None:
    for piece in generate_on(LOCAL, bundle, "abc", chat=False, max_new_tokens=40):
        assert piece == "a" and children()
        break
    gc.collect()
    assert not children()


def children() -> list[psutil.Process]:
    """Runners of this process; a chat template has a process of its own."""
    return [
        p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE and "runner" in str(p.cmdline())
    ]


def begun(bundle: Bundle, where: str, **settings: object) -> Generation:
    """A generation in process or by a runner; both begin with the same words."""
    if where == "runner":
        return generate_on(LOCAL, bundle, **settings)  # type: ignore[arg-type]
    return generate(bundle, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["process", "runner"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "prompt: is empty; give some text"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"),
        ({"prompt": "a", "stop": [""]}, "stop: an empty string would stop at once"),
        ({"prompt": "a", "chat": False, "system": "b"}, "system: the prompt is continued as it is, without a chat"),
        ({"prompt": "a" * 80, "chat": False}, "prompt: 81 tokens; the context holds 64, the answer included"),
    ],
)
def test_prompts_that_are_refused_wherever_they_run(
    bundle: Bundle, where: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        begun(bundle, where, **settings)


@pytest.mark.parametrize("where", ["process", "runner"])
def test_other_models_generate_nothing(tmp_path: Path, where: str) -> None:
    with pytest.raises(UnsupportedError, match="is no language model; nothing to decode"):
        begun(linear_bundle(tmp_path / "b"), where, prompt="a")
