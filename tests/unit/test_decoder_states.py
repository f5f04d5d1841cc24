"""A decoder that carries a state beside keys and values: every way of feeding it, and what cannot be rewound."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edgekit import verify
from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Manifest
from edgekit.devices import runner
from edgekit.errors import BundleError, UnsupportedError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import Generation, generate
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.session import Stopped
from tests.support.tiny_bundle import BOS, HIDDEN, VOCABULARY, Weights, decoder_bundle, reference, text_ids

WEIGHTS = Weights(window=3)
VARIED = Sampling(temperature=5.0, seed=0)  # the likeliest tokens of this model make no text


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("states") / "b", WEIGHTS)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [30, 1, 1, 8], [1, 39], [13, 27]])
def test_any_division_of_a_text_gives_the_same_logits(bundle: Bundle, pieces: list[int]) -> None:
    ids, decoder = text_ids(), Decoder(bundle)
    expected, at = reference(WEIGHTS, ids[0])[0], 0
    for count in pieces:
        if count == 1:
            close(decoder.step(int(ids[0, at])), expected[at])
        else:
            close(decoder.run(ids[:, at : at + count], keep=0)[0], expected[at : at + count])
        at += count
    assert decoder.length == 40


def test_a_reset_and_a_rewind_to_nothing_begin_with_zeros(bundle: Bundle) -> None:
    ids, decoder = text_ids(), Decoder(bundle)
    expected = reference(WEIGHTS, ids[0])[0]
    for forget in (decoder.reset, lambda: decoder.rewind(0)):
        decoder.run(ids[:, 20:])
        forget()
        close(decoder.run(ids, keep=0)[0], expected)
        forget()


def test_rows_have_states_of_their_own(bundle: Bundle) -> None:
    ids, decoder = np.concatenate([text_ids(), text_ids()[:, ::-1]]), Decoder(bundle)
    decoder.run(ids[:, :30])
    logits = decoder.run(ids[:, 30:], keep=0)
    for row in range(2):
        close(logits[row], reference(WEIGHTS, ids[row])[0][30:])


def test_what_cannot_be_rewound_is_refused(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    decoder.run(text_ids())
    decoder.rewind(40)
    with pytest.raises(UnsupportedError, match=r"rewind from 40 to 39 tokens: .*past_conv\.1 is replaced at each step"):
        decoder.rewind(39)
    with pytest.raises(UnsupportedError, match="lookup takes proposals back; leave it out: the model has states"):
        generate(bundle, "abc", lookup=4)


def test_a_run_that_is_stopped_leaves_what_was_before_it(bundle: Bundle) -> None:
    ids, decoder = text_ids(), Decoder(bundle)
    decoder.run(ids[:, :10])
    decoder.stop()
    with pytest.raises(Stopped):
        decoder.run(ids[:, 10:])
    decoder._options.terminate = False
    close(decoder.run(ids[:, 10:], keep=0)[0], reference(WEIGHTS, ids[0])[0][10:])


def test_memory(bundle: Bundle) -> None:
    assert Decoder(bundle, max_length=10).cache_bytes == 4 * (2 * 2 * 16 * 10 + 2 * HIDDEN * 2)


def talk(bundle: Bundle, prompt: str, session: Path) -> tuple[str, Generation]:
    running = generate(bundle, prompt, max_new_tokens=6, chat=False, session=session, sampling=VARIED)
    return "".join(running), running


def test_a_saved_text_goes_on_from_its_state(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "text.session"
    _, one = talk(bundle, "abc", file)
    text, two = talk(bundle, "def", file)
    assert two.reused_tokens == one.prompt_tokens + len(one.tokens) - 1
    ids = [BOS, *b"abc", *one.tokens, *b"def", *two.tokens[:-1]]
    decoder = Decoder(bundle)
    logits = decoder.run(np.array([ids], np.int64))
    assert decoder.cache().keys() == {"key.0", "value.0", "key.2", "value.2", "past_conv.1"}
    close(logits[0, 0], reference(WEIGHTS, np.array(ids))[0][-1])
    assert text


def test_a_shortened_session_is_computed_anew(bundle: Bundle, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    file = tmp_path / "text.session"
    talk(bundle, "abc", file)
    with safe_open(file, framework="np") as opened:
        facts, arrays = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file({**arrays, "text": arrays["text"][:3]}, file, facts)
    _, again = talk(bundle, "x", file)
    assert again.reused_tokens == 0
    fresh = generate(bundle, "abx", max_new_tokens=6, chat=False, sampling=VARIED)
    list(fresh)
    assert again.tokens == fresh.tokens


def test_the_device_runner_carries_it_too(bundle: Bundle) -> None:
    report = verify(bundle)
    assert report.passed, "\n".join(report.lines())
    settings = {
        "bundle": str(bundle.directory), "threads": 1, "prompt_piece": 7, "replay_piece": 7, "advice": "",
        "oldest_onnxruntime": [1, 28], "max_length": 40, "round_seconds": 0.0, "round_runs": 2, "spin_us": 50,
    }  # fmt: skip
    started = runner.Runner(settings)
    list(started.answer({"do": "load"}))
    ids = text_ids()[0]
    expected = reference(WEIGHTS, ids)[0]
    for _ in range(2):
        started.subject.reset()
        close(np.concatenate([started.subject.run(ids[:25], keep=0), started.subject.run(ids[25:], keep=0)]), expected)


def test_the_version_of_the_manifest(bundle: Bundle, tmp_path: Path) -> None:
    """Old readers refuse states by the version, and go on reading all others."""
    text = json.loads((bundle.directory / "manifest.json").read_text())
    assert text["schema_version"] == 2 and text["decoder"]["kv_heads"] == [1, 0, 1]
    plain = json.loads((decoder_bundle(tmp_path / "plain").directory / "manifest.json").read_text())
    assert plain["schema_version"] == 1 and "states" not in plain["decoder"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "appended"},
            r"past_conv\.1' is 'appended' and 'float', this edgekit knows replaced and float; pip install",
        ),
        ({"dtype": "float16"}, r"is 'replaced' and 'float16', this edgekit knows"),
        ({"dims": []}, r"has dims \[\], from 1 and 134,217,728 numbers at most"),
        ({"dims": [4, 0]}, r"has dims \[4, 0\], from 1"),
        ({"dims": [1 << 20, 1 << 20]}, r"has dims \[1048576, 1048576\], from 1"),
    ],
)
def test_states_that_are_not_known_are_refused(bundle: Bundle, changes: dict[str, object], message: str) -> None:
    data = json.loads((bundle.directory / "manifest.json").read_text())
    data["decoder"]["states"][0].update(changes)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(data), "manifest.json")


def test_a_layer_without_keys_needs_the_version(bundle: Bundle) -> None:
    data = json.loads((bundle.directory / "manifest.json").read_text())
    with pytest.raises(BundleError, match=r"decoder\.kv_heads: 0 is not between 1 and 4,096"):
        Manifest.from_json(json.dumps({**data, "schema_version": 1}), "manifest.json")


def test_a_layer_has_both_or_neither(bundle: Bundle) -> None:
    data = json.loads((bundle.directory / "manifest.json").read_text())
    data["decoder"]["head_dim"] = [16, 16, 16]
    with pytest.raises(
        BundleError, match=r"decoder: kv_heads \[1, 0, 1\] and head_dim \[16, 16, 16\], 0 in one of them"
    ):
        Manifest.from_json(json.dumps(data), "manifest.json")


def test_the_graph_must_have_the_states(bundle: Bundle, tmp_path: Path) -> None:
    decoder = bundle.manifest.decoder
    assert decoder is not None
    state = dataclasses.replace(decoder.states[0], input="past_conv.7")
    changed = dataclasses.replace(bundle.manifest, decoder=dataclasses.replace(decoder, states=(state,)))
    copy = decoder_bundle(tmp_path / "b", WEIGHTS)
    (copy.directory / "manifest.json").write_text(changed.to_json())
    with pytest.raises(BundleError, match=r"has no input or output 'past_conv\.7'"):
        Bundle.open(copy.directory)


def test_logits_have_the_vocabulary(bundle: Bundle) -> None:
    assert Decoder(bundle).run(text_ids(3)).shape == (1, 1, VOCABULARY)
