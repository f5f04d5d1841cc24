"""One network through everything: trained, rate-constrained, its steps chosen, exported, verified, packed, unpacked, run.

    nice -n 10 .venv/bin/python -m benchmarks.compress.rate_pipeline [--quick] [--strength 3] [--loss 0.01] [--json FILE]

A 784-512-512-10 network on Fashion-MNIST (``sh tools/fetch_fashion_mnist.sh``), trained once; from there on plainly and
with BackSlash (bits, zeros held) for the same number of steps. Bytes are of the weights (model.onnx.data) and of the pack; the
accuracy of a bundle is over the 10,000 held-out images in ONNX Runtime, and the last rows run the unpacked bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.compress.backslash_models import fashion_test
from edgekit.benchmark.machine import describe
from edgekit.bundle import Bundle
from edgekit.coding import pack, unpack
from edgekit.compression import Compressed, compress
from edgekit.compression.settings import Compression, Data
from edgekit.exporter import export
from edgekit.methods import Rate
from edgekit.methods.rate_quantize import Budget
from edgekit.methods.training import Training
from edgekit.parity import verify
from edgekit.runtime.session import Session

MODEL = "benchmarks.compress.backslash_models:fashion_mlp"
DATA = Data(
    ("benchmarks.compress.backslash_models:fashion_train",), ("benchmarks.compress.backslash_models:fashion_test",)
)
BATCH = 500


@dataclass(frozen=True)
class Row:
    """One state of the network; bytes of weights and pack are 0 where there is none yet."""

    network: str
    state: str
    accuracy: float
    zeros: float
    weights: int  # in all layers
    weight_bytes: int
    pack_bytes: int
    verified: str


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps: a test of the script")
    parser.add_argument("--strength", type=float, default=3.0)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--json", type=Path, default=Path("build/rate_pipeline.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    factor = 10 if options.quick else 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        training = Training(steps=3000 // factor, batch_size=64, schedule="linear")
        compress(MODEL, Compression(1, DATA, "none", training), work / "first")
        further = Training(steps=1600 // factor, batch_size=64, schedule="linear", seed=1)
        for network in ("plain", "rate-constrained"):
            rate = Rate(steps=1200 // factor, strength=options.strength, variant="bits")
            settings = Compression(1, DATA, "none" if network == "plain" else "backslash", further, rate)
            trained = compress(f"{MODEL}@{work / 'first'}", settings, work / network)
            rows += _states(network, trained, options.loss, work)
    _show(rows)
    document = {"machine": asdict(describe()), "rows": [asdict(row) for row in rows]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _states(network: str, trained: Compressed, loss: float, work: Path) -> list[Row]:
    rows = [_of(network, "trained, float32", trained)]
    rows += _shipped(network, "fp32", trained, work)
    rows += _shipped(network, "int8", trained, work)
    settings = Compression(1, DATA, "rate-quantize", quantize=Budget(loss=loss))
    gridded = compress(trained.exportable, settings, work / f"{network}-grid")
    rows.append(_of(network, "steps chosen, float32", gridded))
    return rows + _shipped(network, "rate", gridded, work)


def _of(network: str, state: str, found: Compressed) -> Row:
    accuracy = found.history.evaluations[-1]["accuracy"]
    total = found.after.total
    row = Row(network, state, accuracy, total.zeros, total.count, 4 * total.count, 0, "")
    print(row, file=sys.stderr)
    return row


def _shipped(network: str, recipe: str, found: Compressed, work: Path) -> list[Row]:
    """Exported with a recipe, packed, unpacked."""
    name = f"{network}-{recipe}"
    samples = work / "images.npz"
    np.savez(samples, images=fashion_test()["images"][:16].numpy())
    bundle = export(found.exportable, recipe, work / name, abis=[], samples=samples)
    checked = "yes" if verify(work / name).passed else "no"
    packed = work / f"{name}.edgepack"
    pack(bundle, packed)
    again = unpack(packed, work / f"{name}-unpacked")
    rows = []
    for state, opened, size in (
        (f"exported: {recipe}", bundle, 0),
        (f"{recipe}, packed and unpacked", again, packed.stat().st_size),
    ):
        count = sum(int(np.prod(layer.shape)) for layer in opened.manifest.layers)
        data = (opened.directory / "model.onnx.data").stat().st_size
        rows.append(Row(network, state, _accuracy(opened), found.after.total.zeros, count, data, size, checked))
        print(rows[-1], file=sys.stderr)
    return rows


def _accuracy(bundle: Bundle) -> float:
    session, held_out = Session(bundle, 1), fashion_test()
    images, labels = held_out["images"].numpy(), held_out["labels"].numpy()
    right = 0
    for start in range(0, len(labels), BATCH):
        (logits,) = session.run({"images": images[start : start + BATCH]}).values()
        right += int((logits.argmax(1) == labels[start : start + BATCH]).sum())
    return right / len(labels)


def _show(rows: list[Row]) -> None:
    print(
        f"{'network':<17} {'state':<30} {'accuracy':>8} {'zeros':>6} {'weights':>8} {'weight bytes':>12} {'pack bytes':>10} verified"
    )
    for r in rows:
        packed = f"{r.pack_bytes:,}" if r.pack_bytes else ""
        print(
            f"{r.network:<17} {r.state:<30} {r.accuracy:>8.2%} {r.zeros:>6.1%} {r.weights:>8,} {r.weight_bytes:>12,} {packed:>10} {r.verified}"
        )


if __name__ == "__main__":
    main()
