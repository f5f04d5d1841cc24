"""Rate-aware quantization of MiniLM: how near its embeddings stay, at the same bits, to those of the float model.

    nice -n 10 .venv/bin/python -m benchmarks.compress.rate_quantize [--bits 2.5 3 3.5 4 5] [--quick] [--json FILE]

Steps are chosen with full second moments, with their diagonal, without (squared error of the weights), or not at all: one
step for all layers, found by bisection. Embedding tables are left out. Calibration is on sentences of Shakespeare's plays
(``sh tools/fetch_shakespeare.sh``), the score on the prose that ships with edgekit: mean cosine of sentence embeddings to
the original's, and the share of sentences whose nearest neighbour is the same. int8 and int4 are edgekit's formats
(8.5 and 4.5 bits as stored) for comparison; their bits are the entropy of their codes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.compress.backslash_models import PLAYS
from edgekit.benchmark.machine import describe
from edgekit.frontend.loading import load_module
from edgekit.frontend.samples import DATA
from edgekit.lowbit.formats import CODECS
from edgekit.methods.example_files import sentences
from edgekit.methods.examples import EMBEDDINGS, Examples, embeddings
from edgekit.methods.rate import counted, entropy
from edgekit.methods.rate_quantize import MOMENTS, Budget, Choice, RateQuantizer
from tools.demo_models import minilm

LENGTH, CALIBRATION = 64, 512
KEPT = ("*embeddings*",)


@dataclass(frozen=True)
class Row:
    """One way at one budget; bits are entropy, for each weight of the linear layers."""

    method: str
    bits: float
    cosine: float
    neighbours: float  # share whose nearest neighbour is the same
    noise_db: float  # of a layer's output, the mean over layers; 0 where unknown


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.0, 3.5, 4.0, 5.0])
    parser.add_argument("--quick", action="store_true", help="few sentences, two budgets: a test of the script")
    parser.add_argument("--json", type=Path, default=Path("build/rate_quantize.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = load_module(str(minilm()))
    read = Tokenizer.from_file(str(next(p for p in found.assets if p.name == "tokenizer.json")))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = sentences([PLAYS / "hamlet_gut.txt"], read, LENGTH, names)
    inputs = Examples(inputs.select(slice(0, 64 if options.quick else CALIBRATION)))
    judged = sentences([DATA / "prose.txt"], read, LENGTH, names)
    original = _embed(found.module, judged)
    rows = _formats(found.module, judged, original)
    budgets = options.bits[:2] if options.quick else options.bits
    for moments in MOMENTS:
        batches = [EMBEDDINGS.inputs(batch) for batch in inputs.batches(32)]
        budget = Budget(bits=1, moments=moments, exclude=KEPT)
        quantizer = RateQuantizer(found.module, batches, budget, lambda batch: embeddings(found.module, batch))
        for bits in budgets:
            chosen = quantizer.within_bits(bits * quantizer.count)
            rows.append(_row(f"moments: {moments}", found.module, quantizer, chosen, judged, original))
            if moments == "full":
                rows.append(
                    _row("one step for all", found.module, quantizer, _one_step(quantizer, bits), judged, original)
                )
        quantizer.restore()
    rows.sort(key=lambda row: (row.method, row.bits))
    for row in rows:
        print(
            f"{row.method:<18} {row.bits:>6.3f} bits  cosine {row.cosine:.4f}  same neighbour {row.neighbours:6.1%}  {row.noise_db:6.1f} dB"
        )
    document = {"machine": asdict(describe()), "rows": [asdict(row) for row in rows]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def _embed(model: nn.Module, examples: Examples) -> Tensor:
    return torch.cat([embeddings(model, batch) for batch in examples.batches(64)])


def _compared(model: nn.Module, judged: Examples, original: Tensor) -> tuple[float, float]:
    found = _embed(model, judged)
    cosine = torch.nn.functional.cosine_similarity(found, original).mean()

    def nearest(vectors: Tensor) -> Tensor:
        return (vectors @ vectors.t()).fill_diagonal_(-1).argmax(1)

    return float(cosine), float((nearest(found) == nearest(original)).float().mean())


def _row(
    name: str, model: nn.Module, quantizer: RateQuantizer, chosen: Sequence[Choice], judged: Examples, original: Tensor
) -> Row:
    quantizer.apply(chosen)
    cosine, neighbours = _compared(model, judged, original)
    noise = sum(10 * math.log10(max(c.noise, 1e-30)) for c in chosen) / len(chosen)
    row = Row(name, quantizer.bits(chosen) / quantizer.count, cosine, neighbours, noise)
    print(f"{row}", file=sys.stderr)
    return row


def _one_step(quantizer: RateQuantizer, bits: float) -> list[Choice]:
    """The smallest step common to all layers within ``bits``, plain rounding."""
    plain = [[c for c in found if c.dead_zone == 0.5] for found in quantizer.choices]
    best: list[Choice] = []
    for step in sorted({c.step for found in plain for c in found}, reverse=True):
        chosen = [min(found, key=lambda c, s=step: abs(math.log(c.step / s))) for found in plain]  # type: ignore[misc]
        if quantizer.bits(chosen) > bits * quantizer.count:
            break
        best = chosen
    return best


def _formats(model: nn.Module, judged: Examples, original: Tensor) -> list[Row]:
    """What edgekit's formats make of the same layers."""
    rows = []
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    whole = [layer.weight.detach().clone() for layer in layers]
    for name in ("int8", "int8-channel", "int4"):
        bits = 0.0
        for layer, weight in zip(layers, whole, strict=True):
            packed = CODECS[name].quantize(weight.numpy(), 0)
            codes = np.asarray(packed.data, np.uint8)
            codes = np.stack([codes & 15, codes >> 4]) if name == "int4" else codes
            bits += entropy(counted(codes.astype(np.int32).ravel())) * weight.numel()
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(CODECS[name].dequantize(packed)))
        cosine, neighbours = _compared(model, judged, original)
        rows.append(Row(name, bits / sum(w.numel() for w in whole), cosine, neighbours, 0.0))
    for layer, weight in zip(layers, whole, strict=True):
        with torch.no_grad():
            layer.weight.copy_(weight)
    return rows


if __name__ == "__main__":
    main()
