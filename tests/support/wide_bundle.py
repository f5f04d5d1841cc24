"""A bundle of several chunks: tensors of every type that a graph may hold, with padding between them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from edgekit.bundle import Bundle
from edgekit.spec.records import Layer, VectorInfo
from tests.support.tiny_bundle import FLOAT, GraphWriter, manifest, recipe, write_bundle

ROWS = 600


def arrays(changed: float = 0.0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Arrays by name, 4 MB in all; a share ``changed`` of the codes in some of them is another one."""
    random = np.random.default_rng(0)
    normal = random.normal(size=(rows, 1024)).astype(np.float32)
    loud = np.exp2(np.arange(min(rows, 100)) % 6)[:, None]
    codes = np.clip(np.rint(normal * 30), -127, 127)
    nibbles = (np.clip(np.rint(normal * 2.5), -8, 7) + 8).astype(np.uint8)
    made = {
        "int8": codes.astype(np.int8),
        "uint8": (codes + 128).astype(np.uint8),
        "loud": np.rint(normal[:100] * loud).clip(-127, 127).astype(np.int8),
        "nibbles": nibbles[:, ::2] | nibbles[:, 1::2] << np.uint8(4),
        "zeros": np.zeros((50, 1001), np.uint8),
        "half": normal[:100].astype(np.float16),
        "bfloat": normal[:100].astype(ml_dtypes.bfloat16),
        "float": normal[:200],
        "double": normal[:10].astype(np.float64),
        "long": random.integers(0, 9, 700),
    }
    other = np.random.default_rng(1)
    for name in ("uint8", "nibbles"):
        made[name] = np.where(other.random(made[name].shape) < changed, made[name] ^ 1, made[name])
    return made


def wide_bundle(path: Path, changed: float = 0.0, rows: int = ROWS) -> Bundle:
    """The arrays as unused initializers of a graph that adds one number."""
    g = GraphWriter()
    x = g.input("x", FLOAT, ["batch", 1])
    for name, array in arrays(changed, rows).items():
        g.constant(name, array)
    (y,) = g.op("Add", x, g.constant("one", np.ones(1, np.float32)))
    model = g.model({"y": (y, ["batch", 1])})
    sample = {"input.x": np.ones((1, 1), np.float32)}
    sample |= {f"{who}.y": np.full((1, 1), 2, np.float32) for who in ("original", "compressed")}
    layers = (Layer("linear", "int8", 0, 8.0, (rows, 1024)),)
    found = manifest(
        model, "generic", recipe(cosine=0.9), layers=layers, vectors=(VectorInfo("vectors/s.safetensors", "sample"),)
    )
    return write_bundle(path, model, found, {"vectors/s.safetensors": sample})
