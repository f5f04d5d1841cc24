"""Saved sessions: resuming gives the same text; every bad file is refused by name."""

from __future__ import annotations

import itertools
import json
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import Generation, generate
from edgekit.runtime.interruptible import interruptible
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.tokenizer import Tokenizer
from tests.support.tiny_bundle import MAX_LENGTH, decoder_bundle, write_tokenizer
from tests.support.tiny_models import linear_bundle

VARIED = Sampling(temperature=5.0, seed=0)  # the likeliest tokens of this model make no text


@pytest.fixture(scope="module")
def ids(bundle: Bundle) -> Callable[[str], list[int]]:
    return Tokenizer(bundle).encode


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("saved") / "b")


def run(bundle: Bundle, prompt: str, **options: Any) -> tuple[str, Generation]:
    running = generate(bundle, prompt, **{"max_new_tokens": 6, "chat": False, **options})
    return "".join(running), running


def change(path: Path, drop: str = "", **changes: Any) -> None:
    """Rewrites a session with other arrays or metadata (``facts``)."""
    with safe_open(path, framework="np") as file:
        facts, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = {**facts, **changes.pop("facts", {})}
    arrays.update({name.replace("_", "."): array for name, array in changes.items()})
    arrays.pop(drop, None)
    save_file(arrays, path, facts)


def test_a_text_goes_on_as_if_it_had_never_stopped(
    bundle: Bundle, ids: Callable[[str], list[int]], tmp_path: Path
) -> None:
    file = tmp_path / "text.session"
    _, one = run(bundle, "abc", session=file)
    _, two = run(bundle, "d", session=file)
    assert two.reused_tokens == 4 + 5  # the last token of the answer had not been fed
    assert two.prompt_tokens == 4 + 6 + 1
    # The same in one decoder: all that was said, then the new prompt.
    decoder = Decoder(bundle)
    decoder.run(np.array([[*ids("abc"), *one.tokens[:-1]]], np.int64))
    logits = decoder.run(np.array([[one.tokens[-1], *ids("d")[1:]]], np.int64))[0, -1]
    expected = []
    for _ in range(6):
        expected.append(int(logits.argmax()))
        logits = decoder.step(expected[-1])
    assert two.tokens == expected


def test_a_chat_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    run(bundle, "abc", chat=None, session=file)
    _, second = run(bundle, "d", chat=None, session=file)
    assert 0 < second.reused_tokens < second.prompt_tokens
    with safe_open(file, framework="np") as saved:
        messages = json.loads(saved.metadata()["messages"])
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    with pytest.raises(UsageError, match="holds a chat and cannot go on as plain text"):
        generate(bundle, "x", chat=False, session=file)
    with pytest.raises(UsageError, match=r"system: .* leave it out"):
        generate(bundle, "x", system="be brief", session=file)


def test_lookup_and_sessions_together(bundle: Bundle, tmp_path: Path) -> None:
    plain, ahead = tmp_path / "plain", tmp_path / "ahead"
    texts = [
        [run(bundle, prompt, session=file, lookup=lookup, max_new_tokens=9)[0] for prompt in ("ababab", "ab")]
        for file, lookup in ((plain, 0), (ahead, 4))
    ]
    assert texts[0] == texts[1]


def test_leaving_early_saves_what_there_is(bundle: Bundle, ids: Callable[[str], list[int]], tmp_path: Path) -> None:
    file = tmp_path / "s"
    running = generate(bundle, "abc", chat=False, max_new_tokens=20, session=file, sampling=VARIED)
    next(running)
    running._pieces.close()  # type: ignore[attr-defined]
    with safe_open(file, framework="np") as saved:
        assert saved.get_tensor("text").tolist() == [*ids("abc"), *running.tokens]
    assert list(tmp_path.iterdir()) == [file]
    assert running.finish == "cancelled"


