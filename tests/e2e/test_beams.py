"""Beam search beside transformers' own, token for token, on tiny random models of text and of speech."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from edgekit import export, generate
from edgekit.cli import main
from edgekit.errors import UsageError
from edgekit.runtime.beams import Beams
from edgekit.runtime.sampling import Sampling
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_speech import SEVERAL, speech, speech_directory, speech_file
from tests.support.tiny_translators import byte_tokenizer, translator_directory

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 5 is what is exported")
PROMPTS = ("Hello there, how are you?", "Something else.")
NEW = 24
CHOICES = (Beams(2), Beams(4), Beams(4, early_stopping=True), Beams(3, 0.0), Beams(4, 2.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """By kind the model as transformers loads it, and its bundle."""
    known = {}
    for name in ("t5-gated", "bart", "whisper"):
        folder = tmp_path_factory.mktemp(name)
        if name == "whisper":
            speech_directory(folder / "model", name, **SEVERAL)
            model = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "model")
        else:
            model = translator_directory(folder / "model", name, suppress_tokens=[90])
        samples = speech_file() if name == "whisper" else None
        known[name] = model, export(folder / "model", "fp32", folder / "bundle", samples=samples, abis=()).directory
    return known


def settings(beams: Beams) -> dict[str, Any]:
    return {
        "num_beams": beams.count, "length_penalty": beams.length_penalty, "early_stopping": beams.early_stopping,
        "max_new_tokens": NEW, "do_sample": False,
    }  # fmt: skip


def plain(tokens: list[int]) -> list[int]:
    """Without what stands behind the end."""
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.mark.parametrize("beams", CHOICES, ids=str)
@pytest.mark.parametrize("name", ["t5-gated", "bart"])
def test_translations_are_those_of_transformers(name: str, beams: Beams, made: dict[str, tuple[Any, Path]]) -> None:
    model, bundle = made[name]
    for prompt in PROMPTS:
        ids = torch.tensor([byte_tokenizer().encode(prompt).ids])
        # BART forces an end where there is no more room, which edgekit does not.
        expected = model.generate(input_ids=ids, suppress_tokens=[90], forced_eos_token_id=None, **settings(beams))[
            0
        ].tolist()
        running = generate(bundle, prompt, beams=beams, max_new_tokens=NEW)
        text = "".join(running)
        assert running.tokens == plain(expected[1:])
        assert text == byte_tokenizer().decode(running.tokens)
        assert running.finish == ("length" if len(running.tokens) == NEW else "stop")


@pytest.mark.parametrize("beams", CHOICES, ids=str)
def test_speech_is_written_down_as_transformers_does(beams: Beams, made: dict[str, tuple[Any, Path]]) -> None:
    model, bundle = made["whisper"]
    features = transformers.WhisperFeatureExtractor(chunk_length=3)(
        speech(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    expected = model.generate(input_features=features, **settings(beams))[0].tolist()
    running = generate(bundle, audio=speech_file(), beams=beams, max_new_tokens=NEW)
    list(running)
    assert running.tokens == plain(expected)


def test_on_the_command_line(made: dict[str, tuple[Any, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = made["bart"][1]
    with contextlib.suppress(SystemExit):
        main(["generate", str(bundle), PROMPTS[0], "-n", str(NEW), "--beams", "4", "--json"])
    told = json.loads(capsys.readouterr().out)
    running = generate(bundle, PROMPTS[0], beams=4, max_new_tokens=NEW)
    list(running)
    assert told["tokens"] == running.tokens


def test_what_is_asked_in_vain(made: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    bundle = made["bart"][1]
    with pytest.raises(UsageError, match="beams: 0 is outside 1 to 32; 1 takes the likeliest token each time"):
        generate(bundle, PROMPTS[0], beams=0)
    with pytest.raises(UsageError, match="beams: takes likely tokens only; leave out temperature"):
        generate(bundle, PROMPTS[0], beams=2, sampling=Sampling(temperature=1.0))
    causal = decoder_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="has no encoder; beam search is for translators and speech, leave it out"):
        generate(causal, "Hello", beams=2)
