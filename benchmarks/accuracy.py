"""What compression without training costs in accuracy, against bytes: every method at what a bundle really stores.

    nice -n 10 .venv/bin/python -m benchmarks.accuracy [--models smollm2 minilm] [--tokens 61440] [--quick] [--json build/accuracy.json]

Calibration is on windows drawn at random from Shakespeare's plays without Hamlet (``sh tools/fetch_shakespeare.sh``). SmolLM2-135M-Instruct
(its weights are a dequantized Q4_1 file, so plain 4 bits look better than they are) is scored on four texts of different kinds, equal numbers of
tokens of each, of which calibration sees none: an encyclopaedia, Python's documentation, Python code, Hamlet. ``perplexity``, its ratio to float's
with the standard error ``se`` of the ratio's logarithm (paired, over windows), and ``kl``, mean Kullback-Leibler divergence from the float model in
nats. MiniLM: mean cosine of sentence embeddings to those of the float model, ``se`` over sentences. Weights are rounded, activations are not. Bytes are those of the bundle's weights, scales, padding and low-rank branches included: embeddings and head at
8 bits in every row but fp32. ``bits_per_weight`` is for the linear layers of the blocks alone.

Each way of rounding stands alone, with a plain decomposition and with EoRA beside it at two ranks (int8), and rows of plain
int4 with smaller blocks show what the same bytes buy without any of it. Nothing here is drawn at random: ``seeds`` is 1.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
import json
import math
import pydoc_data.topics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from benchmarks.compress.accuracy_plot import draw
from benchmarks.compress.backslash_models import PLAYS
from edgekit.benchmark.machine import describe
from edgekit.frontend.loading import load_module
from edgekit.frontend.samples import DATA
from edgekit.frontend.streamed import materialize
from edgekit.lowbit.formats import CODECS
from edgekit.methods.calibrate import Batch, groups_of
from edgekit.methods.eora import Compensation
from edgekit.methods.example_files import sentences
from edgekit.methods.examples import (
    EMBEDDINGS,
    LANGUAGE,
    REFERENCE,
    Examples,
    Objective,
    embeddings,
    outputs,
    with_reference,
)
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration, Method, compress_layers
from edgekit.methods.sensitivity import CANDIDATES, choose, scan
from edgekit.methods.ternarize import Ternary
from tools.demo_models import minilm, smollm2

LENGTH, BATCH = 256, 8
RANKS = (16, 64)
PROSE, HAMLET, ENCYCLOPAEDIA = DATA / "prose.txt", PLAYS / "hamlet_gut.txt", PLAYS.parent / "encyclopaedia.txt"


@dataclass(frozen=True)
class Row:
    """One method on one model. ``perplexity`` for decoders, ``accuracy`` (mean cosine) for encoders.

    ``kl`` (nats) is to the float model, ``se`` that of log(perplexity / float's), or of ``accuracy``; both over ``tokens``.
    ``peer`` is the tool that rounded, where it was not edgekit.

    ``output_error`` is the mean over groups of layers of the share of output energy that is lost, ``below_svd`` the share of
    groups in which the low-rank branch leaves at most what a plain decomposition of its rank does.
    """

    model: str
    method: str
    compensation: str
    rank: int
    bits_per_weight: float
    bytes: int
    perplexity: float | None
    accuracy: float | None
    output_error: float | None
    below_svd: float | None
    seconds: float
    kl: float | None
    se: float
    tokens: int
    peer: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Score:
    """What a row says of a model's answers."""

    perplexity: float | None
    accuracy: float | None
    kl: float | None
    se: float
    tokens: int


@dataclass(frozen=True)
class Subject:
    """A model, what it is calibrated with, and how it is judged."""

    name: str
    module: nn.Module
    calibration: Examples
    evaluation: Examples
    objective: Objective

    def batches(self, count: int) -> list[Batch]:
        some = Examples(self.calibration.select(slice(0, count)))
        return [self.objective.inputs(batch) for batch in some.batches(BATCH)]

    def score(self, module: nn.Module) -> Score:
        return self._predictions(module) if self.objective is LANGUAGE else self._cosines(module)

    @torch.no_grad()
    def _predictions(self, module: nn.Module) -> Score:
        """Both models on the same windows, one after the other: logits over a large vocabulary are kept for one only."""
        losses, excess, divergence = [], [], 0.0
        for batch in self.evaluation.batches(1):
            ids = batch["input_ids"]
            whole, part = (log_softmax(outputs(m, batch)[0, :-1].float(), -1) for m in (self.module, module))
            ours, theirs = (-float(p.gather(1, ids[0, 1:, None]).mean()) for p in (part, whole))
            losses.append(ours)
            excess.append(ours - theirs)
            divergence += float((whole.exp() * (whole - part)).sum(-1).mean())
        count = len(self.evaluation)
        return Score(math.exp(mean(losses)), None, divergence / count, error_of_mean(excess), count * (LENGTH - 1))

    @torch.no_grad()
    def _cosines(self, module: nn.Module) -> Score:
        found: list[float] = []
        for batch in self.evaluation.batches(BATCH):
            found += torch.cosine_similarity(embeddings(module, batch), batch[REFERENCE], dim=1).tolist()
        return Score(None, mean(found), None, error_of_mean(found), int(self.evaluation.arrays["attention_mask"].sum()))


def error_of_mean(values: Sequence[float]) -> float:
    """The standard error of a mean, as far as the values are independent of each other; 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def main() -> None:
    """Measures, prints, draws, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "minilm"], choices=["smollm2", "minilm"])
    parser.add_argument("--examples", type=int, default=64, help="pieces of 256 tokens (sentences: four times as many)")
    parser.add_argument(
        "--quick", action="store_true", help="MiniLM's first two layers, few sentences: a test of the script"
    )
    parser.add_argument("--tokens", type=int, default=61440, help="that SmolLM2 is scored on, a quarter of each text")
    parser.add_argument("--only", nargs="+", help="only methods with these names")
    parser.add_argument("--json", type=Path, default=Path("build/accuracy.json"))
    options = parser.parse_args()
    for needed in (HAMLET, ENCYCLOPAEDIA):
        if not needed.is_file():
            raise SystemExit(f"{needed}: not there; run sh tools/fetch_shakespeare.sh")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in ["minilm"] if options.quick else options.models:
        subject = (
            language(options.examples, options.tokens)
            if name == "smollm2"
            else encoder(options.examples, options.quick)
        )
        for row in measured(subject, options.examples, options.quick, options.only):
            rows.append(row)
            print(line(row), flush=True)
            write(rows, options.json)
    draw([asdict(row) for row in rows], options.json.with_suffix(".png"))


