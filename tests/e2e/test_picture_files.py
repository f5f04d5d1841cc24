"""Files of pictures and settings of image processors: pixels beside transformers', and what is refused."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from edgekit import export
from edgekit.errors import CheckFailed, SourceError, UnsupportedError, UsageError
from edgekit.frontend import huggingface
from edgekit.frontend.pictures import BOTH_WAYS, FAMILIES, THREE_NUMBERS, _causal, decoder_of
from edgekit.runtime.pictures import opened, views
from edgekit.spec.records import Pictures
from tests.support.tiny_pictures import PROCESSORS, TEXT, picture_directory

pytestmark = pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 5 is what is exported")
PHOTOS = Path(__file__).parents[2] / "edgekit/frontend/data/photos"
CAT = PHOTOS / "chelsea.jpg"


def settings_of(directory: Path) -> Pictures:
    """What an export says of how pictures are prepared."""
    info = decoder_of(huggingface.load(directory)).pictures
    assert info is not None
    return info


@pytest.mark.parametrize("kind", ["smolvlm", "llava-clip", "llava-siglip"])
def test_pixels_are_the_processor_s_to_the_bit(kind: str, tmp_path: Path) -> None:
    picture_directory(tmp_path, kind)
    info = settings_of(tmp_path)

    processor: Any = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with Image.open(CAT) as opened:
        photo = opened.convert("RGB")
    files: list[Path] = []
    for index, size in enumerate([(1, 40), (37, 1), (3, 2), (64, 32), (33, 97), (32, 32), (451, 300)]):
        files.append(tmp_path / f"{index}.png")
        photo.resize(size).save(files[-1])
    for mode in ("L", "P", "LA", "RGBA"):
        files.append(tmp_path / f"{mode}.png")
        other = photo.convert(mode)
        if "A" in mode:
            other.putalpha(Image.linear_gradient("L").resize(photo.size))
        other.save(files[-1])
    for file in [*files, *PHOTOS.iterdir()]:
        with Image.open(file) as image:
            if kind == "smolvlm":
                theirs = processor(images=[[image]], return_row_col_info=True, return_tensors="np")
                expected, tiles = theirs["pixel_values"][0], (theirs["rows"][0][0], theirs["cols"][0][0])
            else:
                expected, tiles = processor(images=[image], return_tensors="np")["pixel_values"], (0, 0)
        ours, rows, columns = views(file, info)
        assert (rows, columns) == tiles
        assert ours.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(ours, expected)


def test_without_splitting_there_is_one_view(tmp_path: Path) -> None:
    picture_directory(tmp_path, "idefics3", do_image_splitting=False)
    info = settings_of(tmp_path)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert info.tile == ""
    with Image.open(CAT) as image:
        expected = processor(images=[[image]], return_tensors="np")["pixel_values"][0]
    ours, rows, columns = views(CAT, info)
    assert (rows, columns) == (0, 0)
    np.testing.assert_array_equal(ours, expected)


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    picture_directory(tmp_path / "model")
    info = settings_of(tmp_path / "model")
    with Image.open(CAT) as opened:
        upright = opened.convert("RGB")
    sideways = Image.Exif()
    sideways[0x0112] = 6  # turned a quarter to the left when it was stored
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=sideways)
    upright.save(tmp_path / "upright.png")
    np.testing.assert_array_equal(views(tmp_path / "turned.png", info)[0], views(tmp_path / "upright.png", info)[0])


def test_pictures_that_are_none(tmp_path: Path) -> None:
    picture_directory(tmp_path / "model", "llava-clip")
    info = settings_of(tmp_path / "model")
    (tmp_path / "note.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (70000, 1000)).save(tmp_path / "huge.png")
    whole = CAT.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("missing.png", r"missing\.png: no such file; give a picture"),
        ("", "no such file; give a picture"),
        ("note.png", r"note\.png: not a readable picture \(cannot identify image file"),
        ("cut.jpg", r"cut\.jpg: not a readable picture \(image file is truncated"),
        ("dot.png", "dot.png: a picture of 1 x 1 pixels has nothing to see; give a larger one"),
        ("deep.png", "deep.png: a picture of more than 8 bits a channel; save it with 8"),
        ("huge.png", "huge.png: 70000 x 1000 pixels; 67,108,864 at most, make it smaller"),
    ):
        with pytest.raises(UsageError, match=message):
            views(tmp_path / name, info)
    Image.new("RGB", (8, 8)).save(tmp_path / "program.eps")
    with pytest.raises(
        UsageError, match=r"program\.eps: an EPS file, a program that draws a picture; save it as \.png"
    ):
        views(tmp_path / "program.eps", info)
    Image.new("RGB", (60000, 3)).save(tmp_path / "strip.png")
    assert views(tmp_path / "strip.png", info)[0].shape == (1, 3, 32, 32)
    Image.new("RGB", (600000, 3)).save(tmp_path / "strip.png")
    with pytest.raises(UsageError, match="600000 x 3 pixels are too long a strip; cut out a part of it"):
        views(tmp_path / "strip.png", info)


def test_what_pillow_says_of_a_file_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.ppm").write_bytes(b"P6 10000 10000 255\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match=r"bomb\.ppm: 10000 x 10000 pixels; 67,108,864 at most, make it smaller"):
            opened(tmp_path / "bomb.ppm")

    def raising(image: object) -> None:
        raise RuntimeError("Failed to decode image:\nmissing item")  # as Pillow's decoder of AVIF does

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raising)
    with pytest.raises(
        UsageError, match=r"not a readable picture \(Failed to decode image: missing item\); give a \.png"
    ):
        opened(tmp_path / "good.png")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("smolvlm", {"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor: of a SmolVLMForConditionalGeneration edgekit knows Idefics3"),
        ("smolvlm", {"do_resize": False}, "do_resize false or do_pad true is not supported"),
        ("llava-clip", {"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "do_resize false or do_pad true"),
        ("llava-clip", {"size": {"shortest_edge": 16}}, "size .* without a smaller crop_size"),
        ("llava-siglip", {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, "of another size than"),
        ("smolvlm", {"max_image_size": {"longest_edge": 99999}}, "numbers from 1 to 4096 are expected"),
    ],
)  # fmt: skip
def test_processors_that_are_not_known(name: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    picture_directory(tmp_path, name, **settings)
    with pytest.raises((UnsupportedError, SourceError), match=message):
        decoder_of(huggingface.load(tmp_path))


def test_files_that_are_missing(tmp_path: Path) -> None:
    picture_directory(tmp_path / "model")
    (tmp_path / "model/processor_config.json").write_text(json.dumps({"image_seq_len": 64}))
    with pytest.raises(SourceError, match="image_seq_len 64, the model gives 4 rows of features for a view"):
        export(tmp_path / "model", "fp32", tmp_path / "bundle", abis=())
    (tmp_path / "model/processor_config.json").unlink()
    (tmp_path / "model/preprocessor_config.json").unlink()
    with pytest.raises(SourceError, match=r"no image processor can be made of preprocessor_config\.json"):
        export(tmp_path / "model", "fp32", tmp_path / "bundle", abis=())
    (tmp_path / "model/tokenizer.json").unlink()
    picture_settings = PROCESSORS["tiles"]
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(picture_settings))
    with pytest.raises(SourceError, match=r"no tokenizer\.json; a prompt with pictures cannot be made without"):
        export(tmp_path / "model", "fp32", tmp_path / "bundle", abis=())


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("Gemma3ForConditionalGeneration", "the tokens of a picture see each other in both directions"),
        ("Qwen2VLForConditionalGeneration", r"three numbers \(mrope\)"),
        ("MllamaForConditionalGeneration", "layers attend to a picture across"),
        ("LlavaNextForConditionalGeneration", r"cut and joined by its proportions \(anyres\)"),
        ("FuyuForConditionalGeneration", "takes images or audio with text, of which edgekit knows Idefics3, SmolVLM, Llava"),
    ],
)  # fmt: skip
def test_other_classes_are_refused_by_their_reason(architecture: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": "llava"}))
    with pytest.raises(UnsupportedError, match=f"{architecture}: .*{reason}"):
        huggingface.load(tmp_path)


def test_a_language_model_that_is_another_alone(tmp_path: Path) -> None:
    """Granite divides its logits, but not as a part of LLaVA."""
    model = picture_directory(tmp_path, "llava-clip")
    granite = transformers.GraniteConfig(**TEXT, logits_scaling=8.0)
    config = transformers.LlavaConfig(
        vision_config=model.config.vision_config, text_config=granite, image_token_index=259
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(CheckFailed, match=r"encoder and language model are .* of the largest logit off the whole"):
        export(tmp_path, "fp32", tmp_path / "bundle", abis=())
    with pytest.raises(UnsupportedError, match="its text_config, clip_text_model, is of no causal language model"):
        _causal(transformers.CLIPTextConfig(), "LlavaForConditionalGeneration")


def test_reasons_are_true() -> None:
    """What a class is refused for is a word of its own code."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    classes = {name: kind for kind, names in NAMES.items() for name in ([names] if isinstance(names, str) else names)}
    assert set(FAMILIES) <= set(classes) and len(classes) == 97  # as docs/architectures.md says
    for beginnings, word in ((BOTH_WAYS, "block_sequence_ids"), (THREE_NUMBERS, "mrope")):
        for beginning in beginnings:
            found = [name for name in classes if name.startswith(beginning)]
            assert found
            for name in found:
                code = Path(inspect.getfile(getattr(transformers, name))).read_text()
                assert word in code, name
