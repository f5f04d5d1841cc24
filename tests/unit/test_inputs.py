"""`--samples`: what is given is what a bundle is traced with, calibrated on and judged by, or it is refused first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer
from torch import nn

from edgekit.errors import SourceError
from edgekit.frontend.inputs import calibration, resolve
from edgekit.frontend.loading import load
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_decoders import build
from tools.demo_models import minilm


class GrayNet(nn.Module):
    """Classes of 16 x 16 gray pictures."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` float32 [batch, channels, 16, 16]: logits [batch, 10]."""
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def gray() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return GrayNet().eval(), {"images": torch.rand(2, 1, 16, 16)}


def two_channels() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return GrayNet(2).eval(), {"images": torch.rand(2, 2, 16, 16)}


def fussy() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    class Fussy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 2, 4)

    return Fussy(), {"x": torch.rand(2, 4)}


def brain() -> tuple[nn.Module, torch.Tensor]:
    return nn.Linear(4, 4).bfloat16(), torch.zeros(2, 4, dtype=torch.bfloat16)


GRAY = "tests.unit.test_inputs:gray"


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Gray pictures of the model's size, one of another size and mode in a folder of its own, and a file that is none."""
    folder = tmp_path / "drawings"
    (folder / "more").mkdir(parents=True)
    generator = np.random.default_rng(5)
    for index in range(11):
        ramp = np.add.outer(np.arange(16), np.arange(16)) * index % 256
        Image.fromarray((ramp + generator.integers(0, 20, (16, 16))).clip(0, 255).astype(np.uint8)).save(
            folder / f"{index:02}.png"
        )
    Image.fromarray(generator.integers(0, 255, (40, 30, 3), np.uint8)).save(folder / "more" / "11.png")
    (folder / "notes.txt").write_text("eleven ramps")
    return folder


def _save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((3, 1, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"imgs": IMAGES},
            r"has no array 'images', only imgs; gray takes images float32 \[n, 1, 16, 16\]; give --samples",
        ),
        (
            {"images": IMAGES, "labels": np.zeros(3), "mask": np.zeros(3)},
            r"array 'mask' is no input of the model; gray takes images float32",
        ),
        (
            {"images": IMAGES[:, 0]},
            r"array 'images' is float32 \[3, 16, 16\]; gray takes images float32 \[n, 1, 16, 16\]",
        ),
        ({"images": IMAGES[..., :8]}, r"array 'images' is float32 \[3, 1, 16, 8\]; gray takes"),
        ({"images": IMAGES.astype(np.float64)}, r"array 'images' is float64 \[3, 1, 16, 16\]; gray takes"),
        ({"images": IMAGES[:0]}, r"holds 0 of images, which are no whole batches"),
        ({}, r"has no array 'images', only nothing"),
    ],
)
def test_arrays_that_are_not_the_models(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=said):
        resolve(load(GRAY), _save(tmp_path / "x.npz", **arrays))


def test_files_that_are_not_the_models_input(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"notes\.txt: a text, but gray takes no text; gray takes images float32"):
        resolve(load(GRAY), drawings / "notes.txt")
    two = load("tests.unit.test_inputs:two_channels")
    said = r"drawings: a directory, but pictures are read for models with one float input \[n, 1 or 3, height, width\] only; "
    with pytest.raises(
        SourceError, match=said + r"two_channels takes images float32 \[n, 2, 16, 16\]; give --samples an"
    ):
        resolve(two, drawings)
    with pytest.raises(SourceError, match=r"00\.png: a picture, but pictures are read"):
        resolve(load("tests.unit.test_inputs:fussy"), drawings / "00.png")
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"none: no pictures \(\.jpg, .*\) in this directory"):
        resolve(load(GRAY), tmp_path / "none")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not one")
    with pytest.raises(SourceError, match=r"x\.npz: not a readable \.npz"):
        resolve(load(GRAY), tmp_path / "x.npz")


