"""What each format of the vocabulary (embedding and output head) costs and gains, on SmolLM2-135M.

    python -m benchmarks.llm.head_formats [--rest fp32 int4] [--threads 1] [--json FILE]

Every row is an export with the vocabulary in that format and all other layers in ``--rest``: perplexity over the prose
that ships with edgekit (3,700 tokens in windows of 512) against the original model's, the vocabulary's bytes, and decoding
speed (interleaved rounds, a process each).
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgekit.benchmark.machine import describe
from edgekit.benchmark.protocol import BundleProcess, measure
from edgekit.bundle import Bundle
from edgekit.devices.local import open_local
from edgekit.exporter import export
from edgekit.frontend.samples import DATA
from edgekit.parity.corpus import text_perplexity
from edgekit.parity.original import Original
from edgekit.recipe import Limits, Recipe, Rule
from tools.demo_models import smollm2

VOCABULARY = (
    ("fp32", 0),
    ("fp16", 0),
    ("int8-channel", 0),
    ("int8", 32),
    ("int8", 64),
    ("int4", 16),
    ("int4", 32),
    ("int4", 64),
)
TEXT = DATA / "prose.txt"
NOTHING = Limits(sqnr_db=0.0)


@dataclass(frozen=True)
class Row:
    """One choice; perplexities are over the bundle's golden text, speed is the median of rounds."""

    rest: str
    vocabulary: str
    vocabulary_mb: float
    perplexity: float
    perplexity_ratio: float
    decode_tokens_per_second: float


def main() -> None:
    """Exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", nargs="+", default=["fp32", "int4"], choices=["fp32", "int8", "int4"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--work", type=Path, default=Path("build/heads"))
    parser.add_argument("--json", type=Path, default=Path("build/head_formats.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    plain = _bundle(options.work, "fp32", "fp32", 0)
    original = text_perplexity(plain, TEXT, 2, Original(plain, str(smollm2())), lambda what, share: None).original
    assert original is not None
    for rest in options.rest:
        bundles = [_bundle(options.work, rest, *choice) for choice in VOCABULARY]
        speeds = _speeds(bundles, options.threads, options.rounds)
        rows += [_row(original, rest, *pair) for pair in zip(VOCABULARY, bundles, speeds, strict=True)]
    print(f"{'rest':<6} {'vocabulary':<11} {'MB':>6} {'perplexity':>10} {'ratio':>7} {'decode tok/s':>12}")
    for row in rows:
        print(
            f"{row.rest:<6} {row.vocabulary:<11} {row.vocabulary_mb:>6.1f} {row.perplexity:>10.3f} "
            f"{row.perplexity_ratio:>7.4f} {row.decode_tokens_per_second:>12.1f}"
        )
    document = {"machine": asdict(describe()), "threads": options.threads, "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _bundle(work: Path, rest: str, format: str, block: int) -> Bundle:
    directory = work / f"{rest}-{format}-{block}"
    if directory.is_dir():
        return Bundle.open(directory)
    rules = (Rule("*", format, block, "vocabulary"), Rule("*", rest))
    return export(str(smollm2()), Recipe(1, directory.name, rules, parity=NOTHING), directory)


def _speeds(bundles: list[Bundle], threads: int, rounds: int) -> list[float]:
    with ExitStack() as stack:
        jobs = [stack.enter_context(open_local(b).job(threads, prompt_tokens=32, new_tokens=64)) for b in bundles]
        processes = [BundleProcess(job.name, b, job) for b, job in zip(bundles, jobs, strict=True)]
        series, _ = measure(processes, rounds, lambda what, share: None)
    return [1000 / float(np.median(s.medians("decode"))) for s in series]


def _row(original: float, rest: str, choice: tuple[str, int], bundle: Bundle, speed: float) -> Row:
    found = text_perplexity(bundle, TEXT, 2, None, lambda what, share: None).bundle
    layer = next(layer for layer in bundle.manifest.layers if layer.name == "lm_head")
    megabytes = layer.bits_per_weight * layer.shape[0] * layer.shape[1] / 8e6
    return Row(rest, f"{choice[0]} b{choice[1]}", megabytes, found, found / original, speed)


if __name__ == "__main__":
    main()
