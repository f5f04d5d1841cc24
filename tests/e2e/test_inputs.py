"""Exports that are judged by what `--samples` gave, through the command line, and .pt2 files as most people make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekit.bundle import Bundle
from edgekit.cli import main
from edgekit.errors import SourceError
from edgekit.exporter import export
from edgekit.frontend.inputs import resolve
from edgekit.frontend.loading import load
from edgekit.parity import verify
from tests.unit.test_inputs import GRAY, drawings, gray

__all__ = ["drawings"]


def _save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


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
