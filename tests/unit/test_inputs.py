"""`--samples`: what is given is what a bundle is traced with, calibrated on and judged by, or it is refused first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from edgekit.bundle import Bundle
from edgekit.cli import main
from edgekit.errors import SourceError
from edgekit.exporter import export
from edgekit.frontend.inputs import resolve
from edgekit.frontend.loading import load
from edgekit.parity import verify


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


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("recipe", ["int8", "int8-static"])
def test_gray_pictures_are_what_is_proved(
    recipe: str, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"
    assert run("export", GRAY, "--recipe", recipe, "--samples", drawings, "-o", path) == 0
    bundle = Bundle.open(path)
    layers = {layer.name: (layer.format, layer.shape) for layer in bundle.manifest.layers}
    convolutions = "int8-static" if recipe == "int8-static" else "fp32"
    assert layers == {
        "features.0": (convolutions, (8, 1, 3, 3)), "features.2": (convolutions, (16, 8, 3, 3)),
        "head": (recipe, (10, 16)),
    }  # fmt: skip
    vectors = bundle.vectors()
    assert [info.kind for info, _ in vectors] == ["sample"] * 12
    module, _ = gray()
    for index in range(11):
        picture = np.asarray(Image.open(drawings / f"{index:02}.png"), np.float32)[None, None] / 255
        vector = vectors[index][1]
        assert np.array_equal(vector["input.images"], picture)
        with torch.no_grad():
            assert np.allclose(vector["original.output"], module(torch.from_numpy(picture)).numpy(), atol=1e-5)
    assert vectors[11][1]["input.images"].shape == (1, 1, 16, 16)
    capsys.readouterr()
    assert run("inspect", path) == 0
    told = capsys.readouterr().out
    assert "features.0" in told and "features.2" in told and "features.*" not in told
    assert run("verify", path) == 0
    assert capsys.readouterr().out.endswith("verdict: PASS\n")


def test_example_inputs_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", GRAY, "-o", tmp_path / "out") == 0
    assert "no real input" in capsys.readouterr().out
    assert run("verify", tmp_path / "out") == 1
    told = capsys.readouterr().out
    assert "export again with --samples" in told and told.endswith("verdict: UNPROVEN\n")


def test_ranges_are_never_found_on_example_inputs(tmp_path: Path) -> None:
    said = (
        r"recipe int8-static: its ranges come from real input, and all that is known are the example inputs of gray, "
        r"images float32 \[n, 1, 16, 16\]; give --samples a directory of pictures or an .npz"
    )
    with pytest.raises(SourceError, match=said):
        export(GRAY, "int8-static", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
            {"images": IMAGES, "labels": np.zeros(3)},
            r"array 'labels' is no input of the model; gray takes images float32",
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


class Mixed(nn.Module):
    """Takes inputs by position and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Each float32 [batch, 4] or [batch, 3]."""
        return torch.sub(self.linear(x) * scale, shift)


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_a_program_exported_as_most_people_do(recipe: str, tmp_path: Path) -> None:
    module, inputs = gray()
    torch.export.save(torch.export.export(module, (inputs["images"],)), tmp_path / "gray.pt2")
    images = np.random.default_rng(0).random((4, 1, 16, 16), np.float32)
    samples = _save(tmp_path / "x.npz", images=images)
    bundle = export(str(tmp_path / "gray.pt2"), recipe, tmp_path / "out", samples=samples)
    first, name = bundle.vectors()[0][1], bundle.manifest.outputs[0].name
    with torch.no_grad():
        assert np.allclose(first[f"original.{name}"], module(torch.from_numpy(images[:2])).numpy(), atol=1e-5)
    assert len(bundle.manifest.vectors) == 2 and verify(bundle).verdict == "PASS"
    assert verify(export(str(tmp_path / "gray.pt2"), recipe, tmp_path / "alone")).verdict == "UNPROVEN"
    with pytest.raises(SourceError, match=r"holds 3 of images, which are no whole batches; gray takes images .*\[2, 1"):
        resolve(load(str(tmp_path / "gray.pt2")), _save(tmp_path / "x.npz", images=images[:3]))


def test_a_program_with_inputs_by_position_and_by_keyword(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, shift, scale = Mixed().eval(), torch.randn(2, 3), torch.randn(2, 3)
    program = torch.export.export(module, (torch.randn(2, 4),), {"scale": scale, "shift": shift})
    torch.export.save(program, tmp_path / "mixed.pt2")
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    samples = _save(tmp_path / "x.npz", x=x, scale=scale.numpy(), shift=shift.numpy())
    bundle = export(str(tmp_path / "mixed.pt2"), "fp32", tmp_path / "out", samples=samples)
    ((_, vector),) = bundle.vectors()
    with torch.no_grad():
        expected = module(torch.from_numpy(x), shift=shift, scale=scale).numpy()
    (output,) = (array for name, array in vector.items() if name.startswith("original."))
    assert np.allclose(output, expected, atol=1e-6) and verify(bundle).verdict == "PASS"
