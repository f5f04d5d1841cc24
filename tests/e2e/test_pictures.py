"""Models of pictures and text, tiny and random: pixels, the decoder's graph, answers and refusals against transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers
from PIL import Image

from edgekit import Bundle, bench, compress, evaluate, export, generate, inspect, pack, unpack, verify
from edgekit.bundle.manifest import Manifest
from edgekit.cli import main
from edgekit.compression.settings import Compression
from edgekit.errors import BundleError, UnsupportedError, UsageError
from edgekit.frontend import huggingface
from edgekit.frontend.decoder import build
from edgekit.frontend.pictures import PictureEncoder, decoder_of
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import prepare
from edgekit.runtime.pictures import in_parts, look
from edgekit.runtime.session import Session
from edgekit.runtime.tokenizer import Tokenizer
from tests.support.tiny_pictures import MODELS, picture_directory

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 5 is what is exported")
PHOTOS = Path(__file__).parents[2] / "edgekit/frontend/data/photos"
CAT, COFFEE = PHOTOS / "chelsea.jpg", PHOTOS / "coffee.jpg"
PROMPT = "What is in the picture?"
NEW = 20


class Made:
    """A model's directory, its image processor and its float32 bundle."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.directory = name, folder / "model"
        self.model = picture_directory(self.directory, name)
        self.bundle = export(self.directory, "fp32", folder / "bundle", abis=())
        self.processor: Any = transformers.AutoImageProcessor.from_pretrained(self.directory, backend="pil")
        self.tiles = MODELS[name][3] == "tiles"

    def pixels(self, images: list[Path]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """The model's input of pictures as transformers makes it, and rows and columns of tiles."""
        opened = [Image.open(path) for path in images]
        if not self.tiles:
            return self.processor(images=opened, return_tensors="pt")["pixel_values"], [(0, 0)] * len(images)
        made = self.processor(images=[opened], return_row_col_info=True, return_tensors="pt")
        return made["pixel_values"], list(zip(made["rows"][0], made["cols"][0], strict=True))

    def prompt(self, text: str, images: list[Path]) -> torch.Tensor:
        """Ids [1, S] of a chat as transformers' template and processors make them."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.directory)
        parts: Any = [*[{"type": "image"} for _ in images], {"type": "text", "text": text}]
        written: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        for rows, columns in self.pixels(images)[1] if images else []:
            written = written.replace("<image>", self.expansion(rows, columns), 1)
        return torch.tensor([tokenizer(written.replace("<IMAGE>", "<image>"), add_special_tokens=False)["input_ids"]])

    def expansion(self, rows: int, columns: int) -> str:
        """What the model's processor makes of <image>, the token written large so that it is not replaced again."""
        if not self.tiles:
            return "<IMAGE>" * 16
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        around = "<fake_token_around_image>"
        text: str = get_image_prompt_string(rows, columns, 4, around, "<IMAGE>", "<global-img>")
        return text

    def greedy(self, text: str, images: list[Path]) -> list[int]:
        """New tokens of transformers' own generate."""
        ids = self.prompt(text, images)
        seen = {"pixel_values": self.pixels(images)[0]} if images else {}
        made = self.model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **seen)
        return [int(token) for token in made[0, ids.shape[1] :]]


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("smolvlm"), "smolvlm")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llava"), "llava-clip")


