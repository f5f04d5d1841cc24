"""Rate-constrained training against none, L1, L2 and pruning, at the same number of steps and the same average step.

    nice -n 10 .venv/bin/python -m benchmarks.backslash [--quick] [--seeds 3] [--models mlp cnn decoder] [--json FILE]

Fashion-MNIST (``sh tools/fetch_fashion_mnist.sh``) and Shakespeare's plays byte by byte (``sh tools/fetch_shakespeare.sh``). A
method acts for the first three quarters of the steps, then plain training follows; where zeros are exact they are held
in it. Everything starts from the same weights and sees the same batches for a seed.

For every training: the score on held-out data; zeros; the score after pruning the smallest weights to 10 ... 95 % without
training again; and for each step of a uniform quantizer the score with rounded weights and the bits a weight: entropy,
exp-Golomb of order 0 (the paper's code), and coded by ``edgekit.coding``. ``step`` in a row is the coarsest one with which all
seeds of the method together lose at most ``--loss`` of the score, so that bits are compared at equal harm.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.backslash_models import CASES, Case
from edgekit.bench.machine import describe
from edgekit.compress import Backslash, Pruner, Pruning, Rate, RateReport, rate_report
from edgekit.compress.masks import apply, matrices
from edgekit.compress.prune import largest
from edgekit.compress.training import Constraint, Run

PRUNED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
STEPS = tuple(2.0**-power for power in (3, 4, 5, 6, 7, 8, 9, 13))
AUTHORS = 2.0**-13
"""What the authors' code rounds to."""
STRENGTH = 2.0

Make = Callable[[nn.Module, int], Constraint | None]
"""From a model and the number of steps with the method."""


def _rate(**settings: Any) -> Make:
    return lambda model, steps: Backslash(model, Rate(steps=steps, strength=STRENGTH, **settings))


def _l2(model: nn.Module, steps: int) -> Constraint:
    """One lambda throughout, whose first step is the others' average one."""
    rate = Rate(steps=steps, variant="decoupled", epsilon=1e-12, shape=2.0)
    weights = Backslash(model, rate)
    mean = sum(float(w.abs().sum()) for w in weights.weights.values()) / weights.count
    return Backslash(model, replace(rate, lam=STRENGTH * weights.deviation / steps * weights.count / (2 * mean)))


