"""Speech to text: the sound's front end, both graphs and what is written down, beside transformers, on real speech."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers

from edgekit import Bundle, compress, export, generate, verify
from edgekit.cli import main
from edgekit.compression.settings import Compression
from edgekit.errors import BundleError, SourceError, UnsupportedError, UsageError
from edgekit.frontend.decoder import build
from edgekit.frontend.decoder.cross import SpeechEncoder
from edgekit.frontend.sound import LogMel
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from edgekit.runtime.session import Session
from tests.support.tiny_speech import RATE, SEVERAL, speech, speech_directory, speech_file, speech_model
from tests.support.tiny_translators import byte_tokenizer, translator_directory
from tools.whisper_tiny import whisper_tiny

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 5 is what is exported")
NEW = 30
KINDS = ("whisper", "moonshine")


def spectrum(sound: np.ndarray, bins: int = 80, seconds: int = 30) -> np.ndarray:
    """transformers' own log-mel spectrum float32 [1, bins, frames]."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    features: np.ndarray = extractor(sound, sampling_rate=RATE, return_tensors="np").input_features
    return features


def heard(name: str, sound: np.ndarray) -> dict[str, torch.Tensor]:
    """A sound as transformers' model takes it; the tiny Whisper hears 3 s."""
    if name == "whisper":
        return {"input_features": torch.from_numpy(spectrum(sound, seconds=3))}
    return {"input_values": torch.from_numpy(sound[None])}


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("name", ["Front_Center", "Rear_Left", "Noise", "noise of 30 s"])
def test_the_spectrum_is_that_of_transformers(bins: int, name: str) -> None:
    """Of speech, of noise, and of a sound as long as the model hears, whose end is mirrored, too."""
    sound = np.random.default_rng(0).standard_normal(30 * RATE).astype(np.float32) * 0.1
    if not name.endswith("s"):
        sound = speech(name)
    mine = LogMel(bins, 400, 160, RATE, 3000)(torch.from_numpy(sound[None]))
    assert np.abs(mine.numpy() - spectrum(sound, bins)).max() <= 1e-4  # 4.4e-5 at most


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_and_steps_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, sound = speech_model(name), speech()
    with torch.no_grad():
        crossed = SpeechEncoder(model)(next(iter(heard(name, sound).values())))
        answer = (np.arange(40).reshape(1, 40) * 53 + 7) % 250 + 3
        expected = model(
            **heard(name, sound), decoder_input_ids=torch.from_numpy(answer), use_cache=False
        ).logits.numpy()
    graph = build(model)
    for step in pipeline(Recipe.load("fp32")):
        graph = step(graph).model
    ir.save(graph, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    feed = {n: array.numpy() for n, array in crossed.items() if n.startswith("cross.")}
    feed["encoder_attention_mask"] = np.ones((1, feed["cross.0.key"].shape[2]), np.int64)
    caches = [i for i in session.get_inputs() if i.name.startswith("past_")]
    past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in caches]
    for start, stop in [(0, 5), *((at, at + 1) for at in range(5, 40))]:
        mask = np.ones((1, stop), np.int64)
        named = {i.name: array for i, array in zip(caches, past, strict=True)}
        logits, *past = session.run(None, {"input_ids": answer[:, start:stop], "attention_mask": mask, **named, **feed})
        np.testing.assert_allclose(logits, expected[:, start:stop], atol=1e-4 * np.abs(expected).max(), rtol=0)