@pytest.mark.parametrize("name", MODELS)
def test_the_graphs_are_transformers_model(name: str, tmp_path: Path) -> None:
    """The encoder, a prompt with two pictures, 16 cached steps, and the same text without pictures."""
    model = picture_directory(tmp_path / "model", name)
    source = huggingface.load(tmp_path / "model")
    eyes, halves = PictureEncoder(source.module), decoder_of(source)
    info = halves.pictures
    assert info is not None
    pixels = torch.rand(2, 3, *info.size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        features = eyes(pixels)["image_features"]
    graph = build(halves.module)
    for step in pipeline(Recipe.load("fp32")):
        graph = step(graph).model
    ir.save(graph, tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    words = [(index * 37 + 5) % 256 + 3 for index in range(30)]
    places = [info.token] * info.rows
    ids = np.array([[*words[:4], *places, 9, *places, *words[4:]]])
    given = pixels[None] if MODELS[name][3] == "tiles" else pixels
    with torch.no_grad():
        pictured = model(input_ids=torch.from_numpy(ids), pixel_values=given, use_cache=False).logits.numpy()
        plain = model(input_ids=torch.tensor([words]), use_cache=False).logits.numpy()
    caches = [one for one in session.get_inputs() if one.name.startswith("past_")]
    for tokens, expected, rows in ((ids, pictured, features.flatten(0, 1).numpy()), (np.array([words]), plain, None)):
        past = [np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in caches]
        at = 0
        for count in (tokens.shape[1] - 16, *[1] * 16):
            feed = {"input_ids": tokens[:, at : at + count], "attention_mask": np.ones((1, at + count), np.int64)}
            if rows is not None and not at:
                feed["image_features"] = rows  # else it is left out, as programs do that know nothing of pictures
            feed |= {one.name: array for one, array in zip(caches, past, strict=True)}
            logits, *past = session.run(None, feed)
            np.testing.assert_allclose(
                logits, expected[:, at : at + count], atol=1e-4 * float(np.abs(expected).max()), rtol=0
            )
            at += count
    assert np.abs(pictured[:, -26:] - plain[:, -26:]).max() > 0.1  # the pictures matter


@pytest.mark.parametrize("images", [[CAT], [CAT, COFFEE], []], ids=["one", "two", "none"])
@pytest.mark.parametrize("kind", ["smolvlm", "llava"])
def test_answers_are_transformers_greedy_ones(
    kind: str, images: list[Path], smolvlm: Made, llava: Made, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(kind)
    expected = made.greedy(PROMPT, images)
    running = generate(made.bundle, PROMPT, images=images, max_new_tokens=NEW)
    text = "".join(running)
    assert running.tokens == expected and len(set(expected)) > 5
    assert running.prompt_tokens == made.prompt(PROMPT, images).shape[1]
    assert text == Tokenizer(made.bundle).decode(expected)
    if images:
        assert running.tokens != made.greedy(PROMPT, [])


def test_the_command_line_says_the_same(smolvlm: Made, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(smolvlm.bundle.directory), PROMPT, "-n", str(NEW), "--json", "--image", str(CAT)]
    for more in ([], ["--lookup", "4"]):  # in the runner of devices, and in this process
        with contextlib.suppress(SystemExit):
            main([*arguments, *more])
        assert json.loads(capsys.readouterr().out)["tokens"] == smolvlm.greedy(PROMPT, [CAT])


def test_a_plain_text_says_where_pictures_stand(smolvlm: Made) -> None:
    bundle = smolvlm.bundle
    text, pixels = look(bundle, "One <image>, two <image>.", [CAT, COFFEE])
    assert pixels is not None and text.startswith("One <fake_token_around_image><row_1_col_1><image><image>")
    running = generate(bundle, "One <image>, two <image>.", images=[CAT, COFFEE], chat=False, max_new_tokens=3)
    list(running)
    ids = Tokenizer(bundle).encode(text)
    made = smolvlm.model.generate(
        input_ids=torch.tensor([ids]),
        pixel_values=torch.from_numpy(pixels)[None],
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
    )
    assert running.tokens == made[0, len(ids) :].tolist()


def test_a_long_prompt_in_pieces_and_a_batch(smolvlm: Made) -> None:
    bundle, model = smolvlm.bundle, smolvlm.model
    info = bundle.manifest.pictures
    assert info is not None
    pixels = np.random.default_rng(0).standard_normal((40, 3, *info.size)).astype(np.float32)
    ids = np.array([[*([7] * 5), *[info.token] * (40 * info.rows), 11, 12, 13]])  # 168 tokens: two pieces
    decoder = Decoder(bundle, max_length=256)
    features = decoder.see(pixels)
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)[None], use_cache=False
        ).logits.numpy()
    tolerance = 1e-4 * float(np.abs(expected).max())
    np.testing.assert_allclose(decoder.run(ids, keep=0, features=features), expected, atol=tolerance, rtol=0)
    one, two = features[: info.rows], features[info.rows : 2 * info.rows]
    rows = np.array([[5, 6, *[info.token] * info.rows, 8], [0, *[info.token] * info.rows, 9, 10]])
    mask = np.ones_like(rows)
    mask[1, 0] = 0
    decoder.reset()
    batch = decoder.run(rows, mask, features=np.concatenate([one, two]))
    for index, (row, own) in enumerate(((rows[:1], one), (rows[1:, 1:], two))):
        decoder.reset()
        np.testing.assert_allclose(batch[index], decoder.run(row, features=own)[0], atol=1e-4, rtol=0)
    decoder.reset()
    with pytest.raises(
        UsageError, match=r"features: \[3, 64\] given, \[4, 64\] expected, a row for each token of pict"
    ):
        decoder.run(rows[:1], features=one[:3])
    with pytest.raises(BundleError, match="ONNX Runtime stopped"):  # never silently at another place
        Session(bundle).run({**_empty(bundle), "input_ids": rows[:1, :2], "image_features": one})


def _empty(bundle: Bundle) -> dict[str, np.ndarray]:
    info = bundle.manifest.decoder
    assert info is not None
    caches = {f"past_key_values.{n}": np.zeros((1, heads, 0, dim), np.float32) for n, (heads, dim) in info.caches()}
    return {"attention_mask": np.ones((1, 2), np.int64), **caches}


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", ["smolvlm", "llava-clip"])
def test_verify_judges_both_graphs_and_a_text_behind_a_picture(name: str, recipe: str, tmp_path: Path) -> None:
    picture_directory(tmp_path / "model", name)
    bundle = export(tmp_path / "model", recipe, tmp_path / "bundle", abis=())
    assert bundle.encoder is not None and [info.file for info in bundle.manifest.vectors] == [
        "vectors/text.safetensors", "vectors/picture.safetensors",
    ]  # fmt: skip
    for one in (bundle, bundle.encoder):
        assert any(layer.format.startswith(recipe) for layer in one.manifest.layers)
    report = verify(bundle)
    assert report.parity.passed and report.parity.count == 512 + 96
    assert report.encoder is not None and report.encoder.parity.passed and report.encoder.parity.count == 3
    assert set(report.encoder.parity.outputs) == {"image_features"}
    assert recipe == "int4" or report.passed, "\n".join(report.lines())


def test_a_wrong_encoder_is_seen_by_verify(smolvlm: Made, tmp_path: Path) -> None:
    """What the decoder's own golden vector says, when the encoder is another model's of the same shape."""
    from edgekit.bundle import BundleWriter

    other = picture_directory(tmp_path / "model", "smolvlm")
    with torch.no_grad():
        other.model.connector.modality_projection.proj.weight.mul_(-1)
    other.save_pretrained(tmp_path / "model")
    strange = export(tmp_path / "model", "fp32", tmp_path / "strange", abis=())
    pack(smolvlm.bundle, tmp_path / "mixed.edgepack")
    mixed = unpack(tmp_path / "mixed.edgepack", tmp_path / "mixed")
    assert strange.encoder is not None
    with BundleWriter(tmp_path / "again") as writer:
        import shutil

        shutil.copytree(mixed.directory, writer.directory, dirs_exist_ok=True)
        shutil.rmtree(writer.directory / "encoder")
        shutil.copytree(strange.encoder.directory, writer.directory / "encoder")
        bundle = writer.commit(mixed.manifest)
    report = verify(bundle)
    assert report.encoder is not None and report.encoder.passed and not report.parity.passed


def test_a_bundle_of_pictures_says_what_it_is(smolvlm: Made, tmp_path: Path) -> None:
    bundle = smolvlm.bundle
    text = (bundle.directory / "manifest.json").read_text()
    data = json.loads(text)
    assert data["schema_version"] == 4 and data["task"] == "image-text-to-text"
    pictures = bundle.manifest.pictures
    assert pictures is not None and (pictures.rows, pictures.width, pictures.size) == (4, 64, (32, 32))
    assert (pictures.fit, pictures.edge, pictures.resample, pictures.token_text) == ("tiles", 96, "lanczos", "<image>")
    for change, message in (
        ({"fit": "magic"}, "'magic' and 'lanczos', this edgekit knows crop, stretch, tiles"),
        ({"edge": 2000}, "edge 2000 does not go with tiles of 32 x 32"),
        ({"size": [32, 16]}, "edge 96 does not go with tiles of 32 x 16"),
        ({"fit": "crop", "edge": 16}, "edge 16 does not go with crop of 32 x 32"),
        ({"token": 999}, "without a language model that has the token 999"),
        ({"size": [32, 99999]}, "size, rows, width, mean or deviation that no model has"),
        ({"deviation": [0.5, 0.0, 0.5]}, "scale, mean or deviation that no pixel has"),
        ({"deviation": [0.5, 1e-320, 0.5]}, "scale, mean or deviation that no pixel has"),
        ({"scale": 1e300}, "scale, mean or deviation that no pixel has"),
        ({"tile": "x"}, r"not one \{image\} in whole and in tile"),
        ({"tile": "{image}" * 100_000}, r"not one \{image\} in whole and in tile"),
        ({"tile": "{image}" + "x" * 1000}, "texts of more than 256 characters"),
        ({"token_text": "x" * 1000}, "texts of more than 256 characters"),
    ):
        damaged = json.dumps({**data, "pictures": {**data["pictures"], **change}})
        with pytest.raises(BundleError, match=message):
            Manifest.from_json(damaged, "m.json")
    other = "output 'image_features' is .*, the decoder reads"
    for change, message in (
        ({"rows": 5}, other),
        ({"width": 32}, other),
        ({"size": [64, 64]}, r"'pixel_values' is .*, the manifest's pictures have views of \[64, 64\]"),
    ):
        copy = tmp_path / f"copy-{next(iter(change))}"
        pack(bundle, tmp_path / "one.edgepack", force=True)
        unpack(tmp_path / "one.edgepack", copy)
        (copy / "manifest.json").write_text(json.dumps({**data, "pictures": {**data["pictures"], **change}}))
        with pytest.raises(BundleError, match=message):
            Bundle.open(copy)


def test_pictures_without_places_and_places_without_pictures(smolvlm: Made, tmp_path: Path) -> None:
    bundle = smolvlm.bundle
    for prompt, images, count in (
        ("None here.", [CAT], "0 places '<image>' for 1 images"),
        ("<image>", [], "1 places '<image>' for 0"),
    ):
        with pytest.raises(UsageError, match=count):
            generate(bundle, prompt, images=images, chat=False)
    with pytest.raises(UsageError, match="2 places '<image>' for 1 images; as many are needed of one as of the other"):
        generate(bundle, "Where is <image>?", images=[CAT])
    with pytest.raises(UsageError, match="session: would keep the places of pictures only"):
        generate(bundle, PROMPT, images=[CAT], session=tmp_path / "s")
    with pytest.raises(UnsupportedError, match="takes no pictures"):
        Decoder(Bundle.open(_text_bundle(tmp_path))).see(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match=r"images: .*text-bundle takes no pictures; leave them out"):
        generate(tmp_path / "text-bundle", PROMPT, images=[CAT], chat=False)


def test_places_that_the_tokenizer_does_not_make(smolvlm: Made) -> None:
    """On every target: a runner takes what it is given, and would answer as if there were no picture."""
    pictures = smolvlm.bundle.manifest.pictures
    assert pictures is not None
    for change, error, message in (
        (
            {"token_text": "ab"},
            BundleError,
            "the prompt has 0 tokens 259 for 28 rows of pictures; tokenizer and manifest",
        ),
        (
            {"rows": 4096},
            UsageError,
            "28672 tokens of pictures; the context holds 4096, the answer included; give fewer",
        ),
    ):
        manifest = dataclasses.replace(smolvlm.bundle.manifest, pictures=dataclasses.replace(pictures, **change))
        bundle = dataclasses.replace(smolvlm.bundle, manifest=manifest)
        with pytest.raises(error, match=message):
            prepare(bundle, PROMPT, 4, None, None, (), 4096, images=[CAT])


def _text_bundle(folder: Path) -> Path:
    from tests.support.tiny_translators import byte_tokenizer

    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "text")
    byte_tokenizer().save(str(folder / "text/tokenizer.json"))
    export(folder / "text", "fp32", folder / "text-bundle", abis=())
    return folder / "text-bundle"


def test_conversations_in_parts() -> None:
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "And this?"}]
    assert in_parts(said, 1) == [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]


def test_what_takes_texts_takes_its_language_model(smolvlm: Made, tmp_path: Path) -> None:
    bundle, text = smolvlm.bundle, tmp_path / "text.txt"
    text.write_text("Some words that are long enough to be measured, one after the other. " * 4)
    assert verify(bundle, text=text).text is not None
    assert "perplexity" in json.dumps(evaluate([bundle], texts=[text]).to_json())
    measured = bench(bundle, prompt_tokens=8, new_tokens=2).to_json()
    assert "decode" in json.dumps(measured)
    assert inspect(bundle).bits_per_weight > 8
    with pytest.raises(UsageError, match="--original and --text are not for models with an encoder"):
        verify(bundle, original=smolvlm.directory)
    with pytest.raises(UnsupportedError, match="has an encoder and a decoder; compress is for models with one of them"):
        compress(str(smolvlm.directory), Compression.calibrated("gptq", None), tmp_path / "small")
    with pytest.raises(UnsupportedError, match="calibrated ranges are for convolutional nets"):
        export(smolvlm.directory, "int8-static", tmp_path / "static")