def write(rows: Sequence[Row], path: Path) -> None:
    """After each row: a run of hours may be stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": asdict(describe()), "command": sys.argv[1:], "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def language(examples: int, tokens_in_all: int) -> Subject:
    """SmolLM2, ``examples`` windows to calibrate with and four texts to be scored on."""
    directory = smollm2()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def windows(texts: Sequence[str], most: int) -> Tensor:
        """At most so many windows, drawn at random with a fixed seed: int64 [n, 256]."""
        ids = torch.cat(
            [torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64) for text in texts]
        )
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        return whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:most]]

    plays = [play.read_text("utf-8", "replace") for play in sorted(PLAYS.glob("*_gut.txt")) if play != HAMLET]
    # The rest of a play is left out, or tokenizing would take longer than calibrating.
    calibration = windows([play[20_000 : 20_000 + 64 * examples] for play in plays], examples)
    scored = torch.cat([windows([text], -(-tokens_in_all // (LENGTH * 4))) for text in evaluation_texts()])
    return Subject(
        "SmolLM2-135M (from Q4_1)",
        loaded(directory),
        Examples({"input_ids": calibration}),
        Examples({"input_ids": scored}),
        LANGUAGE,
    )


def evaluation_texts() -> tuple[str, ...]:
    """An encyclopaedia of 1911, Python's documentation, Python code (its standard library), a play."""
    topics = pydoc_data.topics.topics
    code = [inspect.getsource(module) for module in (argparse, inspect, json.decoder, dataclasses)]
    article, play = (path.read_text("utf-8", "replace") for path in (ENCYCLOPAEDIA, HAMLET))
    return article, "\n".join(topics[name] for name in sorted(topics)), "\n".join(code), play


