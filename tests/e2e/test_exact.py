"""Recipe ``exact``: the codes and scales of a GGUF file, bit for bit, read back from the written graph with onnx alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from edgekit import Recipe, Rule, export, verify
from edgekit.errors import RecipeError
from tests.support import tiny_gguf

BITS = {"Q4_0": 4, "Q8_0": 8}


@pytest.mark.parametrize("kind", BITS)
def test_every_weight_is_the_files(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"tiny-{kind}.gguf"
    matrices = tiny_gguf.write(file, gguf.GGMLQuantizationType[kind])
    command = [sys.executable, "-m", "edgekit", "export", str(file), "--recipe", "exact", "-o", str(tmp_path / "out")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    stored = list(_rows(tmp_path / "out" / "model.onnx", BITS[kind]))
    found = {row.tobytes() for rows in stored for row in rows}
    for name, matrix in matrices.items():  # transformers orders rows of q and k otherwise, and q, k, v are one product
        assert {row.tobytes() for row in matrix} <= found, name
    assert verify(tmp_path / "out").passed


def _rows(path: Path, bits: int) -> Iterator[np.ndarray]:
    """Values float32 [N, K] of every table of codes, as docs/operators.md and ONNX Runtime's documents define them."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Int4MatMul", "Int8BlockMatMul", "GatherBlockQuantized"):
            at = 0 if node.op_type == "GatherBlockQuantized" else 1
            data, scales = tensors[node.input[at]], tensors[node.input[2]].astype(np.float32)
            codes = data.reshape(len(data), -1)
            if bits == 4:
                codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(data), -1)
            blocks = (codes.astype(np.float32) - 2 ** (bits - 1)).reshape(len(data), -1, 32)
            yield (blocks * scales.reshape(len(data), -1, 1)).reshape(len(data), -1)


def test_what_no_rule_keeps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny-F32.gguf"
    tiny_gguf.write(file, gguf.GGMLQuantizationType.F32)
    words = r"no layer holds values that int4-fp16 in blocks of 32, int4 in blocks of 32, int8 in blocks of 32 keep bit for bit \(a GGUF file of Q4_0"
    with pytest.raises(RecipeError, match=words):
        export(file, "exact", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Two(nn.Module):
    """One layer on a grid of 4 bits, one not."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.off = nn.Linear(64, 64, bias=False), nn.Linear(64, 8)
        codes = torch.randint(-7, 8, (64, 64), generator=torch.Generator().manual_seed(0)).float()
        codes[:, ::32] = -8
        self.on.weight.data = codes * 2**-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.off(self.on(x)))


def test_the_rest_goes_to_the_next_rule(tmp_path: Path) -> None:
    program = torch.export.export(Two().eval(), (torch.ones(2, 64),))
    torch.export.save(program, tmp_path / "two.pt2")
    bundle = export(tmp_path / "two.pt2", "exact", tmp_path / "out")
    assert {layer.name: (layer.format, layer.block_size) for layer in bundle.manifest.layers} == {
        "on": ("int4-fp16", 32), "off": ("int8", 64),
    }  # fmt: skip


def test_shipped_rules_are_tried_from_the_smallest() -> None:
    *exact, last = Recipe.load("exact").rules
    assert exact == [Rule("*", name, 32, "exact") for name in ("int4-fp16", "int4", "int8")]
    assert last.only == ""
