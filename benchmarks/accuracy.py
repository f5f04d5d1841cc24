"""What compression without training costs in accuracy, against bytes: every method at what a bundle really stores.

    nice -n 10 .venv/bin/python -m benchmarks.accuracy [--models smollm2 minilm] [--tokens 61440] [--quick] [--json build/accuracy.json]

SmolLM2-135M-Instruct is scored on four texts of different kinds, equal numbers of tokens of each, on which nothing was chosen or calibrated: an
encyclopaedia, numpy's documentation, C++ headers, Hamlet. ``perplexity``, its ratio to float's with the standard error ``se`` of the ratio's
logarithm (paired, over windows), both text by text too, and ``kl``, mean Kullback-Leibler divergence from the float model in nats. Its weights are a
dequantized Q4_1 file, so plain 4 bits look better than they are: ``--dithered`` adds uniform noise of half a step. Texts take turns, and the rows are
written as they grow: a run that is stopped has all rows, of fewer tokens. Calibration is what ``compress --method gptq`` has by default, windows
drawn at random of the shipped texts and of Python's documentation and library. MiniLM: mean cosine of sentence embeddings to those of the
float model, ``se`` over sentences, and
``neighbours``, the share of an encyclopaedia's sentences that keep their nearest one.

Weights and activations are rounded as a bundle rounds them, embeddings and head to 8 bits in every row but fp32. ``bytes`` are those of the bundle's
weights, scales, padding and low-rank branches included; ``bits_per_weight`` is for the linear layers of the blocks alone. ``peer`` rows are what
llama.cpp's quantize makes of the same weights, where llama-cpp-python is installed.

Each way of rounding stands alone, with a plain decomposition and with EoRA beside it at two ranks (int8). What is drawn is drawn with one seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compress import llama_peer as llama
from benchmarks.compress.accuracy_plot import draw
from benchmarks.compress.accuracy_scores import BATCH, ENCYCLOPAEDIA, HAMLET, Subject, encoder, language
from edgekit.benchmark.machine import describe
from edgekit.lowbit.formats import CODECS
from edgekit.lowbit.formats.integers import quantize_int4
from edgekit.methods.calibrate import Batch, groups_of, mean_squares
from edgekit.methods.eora import Compensation
from edgekit.methods.examples import (
    EMBEDDINGS,
    Examples,
    with_reference,
)
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration, Method, compress_layers
from edgekit.methods.sensitivity import CANDIDATES, Option, choose, distance, scan
from edgekit.methods.ternarize import Ternary
from edgekit.spec.formats import FORMATS, SEARCHED

RANKS = (16, 64)
SIDE_BY_SIDE = 12
"""Models in memory at once."""
SEARCH_WINDOWS, HEAD_BLOCK = 16, 64
"""As the recipe int4 has them."""
RECIPES = {"fp32": ("fp32", 0), "int8": ("int8", 64), "int4": ("int4", 64), "int4-fp16": ("int4-fp16", 32)}


@dataclass(frozen=True)
class Row:
    """One method on one model. ``perplexity`` for decoders, ``accuracy`` (mean cosine) for encoders.

    ``kl`` (nats) is to the float model, ``se`` that of log(perplexity / float's), or of ``accuracy``; both over ``tokens``.
    ``ratios`` are those of the texts one by one, ``errors`` the standard errors of their logarithms. ``peer`` is the tool
    that rounded, where it was not edgekit.

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
    ratios: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    neighbours: float | None = None
    seeds: int = 1


def main() -> None:
    """Measures, prints, draws, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "minilm"], choices=["smollm2", "minilm"])
    parser.add_argument(
        "--examples", type=int, default=256, help="pieces of 256 tokens (sentences: four times as many)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="MiniLM's first two layers, few sentences: a test of the script"
    )
    parser.add_argument("--tokens", type=int, default=61440, help="that SmolLM2 is scored on, a quarter of each text")
    parser.add_argument(
        "--dithered", action="store_true", help="SmolLM2's weights with noise, off the lattice of its file"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="products of operands rounded to bfloat16, the float model's too"
    )
    parser.add_argument("--only", nargs="+", help="only methods with these names")
    parser.add_argument("--json", type=Path, default=Path("build/accuracy.json"))
    options = parser.parse_args()
    for needed in (HAMLET, ENCYCLOPAEDIA):
        if not needed.is_file():
            raise SystemExit(f"{needed}: not there; run sh tools/fetch_shakespeare.sh")
    torch.set_num_threads(1)
    if options.bfloat16:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    rows: list[Row] = []
    for name in ["minilm"] if options.quick else options.models:
        subject = (
            language(options.examples, options.tokens, options.dithered)
            if name == "smollm2"
            else encoder(options.examples, options.quick)
        )
        done = list(rows)
        for more in measured(subject, options.examples, options.quick, options.only):
            rows = done + more
            write(rows, options.json)
        for row in rows[len(done) :]:
            print(line(row))
    draw([asdict(row) for row in rows], options.json.with_suffix(".png"))


def write(rows: Sequence[Row], path: Path) -> None:
    """After each row: a run of hours may be stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": asdict(describe()), "command": sys.argv[1:], "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def methods(quick: bool) -> Iterator[tuple[str, Method]]:
    """Every way of rounding, then each with both kinds of low-rank branch."""
    plain = {
        "int4 g64": Method("int4", Gptq(4, 64)),
        "int4 g32": Method("int4", Gptq(4, 32)),
        "int4 g16": Method("int4", Gptq(4, 16)),
        "int3 g64": Method("int4", Gptq(3, 64)),
        "GPTQ int4 g64": Method("gptq", Gptq(4, 64)),
        "GPTQ int4 g32": Method("gptq", Gptq(4, 32)),
        "GPTQ int4 g16": Method("gptq", Gptq(4, 16)),
        "GPTQ int3 g64": Method("gptq", Gptq(3, 64)),
        "GPTQ int3 per channel": Method("gptq", Gptq(3, 0)),
        "one plane": Method("ternarize", ternary=Ternary(planes=1)),
        "one plane + offset": Method("ternarize", ternary=Ternary(planes=1, offset=True)),
        "two planes": Method("ternarize", ternary=Ternary(planes=2)),
        "2:4": Method("2:4"),
    }
    few = ("int4 g32", "GPTQ int3 g64", "one plane", "two planes") if quick else tuple(plain)
    for name in few:
        yield name, plain[name]
    compensated = ("int4 g32", "GPTQ int4 g32", "GPTQ int3 g64", "one plane", "two planes", "2:4")
    for name in ("GPTQ int3 g64",) if quick else compensated:
        for rank in RANKS[:1] if quick else RANKS:
            for kind in ("svd", "eora"):
                compensation = Compensation(plain[name].of, rank=rank, method=kind)
                yield f"{name} + {kind} r{rank}", replace(plain[name], compensation=compensation)


def measured(subject: Subject, examples: int, quick: bool, only: Sequence[str] | None) -> Iterator[list[Row]]:
    """Every row, scored a few side by side; all that there are so far, the last ones of only some of the text."""
    done: list[Row] = []
    prepared = models(subject, examples, quick, only)
    while some := list(islice(prepared, SIDE_BY_SIDE)):
        rows: list[Row] = []
        for scores in subject.scores([module for _, module in some]):
            rows = [replace(row, **asdict(score)) for (row, _), score in zip(some, scores, strict=True)]
            yield done + rows
        done += rows


def models(subject: Subject, examples: int, quick: bool, only: Sequence[str] | None) -> Iterator[tuple[Row, nn.Module]]:
    """fp32 and the recipes' formats, the methods, formats chosen layer by layer, peers; without their scores."""
    batches = subject.batches(4 * examples if subject.objective is EMBEDDINGS else examples)
    groups = groups_of(subject.module, batches[0])
    inside = [layer for group in groups for layer in group.values()]
    others = other_bytes(subject.module, inside)
    for name, option in RECIPES.items():
        if only is None or name in only:
            rest = others if option[0] != "fp32" else other_bytes(subject.module, inside, wide=True)
            yield plain_row(subject, name, {"+".join(group): option for group in groups}, rest, searched=True)
    for name, method in methods(quick):
        if only is None or name in only:
            yield method_row(subject, name, method, batches, inside, others)
    if only is None or "sensitivity" in only:
        yield from chosen(subject, groups, others, quick)
    if subject.source is not None:
        yield from peers(subject, subject.source, batches, groups, only)


def method_row(
    subject: Subject, name: str, method: Method, batches: Sequence[Batch], inside: Sequence[nn.Linear], others: int
) -> tuple[Row, nn.Module]:
    module, began = copy.deepcopy(subject.module), time.perf_counter()
    found = compress_layers(module, batches, method, Calibration())
    seconds = time.perf_counter() - began
    size = sum(row["bytes"] for row in found)
    compensation = method.compensation
    compared = compensation is not None and compensation.method == "eora"
    better = [row["compensated"] <= row["svd"] for row in found] if compared else []
    left = [row["error"] if row["compensated"] is None else row["compensated"] for row in found]
    option = method.option(module)
    assert option is not None
    blocks = {layer: option for row in found for layer in layers_named(row["layer"])}
    as_bundled(module, blocks)
    return Row(
        subject.name, name, compensation.method if compensation else "none", compensation.rank if compensation else 0,
        8 * size / sum(layer.weight.numel() for layer in inside), size + others, None, None,
        sum(left) / len(left), sum(better) / len(better) if better else None, seconds, None, 0.0, 0,
    ), module  # fmt: skip


def layers_named(group: str) -> list[str]:
    """a.q_proj+k_proj -> a.q_proj, a.k_proj."""
    first, *others = group.split("+")
    return [first, *(f"{first.rpartition('.')[0]}.{name}" for name in others)]


def plain_row(
    subject: Subject, name: str, options: dict[str, Option], others: int, searched: bool
) -> tuple[Row, nn.Module]:
    """Formats as a recipe has them; ``searched``: int4 with scales of as many windows as the recipe ``int4`` takes."""
    module, began = copy.deepcopy(subject.module), time.perf_counter()
    blocks = {layer: option for group, option in options.items() for layer in group.split("+")}
    moments: dict[str, Tensor] = {}
    if searched and any(kind in SEARCHED for kind, _ in blocks.values()):
        moments = mean_squares(module, blocks, subject.batches(SEARCH_WINDOWS))
    size = count = 0
    for layer, (kind, block) in blocks.items():
        weight: Any = module.get_submodule(layer).weight
        array = weight.detach().numpy()
        if layer in moments:
            packed = quantize_int4(array, block, moments[layer].float().numpy(), kind)
        else:
            packed = CODECS[kind].quantize(array, block)
        weight.data = torch.from_numpy(CODECS[kind].dequantize(packed).copy())
        size, count = size + packed.nbytes, count + weight.numel()
    if any(kind != "fp32" for kind, _ in blocks.values()):
        as_bundled(module, blocks)
    return Row(
        subject.name, name, "none", 0, 8 * size / count, size + others, None, None, None, None,
        time.perf_counter() - began, None, 0.0, 0,
    ), module  # fmt: skip


def as_bundled(module: nn.Module, blocks: Mapping[str, Option]) -> None:
    """Rounds what the layers ``blocks`` read as their formats do, tables and other linear layers as int8 in blocks of 64."""
    known = {id(module.get_submodule(layer).weight) for layer in blocks}
    for parameter in module.parameters():
        if parameter.ndim == 2 and id(parameter) not in known and parameter.shape[1] >= HEAD_BLOCK:
            packed = CODECS["int8"].quantize(parameter.detach().numpy(), HEAD_BLOCK)
            parameter.data = torch.from_numpy(CODECS["int8"].dequantize(packed).copy())
    linears = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    sizes = {}
    for name in linears:
        if name.rpartition(".")[2] not in ("second", "lora_A", "lora_B"):
            kind, block = blocks.get(name, ("int8", HEAD_BLOCK))
            sizes[name] = FORMATS[kind].activation_block_size(block or FORMATS[kind].block_size, -1)
    llama.round_inputs(module, sizes)


def chosen(
    subject: Subject, groups: Sequence[dict[str, nn.Linear]], others: int, quick: bool
) -> Iterator[tuple[Row, nn.Module]]:
    """Formats within the bytes of int4 with blocks of 64, and of 5 bits a weight, by a scan on calibration text."""
    part = Examples(subject.calibration.select(slice(0, 8)))
    part = with_reference(subject.module, part) if subject.objective is EMBEDDINGS else part
    candidates = CANDIDATES[:2] if quick else CANDIDATES
    table = scan(groups, distance(subject.objective, subject.module, part, BATCH), candidates)
    count = sum(layer.weight.numel() for group in groups for layer in group.values())
    for bits in (5.0,) if quick else (4.5, 5.0):
        limit = max(round(bits * count / 8), sum(min(cost.bytes for cost in row.values()) for row in table.values()))
        yield plain_row(subject, f"sensitivity, {bits} bits", choose(table, limit), others, searched=False)


def peers(
    subject: Subject,
    source: Path,
    batches: Sequence[Batch],
    groups: Sequence[dict[str, nn.Linear]],
    only: Sequence[str] | None,
) -> Iterator[tuple[Row, nn.Module]]:
    """llama.cpp's formats of the same weights, where llama-cpp-python is installed: as they are, and with an importance
    matrix of all the text that GPTQ is calibrated with."""
    layers = [layer for group in groups for layer in group]
    importance: dict[str, Tensor] = {}
    for name in llama.TYPES:
        for method in (name, f"{name} imatrix"):
            if method in only if only is not None else name != "Q8_0" or method == name:  # Q8_0 takes none
                began = time.perf_counter()
                if method != name and not importance:
                    importance = mean_squares(subject.module, layers, batches)
                module, bits, size = llama.quantized(source, name, importance if method != name else {})
                yield Row(
                    subject.name, method, "none", 0, bits, size, None, None, None, None, time.perf_counter() - began,
                    None, 0.0, 0, peer="llama.cpp",
                ), module  # fmt: skip


def other_bytes(module: nn.Module, inside: Sequence[nn.Linear], wide: bool = False) -> int:
    """Everything outside the blocks' linear layers: tables and heads as int8 in blocks of 64, the rest (``wide``: all) float32."""
    known = {id(layer.weight) for layer in inside}
    left = [p for p in module.parameters() if id(p) not in known]
    return sum(p.numel() * 68 // 64 if p.ndim == 2 and not wide else 4 * p.numel() for p in left)


def line(row: Row) -> str:
    """For people."""
    score = f"perplexity {row.perplexity:8.3f}" if row.perplexity is not None else f"cosine {row.accuracy:.4f}"
    score += f" (error {row.se:.4f})" + ("" if row.kl is None else f"  KL {row.kl:.4f}")
    score += "".join(f" x{ratio:.3f} ({error:.3f})" for ratio, error in zip(row.ratios, row.errors, strict=True))
    score += "" if row.neighbours is None else f"  neighbours {row.neighbours:.3f}"
    error = "" if row.output_error is None else f"  output error {row.output_error:.4f}"
    return (
        f"{row.model:24}  {row.method:34}  {row.bits_per_weight:6.2f} bits  {row.bytes / 1e6:7.2f} MB  {score}"
        f"{error}  {row.seconds:5.0f} s"
    )


if __name__ == "__main__":
    main()
