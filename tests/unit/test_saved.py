"""Saved sessions: resuming gives the same text; every bad file is refused by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generate import Generation, generate, interruptible
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.tokenizer import Tokenizer
from tests.unit.tiny_bundle import MAX_LENGTH, decoder_bundle


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
    first, one = run(bundle, "abc", session=file)
    second, two = run(bundle, "d", session=file)
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
    assert first and second is not None


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
    running = generate(bundle, "abc", chat=False, max_new_tokens=20, session=file)
    next(running)
    running._pieces.close()  # type: ignore[attr-defined]
    with safe_open(file, framework="np") as saved:
        assert saved.get_tensor("tokens").tolist() == [*ids("abc"), *running.tokens]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"facts": {"edgekit.session": "9"}}, "session version 9 found, 1 expected"),
        ({"facts": {"bundle": "another"}}, "was saved with another bundle"),
        ({"facts": {"messages": "[1]"}}, "its messages are no chat"),
        ({"drop": "key.1"}, "holds no 'key.1'"),
        ({"drop": "tokens"}, "holds no 'tokens'"),
        ({"key_0": np.zeros((2, 9, 16), np.float32)}, r"key\.0 is \[2, 9, 16\], \[1, tokens, 16\] expected"),
        ({"key_0": np.zeros((1, 7, 16), np.float32)}, "tokens and cache do not fit together"),
        ({"tokens": np.array([1, 2])}, "tokens and cache do not fit together"),
        ({"tokens": np.full(20, 10**9)}, "tokens and cache do not fit together"),
        ({"tokens": np.zeros(20, np.float32)}, "tokens and cache do not fit together"),
        ({"key_0": np.zeros((1, 9, 16), np.float16)}, r"key\.0 is float16, float32 expected"),
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
    for content in (b"", b"hello", b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="no readable session"):
            generate(bundle, "d", chat=False, session=file)


def test_a_session_longer_than_the_context(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "s.session"
    run(bundle, "a" * (MAX_LENGTH - 4), session=file, max_new_tokens=2)
    with pytest.raises(UsageError, match=f"the context holds {MAX_LENGTH}"):
        generate(bundle, "more", chat=False, session=file)


def test_an_unwritable_place(bundle: Bundle, tmp_path: Path) -> None:
    running = generate(bundle, "abc", chat=False, max_new_tokens=2, session=tmp_path / "no" / "s")
    with pytest.raises(UsageError, match="the session cannot be saved"):
        list(running)


def test_cancelling_ends_the_text(bundle: Bundle) -> None:
    varied = Sampling(temperature=5.0, seed=0)  # the likeliest tokens of this model make no text
    running = generate(bundle, "abc", chat=False, max_new_tokens=40, sampling=varied)
    pieces = [next(running)]
    running.cancel()
    pieces += list(running)
    assert running.finish == "cancelled"
    assert len(running.tokens) < 40
    early = generate(bundle, "abc", chat=False)
    early.cancel()
    assert list(early) == []
    assert (early.finish, early.tokens) == ("cancelled", [])


def test_generation_in_a_thread(bundle: Bundle) -> None:
    plain, _ = run(bundle, "abc")
    assert "".join(interruptible(generate(bundle, "abc", chat=False, max_new_tokens=6))) == plain
    running = generate(bundle, "abc", chat=False, max_new_tokens=40)
    for _ in interruptible(running):
        break
    assert threading.active_count() == 1 or running.finish in ("cancelled", "length")
    with pytest.raises(UsageError, match="cannot be saved"):
        list(interruptible(generate(bundle, "abc", chat=False, max_new_tokens=2, session=Path("nowhere/at/all"))))