def encoder(examples: int, quick: bool) -> Subject:
    """MiniLM with its pooling."""
    directory = minilm()
    found = load_module(str(directory))
    module: Any = materialize(found.module).float()
    if quick:
        del module.model.encoder.layer[2:]
    tokenizer = Tokenizer.from_file(str(next(a for a in found.assets if a.name == "tokenizer.json")))
    names = ["input_ids", "attention_mask"]
    count = 64 if quick else 4 * examples
    plays = sentences(sorted(PLAYS.glob("*.txt"))[:1], tokenizer, 32 if quick else 128, names)
    plays = Examples(plays.select(slice(100, 100 + count)))  # after the licence
    prose = sentences([PROSE], tokenizer, 32 if quick else 128, names)
    if quick:
        prose = Examples(prose.select(slice(0, 16)))
    return Subject("MiniLM-L6-v2", module, plays, with_reference(module, prose, BATCH), EMBEDDINGS)


def loaded(directory: Path) -> nn.Module:
    module = load_module(str(directory)).module
    assert module is not None
    return materialize(module).float()


def methods(quick: bool) -> Iterator[tuple[str, Method]]:
    """Every way of rounding, then each with both kinds of low-rank branch."""
    plain = {
        "int4 g64": Method("int4", Gptq(4, 64)),
        "int4 g32": Method("int4", Gptq(4, 32)),
        "int4 g16": Method("int4", Gptq(4, 16)),
        "int3 g64": Method("int4", Gptq(3, 64)),
        "GPTQ int4 g64": Method("gptq", Gptq(4, 64)),
        "GPTQ int4 g128": Method("gptq", Gptq(4, 128)),
        "GPTQ int4 g32 act-order": Method("gptq", Gptq(4, 32, act_order=True)),
        "GPTQ int3 g64": Method("gptq", Gptq(3, 64)),
        "GPTQ int3 per channel": Method("gptq", Gptq(3, 0)),
        "one plane": Method("ternarize", ternary=Ternary(planes=1)),
        "one plane + offset": Method("ternarize", ternary=Ternary(planes=1, offset=True)),
        "two planes": Method("ternarize", ternary=Ternary(planes=2)),
        "2:4": Method("2:4"),
    }
    few = ("int4 g64", "GPTQ int3 g64", "one plane", "two planes") if quick else tuple(plain)
    for name in few:
        yield name, plain[name]
    for name in (
        ("GPTQ int3 g64",)
        if quick
        else ("int4 g64", "GPTQ int4 g64", "GPTQ int3 g64", "one plane", "two planes", "2:4")
    ):
        for rank in RANKS[:1] if quick else RANKS:
            for kind in ("svd", "eora"):
                compensation = Compensation(plain[name].of, rank=rank, method=kind)
                yield name, replace(plain[name], compensation=compensation)


def measured(subject: Subject, examples: int, quick: bool, only: Sequence[str] | None) -> Iterator[Row]:
    """fp32 and int8, the methods, and formats chosen layer by layer."""
    batches = subject.batches(4 * examples if subject.objective is EMBEDDINGS else examples)
    groups = groups_of(subject.module, batches[0])
    inside = [layer for group in groups for layer in group.values()]
    others = other_bytes(subject.module, inside)
    for name, bits in (("fp32", 32), ("int8 g64", 8)):
        if only is None or name in only:
            yield formats(
                subject, name, groups, others if bits < 32 else other_bytes(subject.module, inside, wide=True)
            )
    for name, method in methods(quick):
        if only is None or name in only:
            yield method_row(subject, name, method, batches, inside, others)
    if only is None or "sensitivity" in only:
        yield from chosen(subject, groups, others, quick)