def test_pictures_that_cannot_be_read_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SourceError, match=r"deep\.png: a picture of more than 8 bits a channel; save it with 8, or"):
        resolve(load(GRAY), tmp_path / "deep.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "deep.png").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"half\.png: "):
        resolve(load(GRAY), tmp_path / "half.png")


def test_example_inputs_that_numpy_cannot_hold(tmp_path: Path) -> None:
    said = r"example input 'input' is bfloat16 on cpu; give a plain float32 or integer tensor"
    with pytest.raises(SourceError, match=r"test_inputs:brain: " + said):
        load("tests.unit.test_inputs:brain")
    module, example = brain()
    torch.export.save(torch.export.export(module, (example,)), tmp_path / "brain.pt2")
    with pytest.raises(SourceError, match=r"brain\.pt2: " + said):
        load(str(tmp_path / "brain.pt2"))


def test_inputs_of_an_onnx_file_that_are_no_token_ids(tmp_path: Path) -> None:
    flat = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ("n",))
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["y"])], "g", [flat], [flat])
    graph.output[0].name = "y"
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    write_tokenizer(tmp_path)
    (tmp_path / "a.txt").write_text("A sentence that is long enough to be one. ")
    with pytest.raises(
        SourceError, match=r"a\.txt: a text, but flat takes no text; flat takes input_ids int64 \[n\]; give"
    ):
        resolve(load(str(path)), tmp_path / "a.txt")
    assert len(resolve(load(str(path)), _save(tmp_path / "x.npz", input_ids=np.arange(3))).batches) == 3


def test_of_many_pictures_some_are_taken_all_through(tmp_path: Path) -> None:
    for index in range(40):
        Image.fromarray(np.full((16, 16), index, np.uint8)).save(tmp_path / f"{index:02}.png")
    inputs = resolve(load(GRAY), tmp_path)
    assert [round(float(b["images"][0, 0, 0, 0]) * 255) for b in inputs.batches] == [i * 40 // 16 for i in range(16)]
    assert len(resolve(load(GRAY), tmp_path, 64).batches) == 40


def test_a_model_that_does_not_run_on_what_fits_its_shapes(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"x\.npz: fussy does not run on it \(shape '\[-1, 2, 4\]' is invalid"):
        resolve(load("tests.unit.test_inputs:fussy"), _save(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32)))


def test_the_batch_of_an_onnx_file_may_be_fixed(tmp_path: Path) -> None:
    def info(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "g", [info("a", 2, 3), info("b", 2, 3)], [info("y", 2, 3)]
    )
    path = tmp_path / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    inputs = resolve(load(str(path)), _save(tmp_path / "x.npz", a=values, b=values))
    assert [b["a"].tolist() for b in inputs.batches] == [values[:2].tolist(), values[2:].tolist()]
    with pytest.raises(
        SourceError, match=r"holds 4 of a, 3 of b, which are no whole batches; sum takes a float32 \[2, 3\]"
    ):
        resolve(load(str(path)), _save(tmp_path / "x.npz", a=values, b=values[:3]))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model without a tokenizer."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("Llama", {"vocab_size": 259}).save_pretrained(path)
    return path


def test_a_language_model_without_a_tokenizer(decoder: Path, drawings: Path, tmp_path: Path) -> None:
    source = load(str(decoder))
    assert (resolve(source, None).kind, resolve(source, None).origin) == ("random", "random token ids")
    (tmp_path / "a.txt").write_text("some words")
    said = (
        r"a\.txt: a text, but there is no tokenizer\.json to read it with; tiny takes input_ids int64 \[n, any\]; give"
    )
    with pytest.raises(SourceError, match=said + r" --samples an \.npz with arrays of these names"):
        resolve(source, tmp_path / "a.txt")
    with pytest.raises(SourceError, match=r"drawings: a directory, but pictures are read for .*; tiny takes input_ids"):
        resolve(source, drawings)
    ids = np.arange(700)[None] % 259
    inputs = resolve(source, _save(tmp_path / "x.npz", input_ids=ids))
    assert inputs.kind == "sample" and np.array_equal(inputs.batches[0]["input_ids"], ids[:, :512])
    for wrong, words in (
        (ids + 1, r"input_ids are 1 to 259, tiny has tokens 0 to 258"),
        (np.concatenate([ids, ids]), r"input_ids is \[2, 700\], not one text \[1, T\]; tiny takes"),
        (ids.astype(np.int32), r"array 'input_ids' is int32 \[1, 700\]; tiny takes input_ids int64"),
    ):
        with pytest.raises(SourceError, match=words):
            resolve(source, _save(tmp_path / "x.npz", input_ids=wrong))


def test_a_language_model_with_a_tokenizer(decoder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(decoder, tmp_path / "tiny"))
    write_tokenizer(model)
    source = load(str(model))
    assert resolve(source, None).kind == "text"
    (tmp_path / "a.txt").write_text("my own words")
    ids = resolve(source, tmp_path / "a.txt").batches[0]["input_ids"]
    assert ids.shape == (1, 12) and not np.array_equal(
        ids, resolve(source, None).batches[0]["input_ids"][:, : ids.shape[1]]
    )
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"b\.txt: not a readable UTF-8 text"):
        resolve(source, tmp_path / "b.txt")


