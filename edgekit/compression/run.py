"""From a model to a smaller one."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgekit.absmean import inverse_scale
from edgekit.coding.streams import coded_bits
from edgekit.compression.material import Material, material
from edgekit.compression.post_training import post_trained
from edgekit.compression.saving import RECIPE, check_output, write
from edgekit.compression.settings import POST_TRAINING, TAUGHT, Compression
from edgekit.compression.teaching import Classroom, check_ternary, with_teacher
from edgekit.errors import UnsupportedError, UsageError
from edgekit.frontend.loading import load_module
from edgekit.frontend.source import ModuleSource
from edgekit.frontend.streamed import materialize
from edgekit.low_rank import fold_branches
from edgekit.methods import Backslash, Pruner, RateReport, rate_report
from edgekit.methods.bitnet import (
    BitLinear,
    BitNetTraining,
    convert,
    convertible,
    ternary_weights,
)
from edgekit.methods.bitnet_checkpoint import check_rows
from edgekit.methods.example_files import digest
from edgekit.methods.masks import matrices
from edgekit.methods.rate_quantize import RateQuantizer, chosen_report
from edgekit.methods.resume import (
    FinishedBlocks,
    claim_checkpoint,
    forget_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from edgekit.methods.training import Constraint, History, Run
from edgekit.spec.progress import Progress

NOT_RESUMED = ("rate-quantize", "sensitivity")
BATCH = 32
"""Examples at a time where nothing is trained."""


@dataclass(frozen=True)
class Compressed:
    """What came out: the rate of the weights before and after, the training's history, and what ``export`` takes.

    ``layers`` says what became of each layer or group of layers, ``recipe`` is the file that stores it so, ``seconds`` are wall time.
    """

    source: str
    method: str
    settings: dict[str, Any]
    before: RateReport
    after: RateReport
    history: History
    seconds: float
    exportable: str
    layers: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""

    def lines(self) -> list[str]:
        """For people."""
        first, last = self.history.evaluations[:1], self.history.evaluations[-1:]
        names = [name for name in (first[0] if first else ()) if name not in ("step", "zeros")]
        scores = [f"{name}: {first[0][name]:.4f} -> {last[0][name]:.4f}" for name in names]
        changed = [
            f"{name}: {getattr(self.before.total, key):.3f} -> {getattr(self.after.total, key):.3f}"
            for name, key in (("share of zeros", "zeros"), ("entropy, bits a weight", "entropy"), ("EG0", "golomb"))
        ]
        steps = f"{self.method}, {len(self.history.losses)} steps, {self.seconds:.0f} s"
        stored = f" --recipe {self.recipe}" if self.recipe else ""
        return [
            *self.after.lines(),
            steps,
            *scores,
            *changed,
            f"next: edgekit export {self.exportable}{stored} -o BUNDLE",
        ]

    def to_json(self) -> dict[str, Any]:
        """What compress.json holds."""
        return {
            "version": 1,
            "source": self.source,
            "method": self.method,
            "settings": self.settings,
            "seconds": round(self.seconds, 3),
            "losses": self.history.curve(),
            "evaluations": self.history.evaluations,
            "rate_before": self.before.to_json()["total"],
            "rate": self.after.to_json(),
            "layers": self.layers,
            "recipe": self.recipe,
            "export": self.exportable,
        }


def compress(
    source: str | Path,
    config: str | Path | Compression,
    output: str | Path,
    *,
    method: str | None = None,
    resume: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Progress = lambda what, share: None,
) -> Compressed:
    """Makes a smaller model of ``source`` (a Hugging Face directory or id, a .gguf, ``package.module:factory``) in ``output``.

    ``config`` is a YAML file (edgekit.compression.settings), ``method`` overrides its method. A training writes its state beside
    ``output`` every ``checkpoint_every`` steps and when it is interrupted, GPTQ and its like every block that is through;
    ``resume`` goes on from there and ends with the same bits, ``force`` begins anew and replaces an earlier result. Nothing else is at ``output`` before it is whole.

    Raises SourceError, RecipeError, UnsupportedError or UsageError for a model, data or settings that do not go together,
    CheckFailed when training diverges or a budget cannot be kept, KeyboardInterrupt when it is interrupted.
    """
    began = time.perf_counter()
    source, output = str(source), Path(output)
    config = Path(config) if isinstance(config, str) else config
    settings = Compression.load(config, method) if isinstance(config, Path) else config.with_method(method)
    if resume and settings.method in NOT_RESUMED:
        raise UsageError(f"--resume: {settings.method} keeps no checkpoint; leave --resume out")
    check_output(output, force)
    state = claim_checkpoint(output, resume, force)
    progress("load the model", 0.0)
    opened = _load(source, allow_pickle)
    if not settings.keeps_weights:
        fold_branches(opened.module)
    before = _rate(opened.module, settings.report_step)
    data = material(opened, settings, _directory(config))
    scratch = state.with_name(f".{output.absolute().name}.answers")
    layers: list[dict[str, Any]] = []
    after = recipe = None
    if settings.method == "rate-quantize":
        history, after, layers = _quantized(opened.module, settings, data, progress)
    elif settings.method in POST_TRAINING:
        finished = FinishedBlocks(state, _belongs(source, settings, data), resume)
        history, layers, recipe = post_trained(
            opened, settings, data, _directory(config), lambda name: _load(name, allow_pickle), finished, progress
        )
    else:
        room = Classroom(_directory(config), scratch, lambda name: _load(name, allow_pickle), progress)
        opened, history = _trained(opened, settings, data, source, state, resume, room)
    after = after or _rate(opened.module, settings.report_step)
    exportable = f"{source.partition('@')[0]}@{output}" if opened.kind == "factory" else str(output)
    seconds = time.perf_counter() - began
    result = Compressed(
        source, settings.method, settings.to_dict(), before, after, history, seconds, exportable, layers,
        str(output / RECIPE) if recipe is not None else "",
    )  # fmt: skip
    progress("write the model", 1.0)
    write(opened, result.to_json(), output, recipe, settings.ternary().form)
    forget_checkpoint(state)
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def _belongs(source: str, settings: Compression, data: Material | None) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    found = {"source": source, **settings.to_dict()}
    found.get("training", {}).pop("checkpoint_every", None)
    found.get("bitnet", {}).pop("form", None)  # how the result is saved
    if data is not None:
        found |= {"examples": digest(data.train), "evaluation": digest(data.evaluation)}
    return found


def _directory(config: Path | Compression) -> Path:
    """What paths in a configuration are relative to."""
    return config.parent if isinstance(config, Path) else Path()


def rate_of(source: str, step: float, *, allow_pickle: bool = False) -> RateReport:
    """The rate of a model's matrices and convolutions as they are, rounded to multiples of ``step``."""
    model = _load(source, allow_pickle).module
    return _rate(model, step)