def method_row(
    subject: Subject, name: str, method: Method, batches: Sequence[Batch], inside: Sequence[nn.Linear], others: int
) -> Row:
    module, began = copy.deepcopy(subject.module), time.perf_counter()
    found = compress_layers(module, batches, method, Calibration())
    seconds = time.perf_counter() - began
    size = sum(row["bytes"] for row in found)
    compensation = method.compensation
    compared = compensation is not None and compensation.method == "eora"
    better = [row["compensated"] <= row["svd"] for row in found] if compared else []
    left = [row["error"] if row["compensated"] is None else row["compensated"] for row in found]
    score = subject.score(module)
    return Row(
        subject.name, name, compensation.method if compensation else "none", compensation.rank if compensation else 0,
        8 * size / sum(layer.weight.numel() for layer in inside), size + others, score.perplexity, score.accuracy,
        sum(left) / len(left), sum(better) / len(better) if better else None, seconds, score.kl, score.se, score.tokens,
    )  # fmt: skip


def formats(subject: Subject, name: str, groups: Sequence[dict[str, nn.Linear]], others: int) -> Row:
    """All linear layers of the blocks in a plain format."""
    kind, block = ("fp32", 0) if name == "fp32" else ("int8", 64)
    option = {"+".join(group): (kind, block) for group in groups}
    return plain_row(subject, name, option, others)


def plain_row(subject: Subject, name: str, options: dict[str, tuple[str, int]], others: int) -> Row:
    module, began = copy.deepcopy(subject.module), time.perf_counter()
    size = count = 0
    for group, (kind, block) in options.items():
        for layer in group.split("+"):
            weight: Any = module.get_submodule(layer).weight
            packed = CODECS[kind].quantize(weight.detach().numpy(), block)
            weight.data = torch.from_numpy(CODECS[kind].dequantize(packed).copy())
            size, count = size + packed.nbytes, count + weight.numel()
    seconds = time.perf_counter() - began
    score = subject.score(module)
    return Row(
        subject.name, name, "none", 0, 8 * size / count, size + others, score.perplexity, score.accuracy, None, None, seconds,
        score.kl, score.se, score.tokens,
    )  # fmt: skip


def chosen(subject: Subject, groups: Sequence[dict[str, nn.Linear]], others: int, quick: bool) -> Iterator[Row]:
    """Formats within the bytes of int4 with blocks of 64, and of 5 bits a weight, by a scan on calibration text."""
    part = Examples(subject.calibration.select(slice(0, 8)))
    part = with_reference(subject.module, part) if subject.objective is EMBEDDINGS else part
    candidates = CANDIDATES[:2] if quick else CANDIDATES
    table = scan(groups, lambda: subject.objective.evaluate(subject.module, part, BATCH)["loss"], candidates)
    count = sum(layer.weight.numel() for group in groups for layer in group.values())
    for bits in (5.0,) if quick else (4.5, 5.0):
        limit = max(round(bits * count / 8), sum(min(cost.bytes for cost in row.values()) for row in table.values()))
        yield plain_row(subject, f"sensitivity, {bits} bits", choose(table, limit), others)


def other_bytes(module: nn.Module, inside: Sequence[nn.Linear], wide: bool = False) -> int:
    """Everything outside the blocks' linear layers: tables and heads as int8 in blocks of 64, the rest (``wide``: all) float32."""
    known = {id(layer.weight) for layer in inside}
    left = [p for p in module.parameters() if id(p) not in known]
    return sum(p.numel() * 68 // 64 if p.ndim == 2 and not wide else 4 * p.numel() for p in left)


def line(row: Row) -> str:
    """For people."""
    score = f"perplexity {row.perplexity:8.3f}" if row.perplexity is not None else f"cosine {row.accuracy:.4f}"
    score += f" (error {row.se:.4f})" + ("" if row.kl is None else f"  KL {row.kl:.4f}")
    error = "" if row.output_error is None else f"  output error {row.output_error:.4f}"
    side = f" + {row.compensation} r{row.rank}" if row.rank else ""
    return (
        f"{row.model:24}  {row.method + side:34}  {row.bits_per_weight:6.2f} bits  {row.bytes / 1e6:7.2f} MB  {score}"
        f"{error}  {row.seconds:5.0f} s"
    )


if __name__ == "__main__":
    main()
