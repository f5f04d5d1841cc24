"""What removing dead units gains: size, speed and exactness of BackSlash-trained networks, with and without it.

    python -m benchmarks.compress.dead_units [--models mlp cnn] [--recipes fp32 int8] [--rounds 9] [--json FILE]
    python -m benchmarks.compress.dead_units --cost HF_DIRECTORY [--json FILE]

An MLP (784-256-256-10) and a small CNN learn Fashion-MNIST (``sh tools/fetch_fashion_mnist.sh``): first plainly, then with the
proximal rate term whose group rate pulls whole rows (units, channels) to zero, then plainly with zeros held. Each network is
compiled twice from the same weights: as it is, and with ``RemoveDeadUnits``. ``difference`` is the largest between their
logits on the 10,000 test images over the largest logit. Microseconds are of one image on one thread, the median of rounds
in which all variants of a network take turns, with the spread of those rounds.

``--cost`` says what looking for dead units costs where there are none: processor seconds of the search, again and again, and
of compiling and writing the model as int4 without it. Golden vectors, which take longer, are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from benchmarks.compress.backslash_models import Images, cnn, fashion, mlp
from edgekit.benchmark.machine import describe
from edgekit.bundle import write_graph
from edgekit.frontend import decoder, generic
from edgekit.frontend.inputs import resolve
from edgekit.frontend.loading import load_module
from edgekit.frontend.source import ModuleSource
from edgekit.frontend.streamed import widen
from edgekit.methods import Backslash, Rate
from edgekit.methods.examples import CLASSES, Examples
from edgekit.passes import pipeline
from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.recipe import Recipe
from edgekit.spec.facts import facts_of
from edgekit.spec.names import LABELS
from edgekit.spec.records import DeadUnits

MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}
GROUP_STRENGTH = {"mlp": 4.0, "cnn": 2.5}
PLAIN, RATE, HELD, BATCH = 1000, 800, 600, 64
CALLS = 300


@dataclass(frozen=True)
class Row:
    """One network in one format, with or without its dead units."""

    model: str
    recipe: str
    removed: bool
    weights: int
    megabytes: float
    microseconds: float
    spread: float  # half the range of rounds, microseconds
    accuracy: float
    plain_accuracy: float  # of as many steps of plain training
    difference: float | None
    units: str


def main() -> None:
    """Trains, compiles, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cost:
        return _save(options.json or Path("build/dead_units_cost.json"), [_cost(options.cost, options.rounds)])
    data, judged = fashion()
    rows: list[Row] = []
    print(
        f"{'model':<6} {'recipe':<7} {'dead units':<11} {'weights':>9} {'MB':>7} {'us':>7} {'spread':>6} {'accuracy':>8} {'difference':>10}"
    )
    for name in options.models:
        plain = CLASSES.evaluate(_trained(name, data, 0.0), judged, 500)["accuracy"]
        print(f"{name}: {plain:.2%} after as many steps of plain training")
        module = _trained(name, data, GROUP_STRENGTH[name])
        found = _rows(name, module, judged, plain, options.recipes, options.rounds)
        for row in found:
            state = "removed" if row.removed else "there"
            difference = "" if row.difference is None else f"{row.difference:.1e}"
            print(
                f"{row.model:<6} {row.recipe:<7} {state:<11} {row.weights:>9,} {row.megabytes:>7.3f} "
                f"{row.microseconds:>7.1f} {row.spread:>6.1f} {row.accuracy:>8.2%} {difference:>10}  {row.units}"
            )
        rows += found
    _save(options.json or Path("build/dead_units.json"), [asdict(row) for row in rows])


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": asdict(describe()), "threads": 1, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _cost(directory: Path, rounds: int) -> dict[str, Any]:
    """Processor seconds of the search in a model's dense graph, and of the rest of compiling and writing."""
    found, start = load_module(str(directory)), time.process_time()
    model, searches = decoder.build(widen(found.module)), list[float]()
    for step in pipeline(Recipe.load("int4")):
        if isinstance(step, RemoveDeadUnits):
            for _ in range(rounds):
                before = time.process_time()
                RemoveDeadUnits()(model)
                searches.append(time.process_time() - before)
        else:
            model = step(model).model
    with tempfile.TemporaryDirectory() as scratch:
        write_graph(model, Path(scratch))
    rest = time.process_time() - start - sum(searches)
    row = {"model": directory.name, "search_seconds": float(np.median(searches)), "rest_seconds": rest}
    print(
        f"{directory.name}: search {row['search_seconds']:.2f} s ({min(searches):.2f} to {max(searches):.2f}), rest {rest:.1f} s"
    )
    return row