Exported = dict[str, tuple[Any, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each kind as transformers loads it, and its float32 bundle."""
    made = {}
    for name in KINDS:
        folder = tmp_path_factory.mktemp(name)
        speech_directory(folder / "model", name, **(SEVERAL if name == "whisper" else {}))
        export(folder / "model", "fp32", folder / "bundle", samples=speech_file(), abis=())
        kind = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder / "model")
        made[name] = kind, folder / "bundle"
    return made


def theirs(model: Any, name: str, sound: np.ndarray, **settings: Any) -> list[int]:
    """What transformers' generate writes down."""
    ids: list[int] = model.generate(**heard(name, sound), max_new_tokens=NEW, **settings)[0].tolist()
    return ids if name == "whisper" else ids[1:]


@pytest.mark.parametrize("name", KINDS)
def test_the_encoder_hears_the_same(name: str, exported: Exported) -> None:
    model, bundle = exported[name]
    encoder = Bundle.open(bundle).encoder
    assert encoder is not None
    for sound in (speech(), speech("Rear_Left")[:9000]):
        answers = Session(encoder).run({"input_values": sound[None]})
        with torch.no_grad():
            expected = SpeechEncoder(model)(next(iter(heard(name, sound).values())))
        assert answers.keys() == expected.keys()
        for output, array in expected.items():
            np.testing.assert_allclose(answers[output], array.numpy(), atol=1e-3 * float(array.abs().max()), rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_down_is_what_transformers_writes(name: str, exported: Exported) -> None:
    """Whisper: the likeliest language, the task, no timestamps, tokens that are never chosen and such as are never first."""
    model, bundle = exported[name]
    for word in ("Front_Center", "Rear_Left"):
        running = generate(bundle, audio=speech_file(word), max_new_tokens=NEW)
        text = "".join(running)
        expected = theirs(model, name, speech(word))
        assert len(set(expected)) > 5
        assert running.tokens == expected[: len(running.tokens)] and len(running.tokens) >= len(expected) - 1
        assert text == byte_tokenizer().decode(running.tokens)
        again = generate(bundle, audio=speech(word), max_new_tokens=NEW)
        list(again)
        assert again.tokens == running.tokens


def test_an_answer_can_be_begun(exported: Exported) -> None:
    """Which is how a language or a task is asked for; nothing is detected then."""
    model, bundle = exported["whisper"]
    running = generate(bundle, audio=speech_file(), begin="ab", max_new_tokens=NEW)
    list(running)
    start = [1, *byte_tokenizer().encode("ab", add_special_tokens=False).ids]
    expected = transformers.GenerationMixin.generate(
        model, **heard("whisper", speech()), decoder_input_ids=torch.tensor([start]), max_new_tokens=NEW,
        suppress_tokens=[90, 91], begin_suppress_tokens=[92, 2],
    )  # fmt: skip
    assert running.tokens == expected[0, len(start) :].tolist()


def test_the_command_line_says_the_same(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    for name in KINDS:
        bundle = exported[name][1]
        with contextlib.suppress(SystemExit):
            main(["generate", str(bundle), "--audio", str(speech_file()), "-n", str(NEW), "--json"])
        told = json.loads(capsys.readouterr().out)
        here = generate(bundle, audio=speech_file(), max_new_tokens=NEW)
        list(here)
        assert told["tokens"] == here.tokens  # from the runner of devices, in a process of its own


@pytest.mark.parametrize("name", KINDS)
def test_verify_judges_both_graphs_in_every_recipe(name: str, exported: Exported, tmp_path: Path) -> None:
    report = verify(exported[name][1])
    assert report.passed and report.encoder is not None and report.encoder.passed
    for recipe, formats in (("int8", {"int8"}), ("int4", {"int4-fp16"})):
        bundle = export(
            exported[name][1].parent / "model", recipe, tmp_path / recipe, samples=speech_file(), abis=("linux-x86_64",)
        )
        assert bundle.encoder is not None
        for part in (bundle, bundle.encoder):
            assert {layer.format for layer in part.manifest.layers} >= formats
        assert verify(bundle).verdict == "PASS"


def test_a_made_up_sound_proves_nothing(exported: Exported, tmp_path: Path) -> None:
    bundle = export(exported["moonshine"][1].parent / "model", "fp32", tmp_path / "b", abis=())
    assert verify(bundle).verdict == "UNPROVEN"


def test_what_is_asked_in_vain(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = exported["whisper"][1]
    for options in ({"prompt": "Hello"}, {}, {"prompt": "Hello", "audio": speech_file()}):
        with pytest.raises(UsageError, match=r"writes down speech; give audio, a \.wav file, and no prompt"):
            generate(bundle, **options)
    with pytest.raises(UsageError, match="writes down speech; it has no chat, system message or session"):
        generate(bundle, audio=speech_file(), system="Be kind.")
    long = np.zeros(RATE * 4, np.float32)
    with pytest.raises(UsageError, match=r"audio: 4.0 s of sound; .* reads 3 s at most, cut it where nobody speaks"):
        generate(bundle, audio=long)
    with pytest.raises(UsageError, match=r"audio: 0.050 s of sound; give 0.1 s or more"):
        generate(bundle, audio=long[:800])
    with pytest.raises(UsageError, match=r"audio: float64 \[4\] given; float32 \[n\] at 16000 Hz expected"):
        generate(bundle, audio=np.zeros(4))
    with pytest.raises(
        UsageError, match=r"audio: float32 \[48000\] given; float32 \[n\] at 16000 Hz expected, of numbers"
    ):
        generate(bundle, audio=np.full(RATE * 3, 3e38, np.float32))
    (tmp_path / "text.wav").write_text("Some words.")
    with pytest.raises(
        UsageError, match=r"text.wav: is no WAV file with sound in it; convert it, for instance: ffmpeg"
    ):
        generate(bundle, audio=tmp_path / "text.wav")
    with pytest.raises(SystemExit):
        main(["generate", str(bundle), "--audio", str(tmp_path / "none.wav")])
    assert "none.wav: cannot be read (No such file or directory); give a .wav file" in capsys.readouterr().err
    translator_directory(tmp_path / "t5")
    text = export(tmp_path / "t5", "fp32", tmp_path / "bundle", abis=())
    with pytest.raises(UsageError, match="reads no sound; leave it out and give a prompt"):
        generate(text, audio=speech_file())
    with pytest.raises(SourceError, match=r"text.txt: model reads speech; give --samples a .wav file of some seconds"):
        export(bundle.parent / "model", "fp32", tmp_path / "x", samples=tmp_path / "text.txt")
    with pytest.raises(UnsupportedError, match="has an encoder and a decoder; compress is for models with one of them"):
        compress(str(bundle.parent / "model"), Compression.calibrated("gptq", None), tmp_path / "small")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("preprocessor_config", {"feature_size": 128}, "feature_size is 128, config.json has num_mel_bins 80"),
        ("preprocessor_config", {"dither": 0.1}, "dither is 0.1; edgekit gives sound to the model as it is"),
        ("preprocessor_config", {"hop_length": 0}, "hop_length is '0', a whole number from 2 to 16,384 expected"),
        ("generation_config", {"language": "xx"}, "language 'xx' of generation_config.json is not in its lang_to_id"),
        ("generation_config", {"task": "sing"}, "task 'sing' of generation_config.json is not in its task_to_id"),
        ("generation_config", {"forced_decoder_ids": [[2, 5]]}, "leave out a place; remove or complete them"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    speech_directory(tmp_path / "m", "whisper", **SEVERAL)
    path = tmp_path / f"m/{name}.json"
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **settings}))
    with pytest.raises((SourceError, UnsupportedError), match=message):
        export(tmp_path / "m", "fp32", tmp_path / "b", samples=speech_file(), abis=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_rate": 0}, "reads sound, and the decoder's sampling_rate is 0; encoder and decoder do not belong"),
        ({"sampling_rate": 10}, "sampling_rate: 10 is not between 1000 and 768,000"),
        ({"language_tokens": [300]}, "tokens that are not between 0 and 258"),
        ({"heads": [], "head_dim": []}, "0 heads, but 0 head_dim"),
        ({"suppressed_tokens": list(range(259))}, "suppressed tokens leave none of 259 to choose"),
        ({"begin_suppressed_tokens": [5] * 5000}, "or stand there twice"),
        ({"start_tokens": [1]}, "language_tokens, but no second start token that one of them could be"),
    ],
)
def test_damage_is_found(exported: Exported, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(exported["whisper"][1], tmp_path / "b")
    path = tmp_path / "b/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decoder"]["encoder"].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_a_real_whisper_writes_down_what_is_said(tmp_path: Path) -> None:
    """tiny.en, at 8 and at 4 bits: the same words as float16 in transformers, "Front, center."."""
    directory = whisper_tiny()
    for recipe in ("int8", "int4"):
        bundle = export(directory, recipe, tmp_path / recipe, samples=speech_file(), abis=("linux-x86_64",))
        assert verify(bundle, threads=2).verdict == "PASS"
        for word, said in (("Front_Center", "front center"), ("Rear_Left", "rear left"), ("Side_Right", "side right")):
            text = "".join(generate(bundle, audio=speech_file(word), threads=2))
            assert "".join(c for c in text.lower() if c.isalpha() or c == " ").strip() == said
