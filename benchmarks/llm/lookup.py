"""Prompt lookup: the same greedy text with and without, and how much faster.

    python -m benchmarks.llm.lookup [--bundle DIR] [--lookup 4 8] [--threads 1] [--tokens 160] [--json FILE]

Without --bundle, an int4 SmolLM2-135M-Instruct is exported. Half of the prompts quote their answer, half are open; texts
are pieces of the prose that ships with edgekit. Every prompt is run once without lookup and once with each number, in turns.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.exporter import export
from edgekit.frontend.samples import DATA
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import Generation, generate
from tools.demo_models import smollm2

OPEN = (
    "What is the capital of France?", "Tell me a story about a dog and a cat.", "Explain how a rainbow comes about.",
    "List ten fruits.", "Write a short poem about winter.", "How do I make bread?", "What is a prime number?",
    "Why is the sky blue?", "Give three reasons to read books.", "Write a letter to a friend who moved away.",
)  # fmt: skip
QUOTING = "Repeat the following text word by word:\n\n{}"


@dataclass(frozen=True)
class Row:
    """All prompts of a kind with one setting."""

    prompts: str
    lookup: int
    texts: int
    same_texts: int
    tokens: int
    proposed: int
    accepted: int
    seconds: float  # of decoding
    speedup: float


def main() -> None:
    """Generates, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/llm/edgekit-smollm2"))
    parser.add_argument("--lookup", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--json", type=Path, default=Path("build/lookup.json"))
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle) if options.bundle.is_dir() else export(str(smollm2()), "int4", options.bundle)
    decoder = Decoder(bundle, options.threads, max_length=1024)
    paragraphs = [p for p in (DATA / "prose.txt").read_text(encoding="utf-8").split("\n") if len(p) > 200][:10]
    prompts = {"quoting": [QUOTING.format(p[:400]) for p in paragraphs], "open": list(OPEN)}
    settings = [0, *options.lookup]
    rows: list[Row] = []
    for kind, texts in prompts.items():
        runs: dict[int, list[Generation]] = {setting: [] for setting in settings}
        for text in texts:
            for setting in settings:
                runs[setting].append(_run(decoder, text, options.tokens, setting))
        rows += [_row(kind, setting, runs[setting], runs[0]) for setting in settings]
    for r in rows:
        share = f"{r.accepted} of {r.proposed} accepted" if r.lookup else ""
        print(
            f"{r.prompts:<8} lookup {r.lookup:<2} {r.tokens / r.seconds:6.1f} tok/s x{r.speedup:.2f}  "
            f"{r.same_texts} of {r.texts} texts the same  {share}"
        )
    options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def _run(decoder: Decoder, prompt: str, tokens: int, lookup: int) -> Generation:
    running = generate(decoder, prompt, max_new_tokens=tokens, lookup=lookup)
    for _ in running:
        pass
    return running


def _row(kind: str, lookup: int, runs: list[Generation], plain: list[Generation]) -> Row:
    seconds, tokens = sum(r.decode_seconds for r in runs), sum(len(r.tokens) for r in runs)
    same = sum(a.tokens == b.tokens for a, b in zip(runs, plain, strict=True))
    rate = sum(len(r.tokens) for r in plain) / sum(r.decode_seconds for r in plain)
    proposed, accepted = sum(r.proposed_tokens for r in runs), sum(r.accepted_tokens for r in runs)
    return Row(kind, lookup, len(runs), same, tokens, proposed, accepted, seconds, tokens / seconds / rate)


if __name__ == "__main__":
    main()
