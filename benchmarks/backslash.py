"""Rate-constrained training against none, L1, L2 and pruning, at the same number of steps and the same average step.

    nice -n 10 .venv/bin/python -m benchmarks.backslash [--quick] [--seeds 3] [--models mlp cnn decoder] [--json FILE]

Fashion-MNIST (``sh tools/fetch_fashion_mnist.sh``) and Shakespeare's plays byte by byte (``sh tools/fetch_shakespeare.sh``). For
each seed a network is trained once; from there every method trains on, with the same batches for the same number of
steps. It acts in the first three quarters of them, then plain training follows; where zeros are exact they are held in
it. ``c`` is the strength: how many standard deviations an undefended weight moves.

For every training: the score on held-out data; zeros; the score after pruning the smallest weights to 10 ... 95 % without
training again; and for each step of a uniform quantizer the score with rounded weights and the bits a weight: entropy,
exp-Golomb of order 0 (the paper's code), and as ``edgekit pack`` codes them. ``step`` in a row is the coarsest one with which all
seeds of the method together lose at most ``--loss`` of the score, so that bits are compared at equal harm.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compress.backslash_models import CASES, Case
from edgekit.benchmark.machine import describe
from edgekit.coding.streams import coded_bits
from edgekit.methods import Backslash, Pruner, Pruning, Rate, RateReport, rate_report
from edgekit.methods.examples import Examples
from edgekit.methods.masks import apply, matrices
from edgekit.methods.prune import largest
from edgekit.methods.training import Constraint, Run, Training

PRUNED = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
STEPS = tuple(2.0**-power for power in (3, 4, 5, 6, 7, 8, 13))
AUTHORS = 2.0**-13
"""What the authors' code rounds to."""

Make = Callable[[nn.Module, int], Constraint | None]
"""From a model and the number of steps with the method."""


def _rate(strength: float, **settings: Any) -> Make:
    return lambda model, steps: Backslash(model, Rate(steps=steps, strength=strength, **settings))


def _l2(model: nn.Module, steps: int) -> Constraint:
    """Strength 1, but one lambda throughout as usual: the first step is the others' average one."""
    rate = Rate(steps=steps, variant="decoupled", epsilon=1e-12, shape=2.0)
    term = Backslash(model, rate)
    mean = sum(float(w.detach().abs().sum()) for w in term.weights.values()) / term.count
    return Backslash(model, replace(rate, lam=term.deviation / steps * term.count / (2 * mean)))