METHODS: dict[str, Make] = {
    "none": lambda model, steps: None,
    "L2": _l2,
    "L1": _rate(variant="decoupled", shape=1.0),
    "backslash eps=1": _rate(variant="decoupled", epsilon=1.0),  # as the authors' code
    "backslash eps=0.01": _rate(variant="decoupled", epsilon=0.01),
    "proximal, held": _rate(variant="proximal", epsilon=0.01),
    "bits, held": _rate(variant="bits", epsilon=0.01),
    "pruned to 80 %": lambda model, steps: Pruner(model, Pruning(sparsity=0.8, steps=steps, every=steps // 20)),
    "pruned to 90 %": lambda model, steps: Pruner(model, Pruning(sparsity=0.9, steps=steps, every=steps // 20)),
}


@dataclass(frozen=True)
class Trained:
    """One training: scores are shares of held-out examples, bits are for each weight of matrices and convolutions."""

    model: str
    method: str
    seed: int
    weights: int
    seconds: float
    score: float
    zeros: float
    nu: float
    pruned: dict[str, float]  # score by share of zeros
    rounded: dict[str, dict[str, float]]  # by step: score, zeros, entropy, golomb, coded (where there is a coder)


def main() -> None:
    """Trains, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the steps: a test of the script")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=[c.name for c in CASES], choices=[c.name for c in CASES])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--loss", type=float, default=0.005, help="share of the score that rounding may cost")
    parser.add_argument("--json", type=Path, default=Path("build/backslash.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # interleaved trainings of small networks; the other cores stay free
    trained = []
    for case in (c for c in CASES if c.name in options.models):
        for seed in range(1 if options.quick else options.seeds):
            for method in options.methods:  # methods take turns, so that a busy machine hits them alike
                trained.append(_train(case, method, seed, options.quick))
    rows = [row for name in options.models for row in _summary([t for t in trained if t.model == name], options.loss)]
    _show(rows)
    document = {
        "machine": asdict(describe()),
        "loss": options.loss,
        "rows": rows,
        "trainings": [asdict(t) for t in trained],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    from benchmarks.backslash_plot import draw

    draw(rows, options.json.with_suffix(".png"))


def _train(case: Case, method: str, seed: int, quick: bool) -> Trained:
    began = time.perf_counter()
    torch.manual_seed(seed)
    model = case.build()
    examples, held_out = case.data()
    factor = 10 if quick else 1
    training = replace(case.training, seed=seed, steps=case.training.steps // factor)
    constraint = METHODS[method](model, case.rate_steps // factor)
    run = Run(model, case.objective, examples, training, constraint=constraint, hold_after=case.rate_steps // factor)
    run.go()
    weights = matrices(model)
    score = _score(case, model, held_out)
    pooled = rate_report(weights, AUTHORS).pooled
    found = Trained(
        case.name, method, seed, pooled.count, 0.0, score, pooled.zeros, pooled.nu,
        _pruned(case, model, held_out), _rounded(case, model, held_out),
    )  # fmt: skip
    found = replace(found, seconds=time.perf_counter() - began)
    print(
        f"{case.name:<8} {method:<19} seed {seed}: {score:.4f}, zeros {found.zeros:6.1%}, {found.seconds:5.1f} s",
        file=sys.stderr,
    )
    return found


def _score(case: Case, model: nn.Module, held_out: Any) -> float:
    return case.objective.evaluate(model, held_out, 500)["accuracy"]


def _pruned(case: Case, model: nn.Module, held_out: Any) -> dict[str, float]:
    scores = {}
    for share in PRUNED:
        smaller = copy.deepcopy(model)
        weights = matrices(smaller)
        apply(largest(weights, share), weights)
        scores[f"{share:g}"] = _score(case, smaller, held_out)
    return scores


def _rounded(case: Case, model: nn.Module, held_out: Any) -> dict[str, dict[str, float]]:
    rows = {}
    for step in STEPS:
        coarse = copy.deepcopy(model)
        with torch.no_grad():
            for weight in matrices(coarse).values():
                weight.copy_((weight / step).round() * step)
        report = rate_report(matrices(model), step, _coder())
        rows[f"{step:g}"] = {
            "score": _score(case, coarse, held_out),
            "zeros": report.total.rounded_zeros,
            **_bits(report),
        }
    return rows


def _coder() -> None:
    return None


def _bits(report: RateReport) -> dict[str, float]:
    """Entropy and coded bits with a table for each layer, exp-Golomb with one for all, as the paper has it."""
    bits = {"entropy": report.total.entropy, "golomb": report.pooled.golomb}
    return bits if report.total.coded is None else {**bits, "coded": report.total.coded}


def _summary(trained: Sequence[Trained], loss: float) -> list[dict[str, Any]]:
    """A row for each method of one model: [mean, standard deviation over seeds] of everything."""
    rows = []
    for method in dict.fromkeys(t.method for t in trained):
        mine = [t for t in trained if t.method == method]
        score = statistics.mean(t.score for t in mine)

        def mean(step: str, what: str, mine: Sequence[Trained] = mine) -> float:
            return statistics.mean(t.rounded[step][what] for t in mine)

        steps = [s for s in mine[0].rounded if mean(s, "score") >= score * (1 - loss)]
        step = steps[0] if steps else f"{AUTHORS:g}"
        rows.append(
            {
                "model": mine[0].model,
                "method": method,
                "seeds": len(mine),
                "weights": mine[0].weights,
                "score": _spread(t.score for t in mine),
                "zeros": _spread(t.zeros for t in mine),
                "nu": _spread(t.nu for t in mine),
                "seconds": _spread(t.seconds for t in mine),
                "step": float(step),
                "at_step": {k: _spread(t.rounded[step][k] for t in mine) for k in mine[0].rounded[step]},
                "at_authors_step": {
                    k: _spread(t.rounded[f"{AUTHORS:g}"][k] for t in mine) for k in mine[0].rounded[f"{AUTHORS:g}"]
                },
                "pruned": {share: _spread(t.pruned[share] for t in mine) for share in mine[0].pruned},
                "rounded": {s: {k: mean(s, k) for k in values} for s, values in mine[0].rounded.items()},
            }
        )
    return rows


def _spread(values: Any) -> list[float]:
    found = list(values)
    return [statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0]


def _show(rows: Sequence[dict[str, Any]]) -> None:
    head = f"{'model':<8} {'method':<19} {'score':>12} {'zeros':>6} {'nu':>5} {'pruned 80':>12} {'90':>12} {'step':>8}"
    print(head + f" {'score':>7} {'zeros':>6} {'entropy':>7} {'EG0':>6} {'at 2^-13: entropy':>17} {'EG0':>6}")
    for r in rows:
        at, authors = r["at_step"], r["at_authors_step"]
        cells = [f"{m:.2%} ±{s:.2%}" for m, s in (r["score"], r["pruned"]["0.8"], r["pruned"]["0.9"])]
        print(
            f"{r['model']:<8} {r['method']:<19} {cells[0]:>12} {r['zeros'][0]:>6.1%} {r['nu'][0]:>5.2f} {cells[1]:>12} "
            f"{cells[2]:>12} {r['step']:>8.3g} {at['score'][0]:>7.2%} {at['zeros'][0]:>6.1%} {at['entropy'][0]:>7.3f} "
            f"{at['golomb'][0]:>6.3f} {authors['entropy'][0]:>17.3f} {authors['golomb'][0]:>6.3f}"
        )


if __name__ == "__main__":
    main()