def test_leaving_a_loop_saves_at_once(bundle: Bundle, tmp_path: Path) -> None:
    running = generate(bundle, "abc", chat=False, max_new_tokens=20, session=tmp_path / "s", sampling=VARIED)
    for _ in running:
        break
    assert (tmp_path / "s").exists()
    assert running.finish == "cancelled"
    assert len(running.tokens) < 20
    assert list(running) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"facts": {"edgekit.session": "9"}}, "session version 9 found, 1 expected"),
        ({"facts": {"bundle": "another"}}, "was saved with another bundle"),
        ({"facts": {"messages": "[1]"}}, "its messages are no chat"),
        ({"facts": {"messages": '{"role": 1}'}}, "its messages are no chat"),
        ({"facts": {"messages": "[" * 99999}}, "its messages are no chat"),
        ({"drop": "key.1"}, "no key.1, an array of this name expected; the file is damaged, start anew"),
        ({"drop": "cached"}, "no cached, an array"),
        ({"drop": "text"}, "no text, an array"),
        ({"key_0": np.zeros((2, 9, 16), np.float32)}, r"key\.0 is F32 \[2, 9, 16\], F32 \[1, 9, 16\] expected"),
        ({"value_2": np.zeros((1, 7, 16), np.float32)}, r"value\.2 is F32 \[1, 7, 16\], F32 \[1, 9, 16\] expected"),
        ({"key_0": np.zeros((1, 9, 16), np.float16)}, r"key\.0 is F16 \[1, 9, 16\], F32"),
        ({"key_0": np.zeros(9, np.float32)}, r"key\.0 is F32 \[9\], F32"),
        ({"cached": np.array([1, 2])}, r"key\.0 is F32 \[1, 9, 16\], F32 \[1, 2, 16\] expected"),
        ({"cached": np.full(9, 10**9)}, "cached goes from 1000000000 to 1000000000, 0 to 258 expected"),
        ({"text": np.full(9, -1)}, "text goes from -1 to -1, 0 to 258 expected"),
        ({"text": np.zeros(9, np.float32)}, r"text is F32 \[9\], I64 \[tokens\], at most 64 expected"),
        ({"text": np.zeros(65, np.int64)}, r"text is I64 \[65\], I64 \[tokens\], at most 64 expected"),
        ({"text": np.zeros((1, 9), np.int64)}, r"text is I64 \[1, 9\], I64"),
    ],
)
def test_bad_sessions_are_refused(bundle: Bundle, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    file = tmp_path / "s.session"
    run(bundle, "abc", session=file)
    change(file, **damage)
    before = file.read_bytes()
    with pytest.raises(UsageError, match=message):
        generate(bundle, "d", chat=False, session=file)
    assert file.read_bytes() == before


def test_files_that_are_no_sessions(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "s.session"
    run(bundle, "abc", session=file)
    whole = file.read_bytes()
    cuts = [whole[:at] for at in range(0, len(whole), max(1, len(whole) // 50))]
    for content in (b"hello", b"\xff" * 100, *cuts, whole + b"x"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="no readable session"):
            generate(bundle, "d", chat=False, session=file)
    with pytest.raises(UsageError, match="no readable session"):
        generate(bundle, "d", chat=False, session=tmp_path)


def test_a_session_longer_than_the_context(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "s.session"
    run(bundle, "a" * (MAX_LENGTH - 4), session=file, max_new_tokens=2)
    line = f"s.session: with the prompt 67 tokens; the context holds {MAX_LENGTH}, .* give another session file"
    with pytest.raises(UsageError, match=line):
        generate(bundle, "more", chat=False, session=file)


def test_an_unwritable_place(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no directory .*; make it, or name another file"):
        generate(bundle, "abc", chat=False, session=tmp_path / "no" / "s")
    (tmp_path / "gone").mkdir()
    running = generate(bundle, "abc", chat=False, max_new_tokens=2, session=tmp_path / "gone" / "s")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="the session cannot be saved"):
        list(running)


def test_a_failure_while_saving_keeps_the_old_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s"
    run(bundle, "abc", session=file)
    before = file.read_bytes()

    def half(arrays: object, path: Path, facts: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", half)
    with pytest.raises(UsageError, match=r"cannot be saved .no space left on device.; make room"):
        run(bundle, "d", session=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_another_model_has_no_session(tmp_path: Path) -> None:
    other = linear_bundle(tmp_path / "b")
    write_tokenizer(other.directory)
    (tmp_path / "s").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="task generic is no language model"):
        generate(other, "hi", session=tmp_path / "s")


@pytest.mark.parametrize("chat", [False, True])
def test_a_cancelled_prompt_was_not_said(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    """Given again it goes on where it was, and the text is the same as without the interruption."""
    monkeypatch.setattr("edgekit.runtime.decoder.PROMPT_PIECE", 8)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for file in (cut, whole):
        run(bundle, "abc", chat=chat, session=file)
    decoder = Decoder(bundle)
    plain, fed = decoder._run, itertools.count()

    def second(piece: np.ndarray, rows: int) -> np.ndarray:
        if next(fed) == 1:
            running.cancel()
        return plain(piece, rows)

    monkeypatch.setattr(decoder, "_run", second)
    prompt = "a prompt of some pieces"
    running = generate(decoder, prompt, chat=chat, session=cut)
    assert (list(running), running.finish, running.tokens) == ([], "cancelled", [])
    text, again = run(bundle, prompt, chat=chat, session=cut)
    expected, plain_run = run(bundle, prompt, chat=chat, session=whole)
    assert again.reused_tokens == running.reused_tokens + 8
    assert (text, again.tokens, again.prompt_tokens) == (expected, plain_run.tokens, plain_run.prompt_tokens)


def test_only_the_common_beginning_is_reused(bundle: Bundle, ids: Callable[[str], list[int]], tmp_path: Path) -> None:
    """As when a template writes an earlier answer otherwise than it was generated."""
    file = tmp_path / "s"
    run(bundle, "abcdef", session=file)
    with safe_open(file, framework="np") as saved:
        text = saved.get_tensor("text")
    text[5] = 100
    change(file, text=text)
    _, changed = run(bundle, "d", session=file)
    assert changed.reused_tokens == 5
    decoder = Decoder(bundle)
    logits = decoder.run(np.array([[*text, *ids("d")[1:]]], np.int64))[0, -1]
    assert changed.prompt_tokens == len(text) + 1
    assert changed.tokens[0] == int(logits.argmax())


def test_cancelling_ends_the_text(bundle: Bundle) -> None:
    running = generate(bundle, "abc", chat=False, max_new_tokens=40, sampling=VARIED)
    pieces = [next(running)]
    running.cancel()
    pieces += list(running)
    assert running.finish == "cancelled"
    assert len(running.tokens) < 40
    early = generate(bundle, "abc", chat=False)
    early.cancel()
    assert list(early) == []
    assert (early.finish, early.tokens) == ("cancelled", [])
    _, done = run(bundle, "abc")
    done.cancel()
    assert done.finish == "length", "it had ended before"


def test_generation_in_a_thread(bundle: Bundle) -> None:
    plain, _ = run(bundle, "abc")
    assert "".join(interruptible(generate(bundle, "abc", chat=False, max_new_tokens=6))) == plain
    decoder = Decoder(bundle)
    plain_step = decoder.step
    go_on = threading.Event()

    def slow(token: int) -> np.ndarray:  # the text would be over before anyone can leave it
        go_on.wait(0.02)
        return plain_step(token)

    decoder.step = slow  # type: ignore[method-assign]
    varied = Sampling(temperature=5.0, seed=0)
    running = generate(decoder, "abc", chat=False, max_new_tokens=40, sampling=varied)
    with closing(interruptible(running)) as stream:
        next(stream)
    assert running.finish == "cancelled"
    assert not [t for t in threading.enumerate() if t.name == "generation"]


def test_errors_come_out_of_the_thread(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    running = generate(bundle, "abc", chat=False, max_new_tokens=2, session=tmp_path / "gone" / "s")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="cannot be saved"):
        list(interruptible(running))


def test_ctrl_c_ends_a_generation_and_gives_out_what_was_ready(bundle: Bundle, tmp_path: Path) -> None:
    """A real signal while the main thread waits for the first piece of a run that would not end by itself."""
    decoder = Decoder(bundle)
    started = threading.Event()

    def endless(ids: np.ndarray, features: None) -> np.ndarray:
        started.set()
        while True:
            decoder.session.run_bound(decoder._one[1 - decoder._now].ort, decoder._options)

    running = generate(decoder, "abc", chat=False, session=tmp_path / "s")
    decoder.run(np.zeros((1, 1), np.int64))
    decoder.step(0)
    decoder.reset()
    decoder.run = endless  # type: ignore[method-assign,assignment]
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        started.wait()
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    threading.Thread(target=press).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(interruptible(running))
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.finish == "cancelled"
    assert (tmp_path / "s").exists()


def test_ctrl_c_while_the_thread_begins_ends_it_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    start, cancelled = threading.Thread.start, threading.Event()

    def pressed(thread: threading.Thread) -> None:
        """The thread's work begins only once it was cancelled, or a short text might end by itself."""
        work = thread.run
        thread.run = lambda: work() if cancelled.wait() else None  # type: ignore[method-assign]
        start(thread)
        raise KeyboardInterrupt

    running = generate(bundle, "abc", chat=False, max_new_tokens=10_000)
    stop = running._stop

    def stopped() -> None:
        stop()
        cancelled.set()

    running._stop = stopped
    monkeypatch.setattr(threading.Thread, "start", pressed)
    with pytest.raises(KeyboardInterrupt):
        list(interruptible(running))
    assert running.finish == "cancelled"
    assert not any(t.name == "generation" for t in threading.enumerate())