def _load(source: str, allow_pickle: bool) -> ModuleSource:
    """The model in memory, float32 and trainable."""
    opened = load_module(source, allow_pickle=allow_pickle)
    model = materialize(opened.module).float().eval()  # a part in training mode would drop inputs at random
    if any(hasattr(module, "activation_block_size") for module in model.modules()):
        raise UnsupportedError(f"{source}: {opened.architecture} is ternary already; edgekit export takes it as it is")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return opened


def _rate(model: nn.Module, step: float) -> RateReport:
    """Of all matrices; ternary layers as what they are rounded to, at their own step."""
    weights = {name: weight.detach() for name, weight in matrices(model).items()}
    steps = dict.fromkeys(weights, step)
    for name, layer in model.named_modules():
        if isinstance(layer, BitLinear):
            weights[f"{name}.weight"] = ternary_weights(layer.weight.detach())
            steps[f"{name}.weight"] = float(1 / inverse_scale(layer.weight.detach()))
    return rate_report(weights, steps, coded_bits)


def _constraint(model: nn.Module, settings: Compression) -> Constraint | None:
    if settings.student == "backslash":
        return Backslash(model, settings.rating())
    if settings.student == "bitnet":
        return BitNetTraining(model, settings.ternary())
    return Pruner(model, settings.pruning()) if settings.student in ("prune", "2:4") else None


def _trained(
    opened: ModuleSource,
    settings: Compression,
    data: Material | None,
    source: str,
    state: Path,
    resume: bool,
    room: Classroom,
) -> tuple[ModuleSource, History]:
    """The trained model, which may be another module, and how it went."""
    model, transition, belongs = opened.module, None, _belongs(source, settings, data)
    if settings.student == "bitnet":
        check_ternary(opened)
        names = convertible(model, settings.ternary().exclude)
        check_rows({name: model.get_submodule(name) for name in names}, settings.ternary().form)
    if settings.method in TAUGHT and data is not None:
        data, transition = with_teacher(opened, settings, data, room)
    if settings.student == "bitnet":
        model = convert(model, settings.ternary())
        opened = replace(opened, module=model)
    constraint = transition or _constraint(model, settings)
    if data is None:
        return opened, History()
    run = Run(
        model, data.objective, data.train, settings.training, constraint=constraint, evaluation=data.evaluation,
        hold_after=settings.rating().steps if settings.student == "backslash" else None,
    )  # fmt: skip
    belongs |= {"teachers": room.digests}
    if resume:
        run.load_state_dict(read_checkpoint(state, belongs))
    room.progress("train", run.step / max(1, settings.training.steps))
    return opened, run.go(keep=lambda kept: write_checkpoint(state, kept, belongs), progress=room.progress)


def _quantized(
    model: nn.Module, settings: Compression, data: Material | None, progress: Progress
) -> tuple[History, RateReport, list[dict[str, float | str]]]:
    """Steps for a budget; the report is at those steps."""
    budget = settings.budget()
    if data is None:
        quantizer, history = RateQuantizer(model, (), budget), History()
    else:
        some = type(data.train)(data.train.select(slice(0, budget.examples)))
        batches = [data.objective.inputs(batch) for batch in some.batches(BATCH)]
        answer = data.objective.answer
        quantizer = RateQuantizer(model, batches, budget, lambda batch: answer(model, batch), progress)
        history = History(evaluations=[{"step": 0, **data.objective.evaluate(model, data.evaluation)}])
    trials = 0

    def loss() -> float:
        nonlocal trials
        assert data is not None
        trials += 1
        progress("choose steps", min(1.0, trials / 16))
        return data.objective.evaluate(model, data.evaluation)["loss"]

    if budget.loss is not None:
        before = history.evaluations[0]["loss"]
        # An encoder is its own reference: its loss is a distance to it, and begins at zero.
        limit = budget.loss if before < 1e-6 else before * (1 + budget.loss)
        chosen = quantizer.within_loss(loss, limit)
    else:
        chosen = quantizer.within_bits(8 * budget.bytes if budget.bytes else (budget.bits or 0) * quantizer.count)
    quantizer.apply(chosen)
    if data is not None:
        history.evaluations.append({"step": 0, **data.objective.evaluate(model, data.evaluation)})
    names = {id(p): n for n, p in model.named_parameters()}
    steps = {names[id(layer.parameter)]: choice.step for layer, choice in zip(quantizer.layers, chosen, strict=True)}
    weights = {name: weight.detach() for name, weight in matrices(model).items()}
    report = rate_report(weights, {n: steps.get(n, settings.report_step) for n in weights}, coded_bits)
    return history, report, chosen_report(quantizer.layers, chosen)
