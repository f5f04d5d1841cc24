"""Encoder-decoders: the decoder's graph against transformers, and a whole bundle from export to a translation."""

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

from edgekit import Bundle, compress, evaluate, export, generate, pack, unpack, verify
from edgekit.cli import main
from edgekit.compression.settings import Compression
from edgekit.errors import BundleError, EdgekitError, UnsupportedError, UsageError
from edgekit.frontend.decoder import build
from edgekit.frontend.decoder.cross import CrossEncoder
from edgekit.inspection import inspect
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.sampling import Sampling
from tests.support.tiny_translators import TRANSLATORS, byte_tokenizer, translator, translator_directory

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 5 is what is exported")
PROMPT = "Hello there, how are you?"
NEW = 24


def padded_sources() -> tuple[np.ndarray, np.ndarray]:
    ids = (np.arange(22).reshape(2, 11) * 37 + 5) % 256 + 3
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


class Graph:
    """A decoder's graph in plain ONNX Runtime on what the model's own encoder gives."""

    def __init__(self, model: Any, directory: Path) -> None:
        graph = build(model)
        for step in pipeline(Recipe.load("fp32")):
            graph = step(graph).model
        ir.save(graph, directory / "model.onnx")
        self.session = ort.InferenceSession(str(directory / "model.onnx"))
        ids, mask = map(torch.from_numpy, padded_sources())
        with torch.no_grad():
            crossed = CrossEncoder(model)(ids, mask)
        self._source = {name: array.numpy() for name, array in crossed.items() if name.startswith("cross.")}
        self._source["encoder_attention_mask"] = mask.numpy()
        self.caches = [i for i in self.session.get_inputs() if i.name.startswith("past_")]

    def run(self, ids: np.ndarray, length: int, past: list[np.ndarray] | None) -> list[np.ndarray]:
        feed = {"input_ids": ids, "attention_mask": np.ones((2, length), np.int64), **self._source}
        for index, cache in enumerate(self.caches):
            shape = (2, cache.shape[1], 0, cache.shape[3])
            feed[cache.name] = np.zeros(shape, np.float32) if past is None else past[index]
        return list(self.session.run(None, feed))


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_prompt_and_steps_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = translator(name)
    graph = Graph(model, tmp_path)
    ids, mask = padded_sources()
    answer = (np.arange(60).reshape(2, 30) * 53 + 7) % 256 + 3
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(answer), use_cache=False,
        ).logits.numpy()  # fmt: skip
    tolerance = 1e-4 * float(np.abs(expected).max())
    logits, *past = graph.run(answer[:, :5], 5, None)
    np.testing.assert_allclose(logits, expected[:, :5], atol=tolerance, rtol=0)
    for at in range(5, 30):  # past where T5's bias stops to grow
        logits, *past = graph.run(answer[:, at : at + 1], at + 1, past)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """The model, its directory and its float32 bundle."""
    folder = tmp_path_factory.mktemp("t5")
    model = translator_directory(folder / "model", "t5-gated", suppress_tokens=[90])
    export(folder / "model", "fp32", folder / "bundle", abis=())
    return model, folder / "model", folder / "bundle"


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A 4-bit bundle and its model."""
    folder = tmp_path_factory.mktemp("marian")
    model = translator_directory(folder / "model", "marian", forced_bos_token_id=77)
    export(folder / "model", "int4", folder / "bundle", abis=())
    return model, folder / "bundle"


def greedy(model: Any, prompt: str, begin: list[int] | None = None) -> list[int]:
    ids = torch.tensor([byte_tokenizer().encode(prompt).ids])
    start = {} if begin is None else {"decoder_input_ids": torch.tensor([begin])}
    made: list[int] = model.generate(
        input_ids=ids, num_beams=1, do_sample=False, max_new_tokens=NEW, suppress_tokens=[90], **start
    )[0].tolist()
    return made[1 if begin is None else len(begin) :]


def test_a_translation_is_transformers_greedy_one(t5: tuple[Any, Path, Path]) -> None:
    model, _, bundle = t5
    running = generate(bundle, PROMPT, max_new_tokens=NEW)
    text = "".join(running)
    assert len(set(running.tokens)) > 5
    assert running.tokens == greedy(model, PROMPT)
    assert 90 not in running.tokens
    assert running.prompt_tokens == len(PROMPT) + 1
    assert text == byte_tokenizer().decode(running.tokens)
    other = generate(bundle, "Something else.", max_new_tokens=NEW)
    list(other)
    assert other.tokens == greedy(model, "Something else.") != running.tokens
    begun = generate(bundle, PROMPT, begin="ab", max_new_tokens=NEW)
    list(begun)
    assert begun.tokens == greedy(model, PROMPT, [0, *byte_tokenizer().encode("ab", add_special_tokens=False).ids])


def test_the_command_line_says_the_same_and_samples(
    t5: tuple[Any, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, bundle = t5
    arguments = ["generate", str(bundle), PROMPT, "-n", str(NEW), "--json"]
    with contextlib.suppress(SystemExit):
        main(arguments)
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] == greedy(model, PROMPT)  # from the runner of devices, in a process of its own
    drawn = [
        "".join(generate(bundle, PROMPT, max_new_tokens=NEW, sampling=Sampling(temperature=2.0, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_verify_judges_both_graphs(t5: tuple[Any, Path, Path]) -> None:
    report = verify(t5[2])
    assert report.passed and report.encoder is not None and report.encoder.passed
    assert set(report.encoder.parity.outputs) >= {"last_hidden_state", "cross.0.key", "cross.2.value"}
    assert report.parity.count == 97
    assert report.to_json()["encoder"]["passed"] is True
    assert "decoder" in list(report.lines())


def test_4_bits_pass_and_answers_begin_as_the_settings_say(marian: tuple[Any, Path]) -> None:
    bundle = Bundle.open(marian[1])
    assert {layer.format for layer in bundle.manifest.layers} >= {"int4"}
    assert bundle.encoder is not None and {layer.format for layer in bundle.encoder.manifest.layers} >= {"int4"}
    info = bundle.manifest.decoder
    assert info is not None and info.encoder is not None
    assert info.encoder.start_tokens == (2, 77) and info.encoder.max_length == 128
    report = verify(bundle)
    assert report.parity.passed and report.encoder is not None and report.encoder.parity.passed
    with pytest.raises(
        UsageError, match=r"prompt: 201 tokens; the encoder of .* reads 128 at most, give a shorter one"
    ):
        generate(bundle, "x" * 200)


def test_a_batch_of_padded_sources(t5: tuple[Any, Path, Path]) -> None:
    model, _, bundle = t5
    ids, mask = padded_sources()
    answer = (np.arange(12).reshape(2, 6) * 53 + 7) % 256 + 3
    decoder = Decoder(Bundle.open(bundle), max_length=16)
    with pytest.raises(UsageError, match=r"2 rows given, 0 sources encoded; call encode\(\) first"):
        decoder.run(answer)
    decoder.encode({"input_ids": ids, "attention_mask": mask})
    found = np.concatenate([decoder.run(answer[:, :4], keep=0), decoder.run(answer[:, 4:], keep=0)], axis=1)
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(answer), use_cache=False,
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), rtol=0)


def test_a_bundle_with_an_encoder_travels(t5: tuple[Any, Path, Path], tmp_path: Path) -> None:
    bundle = t5[2]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["schema_version"] == 3
    assert {"encoder/manifest.json", "encoder/model.onnx"} <= {file["path"] for file in manifest["files"]}
    pack(bundle, tmp_path / "t5.edgepack")
    unpack(tmp_path / "t5.edgepack", tmp_path / "again")
    Bundle.open(tmp_path / "again").check_hashes()
    assert (tmp_path / "again/encoder/model.onnx.data").read_bytes() == (
        bundle / "encoder/model.onnx.data"
    ).read_bytes()


def test_what_is_asked_in_vain(t5: tuple[Any, Path, Path], tmp_path: Path) -> None:
    bundle = t5[2]
    vain = "turns one text into another; it has no chat, system message or session, leave them out"
    for options in ({"chat": True}, {"system": "Be kind."}, {"session": tmp_path / "s"}):
        with pytest.raises(UsageError, match=vain):
            generate(bundle, PROMPT, **options)
    with pytest.raises(UsageError, match="lookup: proposes what stands in the prompt"):
        generate(bundle, PROMPT, lookup=4)
    with pytest.raises(UsageError, match="prompt: is empty"):
        generate(bundle, "")
    with pytest.raises(UnsupportedError, match="text2text-generation is no language model; evaluate is for those"):
        evaluate([bundle], texts=[Path(__file__)])
    with pytest.raises(UnsupportedError, match="has an encoder and a decoder; compress is for models with one of them"):
        compress(str(t5[1]), Compression.calibrated("gptq", None), tmp_path / "small")
    with pytest.raises(UnsupportedError, match="calibrated ranges are for convolutional nets"):
        export(t5[1], "int8-static", tmp_path / "static")
    (tmp_path / "text.txt").write_text("Some words.")
    with pytest.raises(UsageError, match="--original and --text are not for models with an encoder; leave them out"):
        verify(bundle, text=tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"heads": [4, 4, 2]},
            r"encoder: output 'cross.2.key' is .*, the decoder reads 2 heads of 16; encoder and decoder",
        ),
        ({"start_tokens": []}, "encoder: no start_tokens, or tokens that are not between 0 and 258"),
        ({"start_tokens": [300]}, "encoder: no start_tokens, or tokens that are not between 0 and 258"),
        ({"head_dim": [16]}, "encoder: 3 heads, but 1 head_dim"),
        ({"heads": [4, 4, 0]}, "heads, head_dim or max_length that no model has"),
        (None, "encoder/manifest.json is not among the listed files"),
    ],
)
def test_damage_is_found(
    t5: tuple[Any, Path, Path], tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    shutil.copytree(t5[2], tmp_path / "b")
    path = tmp_path / "b/manifest.json"
    manifest = json.loads(path.read_text())
    if change is None:
        shutil.rmtree(tmp_path / "b/encoder")
        manifest["files"] = [file for file in manifest["files"] if not file["path"].startswith("encoder/")]
    else:
        manifest["decoder"]["encoder"].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_an_encoder_is_no_decoder_and_no_link(t5: tuple[Any, Path, Path], tmp_path: Path) -> None:
    """One that is this very bundle would be opened without end."""
    for name in ("nested", "linked"):
        shutil.copytree(t5[2], tmp_path / name)
    shutil.copyfile(t5[2] / "manifest.json", tmp_path / "nested/encoder/manifest.json")
    manifest = json.loads((t5[2] / "manifest.json").read_text())
    size = (t5[2] / "manifest.json").stat().st_size
    for file in manifest["files"]:
        file["bytes"] = size if file["path"] == "encoder/manifest.json" else file["bytes"]
    text = json.dumps(manifest)
    (tmp_path / "nested/manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"encoder/manifest\.json: is a decoder's, an encoder's is expected"):
        Bundle.open(tmp_path / "nested")
    shutil.rmtree(tmp_path / "linked/encoder")
    (tmp_path / "linked/encoder").symlink_to(".")
    with pytest.raises(BundleError, match="lies behind a link; a bundle holds plain directories only"):
        Bundle.open(tmp_path / "linked")


def test_an_encoders_golden_vectors_stay_small(t5: tuple[Any, Path, Path]) -> None:
    """They hold keys and values of all layers twice, which for a real model are megabytes a sentence."""
    encoder = Bundle.open(t5[2]).encoder
    assert encoder is not None
    assert [vector["input.input_ids"].shape[0] for _, vector in encoder.vectors()] == [2, 2]


def test_inspect_and_bench(t5: tuple[Any, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["inspect", str(t5[2])])
    told = capsys.readouterr().out
    assert "T5ForConditionalGeneration, text2text-generation" in told
    assert f"{t5[2] / 'encoder'}: " in told and "feature-extraction" in told
    encoder = inspect(t5[2]).to_json()["encoder"]
    assert any(".encoder.block.0." in layer["name"] for layer in encoder["layers"])
    with contextlib.suppress(SystemExit):
        main(["bench", str(t5[2]), "--prompt-tokens", "16", "--new-tokens", "8", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["phase"] for row in rows} == {"prefill", "decode"}
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_what_is_no_translator_is_refused(tmp_path: Path) -> None:
    def refused(message: str, config: dict[str, Any]) -> None:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(EdgekitError, match=message):
            export(directory, "fp32", tmp_path / "b")

    listener = {
        "model_type": "speech_to_text",
        "architectures": ["Speech2TextForConditionalGeneration"],
        "is_encoder_decoder": True,
    }
    refused(
        "Speech2TextForConditionalGeneration: takes images or audio with text, of which edgekit knows .*Whisper, Moonshine",
        listener,
    )
    classifier = {"model_type": "bart", "architectures": ["BartForSequenceClassification"], "is_encoder_decoder": True}
    refused(
        "BartForSequenceClassification is an encoder-decoder and its task generic; of these edgekit compiles",
        classifier,
    )


def test_attention_of_its_own_is_refused() -> None:
    model = transformers.LEDForConditionalGeneration(
        transformers.LEDConfig(
            vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        )
    ).eval()  # fmt: skip
    with pytest.raises(UnsupportedError, match="LEDForConditionalGeneration does not use transformers' attention"):
        build(model)