def _trained(name: str, data: Examples, strength: float) -> nn.Module:
    """Plain training, training with the rate term of this ``strength`` for rows (if any), training with zeros held; seed 0."""
    torch.manual_seed(0)
    module = Images(MODELS[name]())
    total = PLAIN + RATE + HELD
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (total - step) / HELD))
    term: Backslash | None = None
    for step in range(total):
        if step == PLAIN and strength:
            rate = Rate(steps=RATE, strength=0.05, group="row", group_strength=strength)
            term = Backslash(module, rate)
        if step == PLAIN + RATE and term is not None:
            term.hold()
        batch = data.select(torch.randint(0, len(data), (BATCH,)))
        CLASSES.loss(module, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if term is not None:
            term.step()
    return module.eval().requires_grad_(False)


def _compiled(module: nn.Module, recipe: str, remove: bool) -> ir.Model:
    source = ModuleSource(
        "factory", "net", "generic", "", module=module, example_inputs={"images": torch.zeros(2, 1, 28, 28)}
    )
    model = generic.build(source, resolve(source, None))
    for step in pipeline(Recipe.load(recipe)):
        if remove or not isinstance(step, RemoveDeadUnits):
            model = step(model).model
    return model


def _rows(name: str, module: nn.Module, judged: Examples, plain: float, recipes: list[str], rounds: int) -> list[Row]:
    images, labels = judged.arrays["images"].numpy(), judged.arrays[LABELS].numpy()
    rows, sessions, scratch = list[dict[str, Any]](), list[ort.InferenceSession](), tempfile.TemporaryDirectory()
    for recipe in recipes:
        before: np.ndarray | None = None
        for remove in (False, True):
            model = _compiled(module, recipe, remove)
            directory = Path(scratch.name) / f"{recipe}-{remove}"
            directory.mkdir()
            table = [units for units in facts_of(model).dead_units if units.removed]
            write_graph(model, directory)
            sessions.append(_session(directory / "model.onnx"))
            logits = np.concatenate(
                [sessions[-1].run(None, {"images": images[i : i + 500]})[0] for i in range(0, len(images), 500)]
            )
            rows.append({
                "model": name, "recipe": recipe, "removed": remove, "weights": _weights(model),
                "megabytes": sum(f.stat().st_size for f in directory.iterdir()) / 1e6,
                "accuracy": float((logits.argmax(1) == labels).mean()), "plain_accuracy": plain,
                "difference": None if before is None else float(np.abs(logits - before).max() / np.abs(before).max()),
                "units": _gone(table),
            })  # fmt: skip
            before = logits
    times = _times(sessions, images[:1], rounds)
    scratch.cleanup()
    return [
        Row(**row, microseconds=float(np.median(t)), spread=float(np.ptp(t)) / 2)
        for row, t in zip(rows, times, strict=True)
    ]


def _gone(table: list[DeadUnits]) -> str:
    """Removed units by layer."""
    counts = Counter[tuple[str, int, str]]()
    for row in table:
        counts[row.layer, row.of, row.unit] += row.count
    return ", ".join(f"{layer}: {count} of {of} {unit}s" for (layer, of, unit), count in counts.items())


def _weights(model: ir.Model) -> int:
    """Weights of linear layers and convolutions."""
    convolutions = [n.inputs[1].const_value for n in model.graph if n.op_type == "Conv"]  # type: ignore[union-attr]
    return sum(layer.weights for layer in facts_of(model).layers) + sum(
        int(t.size) for t in convolutions if t is not None
    )


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(path, options)


def _times(sessions: list[ort.InferenceSession], image: np.ndarray, rounds: int) -> list[list[float]]:
    """Microseconds of one call by session and round; the sessions take turns."""
    found: list[list[float]] = [[] for _ in sessions]
    for round_number in range(rounds + 1):
        for series, session in zip(found, sessions, strict=True):
            calls = []
            for _ in range(CALLS):
                start = time.perf_counter()
                session.run(None, {"images": image})
                calls.append(time.perf_counter() - start)
            if round_number:  # the first warms up
                series.append(1e6 * float(np.median(calls)))
    return found


if __name__ == "__main__":
    main()