def _pruned_to(sparsity: float) -> Make:
    return lambda model, steps: Pruner(model, Pruning(sparsity=sparsity, steps=steps, every=max(1, steps // 20)))


METHODS: dict[str, Make] = {
    "none": lambda model, steps: None,
    "L2 c=1": _l2,
    "L1 c=1": _rate(1.0, variant="decoupled", shape=1.0),
    "L1 c=3": _rate(3.0, variant="decoupled", shape=1.0),
    "backslash eps=1 c=1": _rate(1.0, variant="decoupled", epsilon=1.0),  # as the authors' code
    "backslash eps=1 c=3": _rate(3.0, variant="decoupled", epsilon=1.0),
    "backslash eps=.01 c=1": _rate(1.0, variant="decoupled", epsilon=0.01),
    "backslash eps=.01 c=3": _rate(3.0, variant="decoupled", epsilon=0.01),
    "proximal, held c=1": _rate(1.0, variant="proximal", epsilon=0.01),
    "proximal, held c=3": _rate(3.0, variant="proximal", epsilon=0.01),
    "bits, held c=1": _rate(1.0, variant="bits", epsilon=0.01),
    "bits, held c=3": _rate(3.0, variant="bits", epsilon=0.01),
    "pruned to 80 %": _pruned_to(0.8),
    "pruned to 90 %": _pruned_to(0.9),
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
    rounded: dict[str, dict[str, float]]  # by step: score, zeros, entropy, golomb, coded


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
    trained: list[Trained] = []
    for case in (c for c in CASES if c.name in options.models):
        short = replace(
            case, first=_tenth(case.first), training=_tenth(case.training), rate_steps=case.rate_steps // 10
        )
        for seed in range(1 if options.quick else options.seeds):
            trained += _seed(short if options.quick else case, options.methods, seed)
        rows = _write(trained, options.loss, options.json)  # after each network: it takes long
    _show(rows)


def _write(trained: Sequence[Trained], loss: float, target: Path) -> list[dict[str, Any]]:
    """JSON and plot of what there is; the rows."""
    from benchmarks.compress.backslash_plot import draw

    models = dict.fromkeys(t.model for t in trained)
    rows = [row for name in models for row in _summary([t for t in trained if t.model == name], loss)]
    document = {"machine": asdict(describe()), "loss": loss, "rows": rows, "trainings": [asdict(t) for t in trained]}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(rows, target.with_suffix(".png"))
    return rows


def _tenth(training: Training) -> Training:
    return replace(training, steps=training.steps // 10)


def _seed(case: Case, methods: Sequence[str], seed: int) -> list[Trained]:
    """One network trained first, then on with each method."""
    torch.manual_seed(seed)
    model = case.build()
    data = case.data()
    Run(model, case.objective, data[0], replace(case.first, seed=seed)).go()
    print(f"{case.name:<8} trained first, seed {seed}: {_score(case, model, data[1]):.4f}", file=sys.stderr)
    return [_train(case, copy.deepcopy(model), data, method, seed) for method in methods]


def _train(case: Case, model: nn.Module, data: tuple[Examples, Examples], method: str, seed: int) -> Trained:
    began = time.perf_counter()
    constraint = METHODS[method](model, case.rate_steps)
    training = replace(case.training, seed=seed + 1000)  # other batches than before
    Run(model, case.objective, data[0], training, constraint=constraint, hold_after=case.rate_steps).go()
    score = _score(case, model, data[1])
    pooled = rate_report(matrices(model), AUTHORS).pooled
    found = Trained(
        case.name, method, seed, pooled.count, time.perf_counter() - began, score, pooled.zeros, pooled.nu,
        _pruned(case, model, data[1]), _rounded(case, model, data[1]),
    )  # fmt: skip
    told = f"{case.name:<8} {method:<21} seed {seed}: {score:.4f}, zeros {found.zeros:6.1%}"
    print(f"{told}, {time.perf_counter() - began:5.1f} s", file=sys.stderr)
    return found


def _score(case: Case, model: nn.Module, held_out: Examples) -> float:
    return case.objective.evaluate(model, held_out, 500)["accuracy"]


def _pruned(case: Case, model: nn.Module, held_out: Examples) -> dict[str, float]:
    scores = {}
    for share in PRUNED:
        smaller = copy.deepcopy(model)
        weights = matrices(smaller)
        apply(largest(weights, share), weights)
        scores[f"{share:g}"] = _score(case, smaller, held_out)
    return scores


def _rounded(case: Case, model: nn.Module, held_out: Examples) -> dict[str, dict[str, float]]:
    rows = {}
    for step in STEPS:
        coarse = copy.deepcopy(model)
        with torch.no_grad():
            for weight in matrices(coarse).values():
                weight.copy_((weight / step).round() * step)
        report = rate_report(matrices(model), step, coded_bits)
        rows[f"{step:g}"] = {
            "score": _score(case, coarse, held_out),
            "zeros": report.total.rounded_zeros,
            **_bits(report),
        }
    return rows


def _bits(report: RateReport) -> dict[str, float]:
    """Entropy and coded bits with a table for each layer, exp-Golomb with one for all, as the paper has it."""
    assert report.total.coded is not None
    return {"entropy": report.total.entropy, "golomb": report.pooled.golomb, "coded": report.total.coded}


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
    head = f"{'':<30} {'score, %':>13} {'zeros':>6} {'nu':>4} {'pruned to 80 %':>14} {'90 %':>13}"
    print(
        head
        + f" | {'step':>6} {'score':>6} {'zeros':>6} {'H':>6} {'coded':>6} {'EG0':>6} | at 2^-13 {'H':>6} {'EG0':>6}"
    )
    for r in rows:
        at, fine = r["at_step"], r["at_authors_step"]
        cells = [f"{100 * m:.2f} ± {100 * s:.2f}" for m, s in (r["score"], r["pruned"]["0.8"], r["pruned"]["0.9"])]
        print(
            f"{r['model']:<8}{r['method']:<22} {cells[0]:>13} {r['zeros'][0]:>6.1%} {r['nu'][0]:>4.2f} {cells[1]:>14} {cells[2]:>13} | "
            f"2^{math.log2(r['step']):<4.0f} {100 * at['score'][0]:>6.2f} {at['zeros'][0]:>6.1%} {at['entropy'][0]:>6.3f} "
            f"{at['coded'][0]:>6.3f} {at['golomb'][0]:>6.3f} | {fine['entropy'][0]:>15.3f} {fine['golomb'][0]:>6.3f}"
        )
    print(
        "score: held-out accuracy (next byte of the decoder); H, coded, EG0: bits a weight after rounding to multiples of step"
    )


if __name__ == "__main__":
    main()
