"""Text generation: tokens, streaming, stop strings, sampling, chat templates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.cli.verbs import main
from edgekit.errors import BundleError, UnsupportedError, UsageError
from edgekit.runtime.chat import render
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import Generation, generate
from edgekit.runtime.sampling import Sampling, draw, probabilities
from edgekit.runtime.stop_strings import StopStrings
from edgekit.runtime.tokenizer import Stream, Tokenizer
from tests.support.tiny_bundle import BOS, MAX_LENGTH, Weights, decoder_bundle, reference
from tests.support.tiny_models import linear_bundle

USER = "user"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("generate") / "b")


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle)


def greedy(ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(reference(Weights(), np.array(ids))[0][-1].argmax()))
    return ids[-count:]


def test_greedy_text_is_what_numpy_computes(bundle: Bundle, tokenizer: Tokenizer) -> None:
    running = generate(bundle, "abc", chat=False, max_new_tokens=8)
    text = "".join(running)
    assert running.tokens == greedy(tokenizer.encode("abc"), 8)
    assert text == tokenizer.decode(running.tokens)
    assert (running.prompt_tokens, running.finish) == (4, "length")
    assert running.prefill_tokens_per_second > 0
    assert running.decode_tokens_per_second > 0


def test_same_seed_same_text(bundle: Bundle) -> None:
    texts = [
        "".join(generate(bundle, "abc", max_new_tokens=20, sampling=Sampling(temperature=2.0, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_decoder_can_be_used_again(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    texts = ["".join(generate(decoder, "abc", max_new_tokens=5)) for _ in range(2)]
    assert texts[0] == texts[1] == "".join(generate(bundle, "abc", max_new_tokens=5))


def test_ends_at_the_models_end_token(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter([65, 66, 257, 67])
    monkeypatch.setattr("edgekit.runtime.generation.draw", lambda *_: next(tokens))
    running = generate(bundle, "abc")
    assert "".join(running) == Tokenizer(bundle).decode([65, 66])
    assert (running.tokens, running.finish) == ([65, 66], "stop")


def test_ends_at_a_stop_string_that_spans_tokens(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(Tokenizer(bundle).encode("one END two", special=False))
    monkeypatch.setattr("edgekit.runtime.generation.draw", lambda *_: next(tokens))
    running = generate(bundle, "abc", stop=["END"])
    assert "".join(running) == "one "
    assert running.finish == "stop"


def test_ends_with_the_context(bundle: Bundle) -> None:
    running = generate(bundle, "a" * (MAX_LENGTH - 3), chat=False, max_new_tokens=99)
    assert sum(1 for _ in running) <= 3
    assert running.finish == "length"
    assert len(running.tokens) == 3


def test_streams_whole_characters(bundle: Bundle, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "né 你好 👩‍👩‍👧 🇫🇷!"
    tokens = iter([*tokenizer.encode(text, special=False), 257])
    monkeypatch.setattr("edgekit.runtime.generation.draw", lambda *_: next(tokens))
    pieces = list(generate(bundle, "abc", max_new_tokens=99, chat=False))
    assert "".join(pieces) == text
    assert "".join(pieces).count("\ufffd") == 0
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)


def test_an_unfinished_character_comes_at_the_end(tokenizer: Tokenizer) -> None:
    stream = Stream(tokenizer)
    ids = tokenizer.encode("a👍", special=False)[:-1]
    assert [stream.push(i) for i in ids] == ["a", "", "", ""]
    assert stream.rest() == "\ufffd"
    assert stream.rest() == ""


BYTES = 17  # the first byte token of ``pieces``


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as Llama 2 and Gemma have: words begin with a space mark, unknown characters are bytes."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Fast

    words = ["<unk>", "<s>", "</s>", "\u2581", *"abcehlotw\n", "\u2581t", "\u2581h", "\u2581c"]
    assert len(words) == BYTES
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    model = models.BPE(
        vocab={word: i for i, word in enumerate(words)}, merges=[("\u2581", letter) for letter in "thc"],
        byte_fallback=True, unk_token="<unk>", fuse_unk=True,
    )  # fmt: skip
    fast = Fast(model)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>")])
    bundle = decoder_bundle(tmp_path_factory.mktemp("pieces") / "b")
    fast.save(str(bundle.directory / "tokenizer.json"))
    return Tokenizer(bundle)


def stream(tokenizer: Tokenizer, ids: list[int], before: list[int] | None = None) -> list[str]:
    text = Stream(tokenizer, before or [])
    return [*(text.push(i) for i in ids), text.rest()]


def test_words_keep_their_spaces_and_a_text_drops_its_first(pieces: Tokenizer) -> None:
    ids = pieces.encode("the  hat", special=False)
    assert pieces.decode(ids) == "the  hat"
    assert "".join(stream(pieces, ids)) == "the  hat"
    assert "".join(stream(pieces, ids, before=pieces.encode("a"))) == " the  hat", "it continues a text"
    assert stream(pieces, [3, 3, *ids])[:4] == ["", " ", " t", "h"]  # the first of three spaces is dropped


@pytest.mark.parametrize("before", ["\u4f60", "a\u4f60", "\u4f60" * 9, "\U0001f44d", "\u00e9", "a"])
def test_characters_of_byte_tokens_after_characters_of_byte_tokens(pieces: Tokenizer, before: str) -> None:
    """The context must not begin within a character: its bytes would make the next ones no UTF-8."""
    ids = [BYTES + byte for byte in "\u00e9\u4f60\U0001f44d".encode()]
    found = stream(pieces, ids, before=pieces.encode(before))
    assert [piece for piece in found if piece] == ["\u00e9", "\u4f60", "\U0001f44d"]


@given(st.text("the cat\n\u00e9\u4f60\U0001f44d\U0001f468\u200d\ufffd", max_size=20))
@settings(max_examples=50)
def test_any_text_survives_streaming_in_pieces(pieces: Tokenizer, text: str) -> None:
    ids = pieces.encode(text, special=False)
    assert "".join(stream(pieces, ids)) == pieces.decode(ids)


def test_bytes_that_are_no_characters(pieces: Tokenizer) -> None:
    a = pieces.encode("a", special=False)[-1]
    lost, cut = BYTES + 0xFF, BYTES + 0xE4
    assert stream(pieces, [a, lost, a]) == ["a", "", "\ufffda", ""]
    assert stream(pieces, [cut, a, cut]) == ["", "\ufffda", "", "\ufffd"]
    # After a character of bytes: the tokenizer now spells that one as U+FFFD too, which was given out already.
    accent = [BYTES + byte for byte in "\u00e9".encode()]
    assert pieces.decode([*accent, lost, a]) == "\ufffd\ufffd\ufffda"
    assert stream(pieces, [*accent, lost, a]) == ["", "\u00e9", "", "\ufffda", ""]
    assert stream(pieces, [*accent, lost]) == ["", "\u00e9", "", "\ufffd"]


@given(st.lists(st.integers(0, 272), max_size=24))
@settings(max_examples=200)
def test_any_tokens_lose_nothing_but_broken_bytes(pieces: Tokenizer, ids: list[int]) -> None:
    found = "".join(stream(pieces, ids))
    if "\ufffd" not in pieces.decode(ids):
        assert found == pieces.decode(ids)
    # Bytes apart, everything is there in its order.
    plain = [i for i in ids if not BYTES <= i < BYTES + 256]
    letters = "".join(pieces.decode(plain).split())
    left = iter(found)
    assert all(letter in left for letter in letters)


@given(st.lists(st.integers(0, 258), max_size=24))
@settings(max_examples=200)
def test_any_bytes_are_streamed_as_decoded(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_continued_text_keeps_its_space_and_an_answer_begins_without(
    bundle: Bundle, pieces: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle(pieces.directory, bundle.manifest)
    for chat, expected in ((False, " the cat"), (True, "the cat")):
        tokens = iter([*pieces.encode("the cat", special=False), 257])
        monkeypatch.setattr("edgekit.runtime.generation.draw", lambda *_, tokens=tokens: next(tokens))
        assert "".join(generate(bundle, "the hat", chat=chat)) == expected


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_ctrl_c_shows_what_there_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], json_flag: list[str]
) -> None:
    def pressed(running: Generation) -> Generator[str, None, None]:
        yield next(running)
        running.cancel()
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.runtime.interruptible.interruptible", pressed)
    sampled = ["--temperature", "5", "--seed", "0"]  # the likeliest tokens of this model make no text
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(bundle.directory), "abc", *sampled, *json_flag])
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert "finish cancelled" in err
    assert len(out.strip()) > 0
    if json_flag:
        assert json.loads(out)["finish"] == "cancelled"
        assert len(json.loads(out)["text"]) > 0


def test_what_was_held_back_comes_when_the_text_is_cancelled(
    bundle: Bundle, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = iter(tokenizer.encode("ab ST", special=False))

    def last(*_: object) -> int:
        token = next(tokens)
        if token == tokenizer.encode("T", special=False)[0]:
            running.cancel()
        return token

    monkeypatch.setattr("edgekit.runtime.generation.draw", last)
    running = generate(bundle, "abc", stop=["STOP"])
    assert "".join(running) == "ab ST"
    assert running.finish == "cancelled"


def test_a_stop_string_may_end_with_what_was_held_back(
    bundle: Bundle, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = iter([*tokenizer.encode("ab\u4f60", special=False)[:-1], 257])
    monkeypatch.setattr("edgekit.runtime.generation.draw", lambda *_: next(tokens))
    running = generate(bundle, "abc", stop=["b\ufffd"])
    assert ("".join(running), running.finish) == ("a", "stop")


@given(st.text(max_size=20))
@settings(max_examples=50)
def test_any_text_survives_streaming(tokenizer: Tokenizer, text: str) -> None:
    stream = Stream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text, special=False)]
    assert "".join([*pieces, stream.rest()]) == text


@given(st.lists(st.text("abE", max_size=3), max_size=8), st.lists(st.text("abE", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_the_text_exactly(pieces: list[str], stops: list[str]) -> None:
    text, given_out = StopStrings(stops), list[Any]()
    for piece in pieces:
        given_out += text.push(piece)
        if text.hit:
            break
    else:
        given_out += text.rest()
    # The stop that can be seen first ends the text, and of those that end together the one that begins first.
    whole = "".join(pieces)
    for end in itertools.accumulate(len(piece) for piece in pieces):
        found = [at for stop in stops if (at := whole[:end].find(stop)) >= 0]
        if found:
            whole = whole[: min(found)]
            break
    assert "".join(given_out) == whole


def test_chat_is_the_default_where_there_is_a_template(bundle: Bundle, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.chat([{"role": USER, "content": "hi"}])) == "hi>"
    chat = generate(bundle, "hi")
    assert chat.prompt_tokens == len(tokenizer.chat([{"role": USER, "content": "hi"}])) == 5
    assert generate(bundle, "hi", chat=False).prompt_tokens == 3
    assert generate(bundle, "hi", system="be brief").prompt_tokens == 5 + 1 + len("be brief")


def test_bos_is_added_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("hi")[:1] == [BOS]
    assert tokenizer.encode("<bos>hi") == tokenizer.encode("hi")
    assert tokenizer.encode("hi", special=False)[0] != BOS
    assert len(tokenizer.encode("x" * 50)) == 51, "a truncation stored in tokenizer.json has no effect"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": "x" * 80}, "prompt: 83 tokens; the context holds 64, the answer included"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"),
        ({"stop": [""]}, "stop: an empty string would stop at once"),
        ({"chat": False, "system": "x"}, "system: the prompt is continued as it is"),
    ],
)
def test_calls_that_make_no_sense(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(bundle, **{"prompt": "abc", **changes})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1.0, "temperature: -1.0 is negative"),
        ("temperature", float("nan"), "temperature: nan"),
        ("top_k", -1, "top_k: -1 is negative"),
        ("top_p", 0.0, r"top_p: 0.0 is outside \(0, 1\]"),
        ("repetition_penalty", 0.0, "repetition_penalty: 0.0 is not above 0"),
        ("seed", -1, "seed: -1 is negative"),
    ],
)
def test_sampling_settings_are_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**{field: value})


def test_other_models_do_not_talk(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"task generic is no language model; nothing to decode"):
        generate(linear_bundle(tmp_path / "b"), "hi")


def test_damaged_tokenizer_files_are_named(tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    (bundle.directory / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer_config.json: not readable as JSON"):
        Tokenizer(bundle).encode("hi")
    (bundle.directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer.json: not a readable tokenizer"):
        Tokenizer(bundle)


def test_a_template_can_come_from_three_places(tmp_path: Path) -> None:
    bundle = decoder_bundle(tmp_path / "b")
    config = bundle.directory / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "list"}]}), encoding="utf-8")
    assert Tokenizer(bundle).chat_template == "list"
    (bundle.directory / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert Tokenizer(bundle).chat_template == "file"
    (bundle.directory / "chat_template.jinja").unlink()
    config.unlink()
    assert Tokenizer(bundle).chat_template is None
    with pytest.raises(UnsupportedError, match="no chat template; generate with chat=False"):
        Tokenizer(bundle).chat([{"role": USER, "content": "hi"}])


def chat(template: str) -> str:
    return render(template, [{"role": USER, "content": "é<"}], {"bos_token": "<s>"}, "model")


def test_templates_render_as_in_transformers() -> None:
    assert chat("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>é<"
    assert chat("{% generation %}x{% endgeneration %}y") == "xy"
    assert chat("{{ messages[0] | tojson }}") == '{"role": "user", "content": "é<"}'
    assert chat("{% if true %}\n  x\n{% endif %}\n") == "  x\n"
    assert chat("{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}") == "1"
    assert chat("{{ strftime_now('%Y') }}").isdigit()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system please') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for",
        "{{ 1 + 'a' }}",
    ],
)
def test_templates_that_fail_are_bundle_errors(template: str) -> None:
    with pytest.raises(BundleError, match="model: the chat template failed: "):
        chat(template)


def test_draws_as_transformers_does() -> None:
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = np.random.default_rng(0).normal(size=200).astype(np.float32) * 3
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.8)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)])
    theirs = torch.softmax(warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])[0], -1)
    np.testing.assert_allclose(probabilities(logits, sampling), theirs.numpy(), atol=1e-6)
    seen = [int(i) for i in np.argsort(-logits)[:5]]
    penalized = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([seen]), torch.from_numpy(logits)[None].clone())
    random = np.random.default_rng(0)
    assert draw(logits, Sampling(repetition_penalty=1.8), random, seen) == int(penalized.argmax())
    assert int(penalized.argmax()) != seen[0], "the penalty must matter here"
