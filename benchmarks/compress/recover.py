"""What `edgekit compress --method recover` wins back: model directories against the float SmolLM2 that they were made of.

    sh tools/fetch_shakespeare.sh
    edgekit compress build/models/smollm2 -c gptq.yaml -o build/rounded        # the same rounding, without training
    edgekit compress build/models/smollm2 -c recover.yaml -o build/recovered
    nice .venv/bin/python -m benchmarks.compress.recover build/rounded build/recovered [--tokens 4096] [--json FILE]

On the four texts of benchmarks/accuracy.py, equal numbers of windows of 256 tokens drawn with its seed: perplexity over the float
model's with the standard error of the ratio's logarithm (paired, over windows), and mean KL to the float model in nats. Weights
are as saved, which is as a bundle stores them; embeddings, head and activations are not rounded.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from benchmarks.compress.accuracy_scores import LENGTH, error_of_mean, evaluation_texts, loaded
from edgekit.methods.examples import outputs
from tools.demo_models import smollm2

TEXTS = ("encyclopaedia", "numpy", "C++", "play")


@dataclass(frozen=True)
class Row:
    """One model on one text, or (``text`` "all") on all of them."""

    model: str
    text: str
    tokens: int
    perplexity: float
    ratio: float
    se: float
    kl: float


@torch.no_grad()
def scored(module: nn.Module, original: nn.Module, windows: Tensor) -> list[tuple[float, float, float]]:
    """Mean nats a token of the model and of the original, and KL, of each of windows int64 [n, T]."""
    found = []
    for ids in windows:
        whole, part = (
            log_softmax(outputs(m, {"input_ids": ids[None]})[0, :-1].float(), -1) for m in (original, module)
        )
        theirs, ours = (-float(p.gather(1, ids[1:, None]).mean()) for p in (whole, part))
        found.append((ours, theirs, float((whole.exp() * (whole - part)).sum(-1).mean())))
    return found


def row(model: str, text: str, found: list[tuple[float, float, float]]) -> Row:
    excess = [ours - theirs for ours, theirs, _ in found]
    perplexity, tokens = math.exp(mean(ours for ours, _, _ in found)), len(found) * (LENGTH - 1)
    kl = mean(kl for _, _, kl in found)
    return Row(model, text, tokens, perplexity, math.exp(mean(excess)), error_of_mean(excess), kl)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="directories that edgekit compress made of SmolLM2")
    parser.add_argument("--tokens", type=int, default=4096, help="a quarter of each text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    directory = smollm2()
    tokenizer, original = Tokenizer.from_file(str(directory / "tokenizer.json")), loaded(directory).eval()
    windows = []
    for text in evaluation_texts():
        ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64)
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        windows.append(whole[order[: -(-options.tokens // (LENGTH * 4))]])
    rows = []
    for name in options.models:
        module, every = loaded(Path(name)).eval(), list[tuple[float, float, float]]()
        for kind, part in zip(TEXTS, windows, strict=True):
            found = scored(module, original, part)
            every += found
            rows.append(row(name, kind, found))
        rows.append(row(name, "all", every))
        for r in rows[-len(TEXTS) - 1 :]:
            print(
                f"{r.model:24} {r.text:14} {r.perplexity:8.3f}  x{r.ratio:.4f} (error {r.se:.4f})  KL {r.kl:.4f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
