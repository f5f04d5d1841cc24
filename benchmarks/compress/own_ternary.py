"""The ternary model of tools/train_ternary.py against its float twin: loss, size, speed, and the tokens of both runtimes.

    nice .venv/bin/python -m benchmarks.compress.own_ternary [--models build/own-ternary] [--json FILE]

The ternary model is exported as ``ternary``, the twin as ``fp32`` and ``int4``; each bundle is verified, scored on the held-out play and
measured in turn with the others. The ternary bundle continues prompts greedily; PyTorch does the same with the bundle's
weights (the vocabulary at 8 bits), and where they part, PyTorch's lead of its own choice is printed in logits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.benchmark import bench
from edgekit.benchmark.machine import describe
from edgekit.bundle import Bundle
from edgekit.evaluation import evaluate
from edgekit.exporter import export
from edgekit.frontend.compressed import compressed
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.golden import packed_weights
from edgekit.parity import verify
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.tokenizer import Tokenizer
from tools.train_ternary import HELD_OUT, TEXTS

PROMPTS = ("The ", "HAMLET\n", "My lord, ", "What is ", "Enter the King and ", "I have ", "Good night", "O, ")
BUNDLES = (("ternary", "ternary", "ternary"), ("float-fp32", "float", "fp32"), ("float-int4", "float", "int4"))
"""Bundle, model, recipe."""


@dataclass(frozen=True)
class Text:
    """One prompt: how many tokens came out the same, and PyTorch's lead (logits) where the first other one came."""

    prompt: str
    tokens: int
    same: int
    lead: float | None
    text: str


def main() -> None:
    """Exports, verifies, scores, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("build/own-ternary"))
    parser.add_argument("--texts", type=Path, default=TEXTS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/own-ternary/comparison.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = [options.models / "bundles" / name for name, _, _ in BUNDLES]
    parity = []
    for path, (_, model, recipe) in zip(paths, BUNDLES, strict=True):
        report = verify(export(str(options.models / model), recipe, path, force=True, abis=["linux-x86_64"]))
        parity.append(report.parity.passed)
    training = json.loads((options.models / "report.json").read_text(encoding="utf-8"))
    length = int(training["shape"]["length"])  # positions beyond it were never trained
    text = options.texts / HELD_OUT
    scores = evaluate([str(p) for p in paths], texts=[text], most_tokens=256 * options.tokens, window=length)
    speeds = bench(paths, prompt_tokens=64, new_tokens=32, rounds=options.rounds).rows
    texts = compare(options.models / "ternary", paths[0], options.tokens)
    rows = []
    for path, passed, score in zip(paths, parity, scores.rows, strict=True):
        own = {row.phase: row for row in speeds if Path(row.bundle).name == path.name}
        rows.append(
            {
                "model": path.name, "method": score.method, "bits_per_weight": score.bits_per_weight, "bytes": score.bytes,
                "perplexity": score.texts[0].perplexity, "tokens": score.texts[0].tokens, "parity": passed,
                **{phase: {"tokens_per_second": row.tokens_per_second, "spread": row.spread, "valid": row.valid, "kernel": row.kernel}
                   for phase, row in own.items()},
            }
        )  # fmt: skip
    show(rows, texts)
    found = {"machine": asdict(describe()), "training": training, "rows": rows, "texts": [asdict(t) for t in texts]}
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(source: Path, path: Path, count: int) -> list[Text]:
    """Greedy texts of a bundle and of PyTorch."""
    model: Any = materialize(load_module(str(source)).module)
    bundle = Bundle.open(path)
    tokenizer, decoder, weights = Tokenizer(bundle), Decoder(bundle), packed_weights(bundle)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        start = len(ids)
        decoder.reset()
        logits = decoder.run(np.array([ids], np.int64))[0, -1]
        same, lead = count, None
        for place in range(count):
            mine = int(logits.argmax())
            with torch.no_grad(), compressed(model, *weights):
                theirs = model(input_ids=torch.tensor([ids])).logits[0, -1]
            if int(theirs.argmax()) != mine:
                same, lead = place, float(theirs.max() - theirs[mine])
                break
            ids.append(mine)
            logits = decoder.step(mine)
        found.append(Text(prompt, count, same, lead, tokenizer.decode(ids[start:])))
    return found


def show(rows: list[dict[str, Any]], texts: list[Text]) -> None:
    """Tables."""
    print(
        f"{'bundle':<12} {'MB':>7} {'bits/w':>7} {'perplexity':>11} {'parity':>7} {'prefill t/s':>12} {'decode t/s':>11}"
    )
    for row in rows:
        rates = [f"{row[p]['tokens_per_second']:.0f}{'' if row[p]['valid'] else '!'}" for p in ("prefill", "decode")]
        print(
            f"{row['model']:<12} {row['bytes'] / 1e6:>7.2f} {row['bits_per_weight']:>7.2f} {row['perplexity']:>11.2f} "
            f"{'passed' if row['parity'] else 'FAILED':>7} {rates[0]:>12} {rates[1]:>11}"
        )
    for text in texts:
        parted = "all the same" if text.lead is None else f"then another, PyTorch's lead {text.lead:.2g} logits"
        print(f"{text.prompt!r}: {text.same} of {text.tokens} tokens {parted}")
        print(f"    {text.text[:160]!r}")


if __name__ == "__main__":
    main()