def windows(source: Any, samples: Path | None, count: int, length: int = 64) -> list[tuple[int, ...]]:
    """What an int4 export of a decoder is calibrated with."""
    batches = calibration(source, resolve(source, samples), samples, count, length)
    assert all(batch["input_ids"].shape == (1, length) for batch in batches)
    return [tuple(batch["input_ids"][0].tolist()) for batch in batches]


def test_calibration_text_of_a_language_model(decoder: Path, drawings: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(decoder, tmp_path / "tiny"))
    write_tokenizer(model)
    source = load(str(model))
    shipped = windows(source, None, 16)
    assert len(set(shipped)) == 16 and shipped == windows(source, None, 16)
    judged = resolve(source, None).batches[0]["input_ids"][0].tolist()
    assert not any(judged[i : i + 64] in map(list, shipped) for i in range(0, 448))
    # The user's text first, beyond the 512 tokens that judge the bundle; the shipped one where it is short.
    text = "".join(f"line {i}. " for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    ids = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids.no_truncation()
    own = ids.encode(text).ids[512:]
    mine = [tuple(own[i : i + 64]) for i in range(0, len(own) - 63, 64)]
    chosen = windows(source, tmp_path / "a.txt", len(mine) + 4)
    assert set(chosen[: len(mine)]) == set(mine) and len(chosen) == len(mine) + 4
    assert set(windows(source, tmp_path / "a.txt", 3)) < set(mine)
    (tmp_path / "same.txt").write_text("a" * 5000)  # one window, however often it stands there
    assert len(windows(source, tmp_path / "same.txt", 2)) == 2
    (tmp_path / "short.txt").write_text("my own words")
    assert windows(source, tmp_path / "short.txt", 16) == shipped


def test_calibration_without_a_text(decoder: Path, drawings: Path, tmp_path: Path) -> None:
    source = load(str(decoder))
    assert calibration(source, resolve(source, None), None, 16, 64) == []
    ids = _save(tmp_path / "x.npz", input_ids=np.arange(100)[None] % 259)
    (batch,) = calibration(source, resolve(source, ids), ids, 16, 64)
    assert batch["input_ids"].shape == (1, 100)
    pictures = load(GRAY)
    assert len(calibration(pictures, resolve(pictures, drawings), drawings, 16, 0)) == 16
    assert calibration(pictures, resolve(pictures, None), None, 16, 0) == []


def test_calibration_sentences_of_an_encoder(tmp_path: Path) -> None:
    source = load(str(minilm()))
    inputs = resolve(source, None)
    batches = calibration(source, inputs, None, 16, 0)
    assert len(batches) == 16 and all(len(batch["input_ids"]) == 8 for batch in batches)
    rows = [{tuple(row[row > 0]) for batch in some for row in batch["input_ids"]} for some in (batches, inputs.batches)]
    assert len(rows[0]) == 128 and not rows[0] & rows[1]
    text = " ".join(f"This is sentence number {i} of a text." for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    own = calibration(source, resolve(source, tmp_path / "a.txt"), tmp_path / "a.txt", 2, 0)
    lengths = {int(batch["attention_mask"].sum(1).max()) for batch in own}
    assert len(own) == 2 and lengths == {11}


def test_sentences_for_an_encoder_whose_sizes_are_fixed(tmp_path: Path) -> None:
    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.INT32, (3, 16))

    graph = helper.make_graph(
        [helper.make_node("Mul", ["input_ids", "attention_mask"], ["y"])],
        "g",
        [info("input_ids"), info("attention_mask")],
        [info("y")],
    )
    path = tmp_path / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    write_tokenizer(tmp_path)
    inputs = resolve(load(str(path)), None)
    first = inputs.batches[0]
    assert inputs.kind == "sample" and len(inputs.batches) == 30
    assert {n: (a.shape, a.dtype.name) for n, a in first.items()} == dict.fromkeys(
        ("input_ids", "attention_mask"), ((3, 16), "int32")
    )
    (tmp_path / "a.txt").write_text("One sentence is too little for this. ")
    with pytest.raises(
        SourceError, match=r"a\.txt: 1 sentences are less than one batch; encoder takes input_ids int32 \[3, 16\]"
    ):
        resolve(load(str(path)), tmp_path / "a.txt")
