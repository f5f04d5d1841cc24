"""Trains what a directory's files say, each of the processes that a launcher started: ``-m tests.support.train_together DIR``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit.cli.verbs import main
from edgekit.compression import compress

HERE = "tests.support.train_together"
STOPPED_AT = 12


class Quadrant(nn.Module):
    """Two numbers -> in which quadrant they are; a layer that is never asked, as an encoder's pooler."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.unused = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4)), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Stopped(Quadrant):
    """The second process is told to end while it trains, once."""

    told = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + self.training
        if self.calls == STOPPED_AT and not Stopped.told:
            Stopped.told = True
            if os.environ.get("RANK") == "1":
                signal.raise_signal(signal.SIGTERM)
        return super().forward(x)


def quadrant() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Quadrant(), {"x": torch.zeros(2, 2)}


def stopped() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Stopped(), {"x": torch.zeros(2, 2)}


def points() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).uniform(-1, 1, (600, 2)).astype(np.float32)
    return {"x": values, "labels": (2 * (values[:, 0] > 0) + (values[:, 1] > 0)).astype(np.int64)}


def train(directory: Path) -> None:
    """A run of ``model`` for every method.yaml; then ``quadrant`` whole, stopped and resumed, stopped, and by the command line."""
    for file in sorted(directory.glob("method-*.yaml")):
        compress(directory / "model", file, directory / file.stem)
    config = directory / "quadrant.yaml"
    compress(f"{HERE}:quadrant", config, directory / "whole")
    for name in ("parts", "stopped"):
        Stopped.told = False
        try:
            compress(f"{HERE}:stopped", config, directory / name)
        except KeyboardInterrupt:
            print(f"{name}: stopped", flush=True)
    compress(f"{HERE}:stopped", config, directory / "parts", resume=True)
    main(["compress", f"{HERE}:quadrant", "-c", str(config), "-o", str(directory / "told")])


if __name__ == "__main__":
    from tests.support import train_together  # the module that the factories are taken from

    torch.set_num_threads(1)
    train_together.train(Path(sys.argv[1]))
