"""From a model to a smaller one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edgekit.absmean import inverse_scale
from edgekit.coding.streams import coded_bits
from edgekit.compression.job import Job, Outcome
from edgekit.compression.material import material
from edgekit.compression.post_training import post_trained
from edgekit.compression.saving import RECIPE, check_output, write
from edgekit.compression.search import searched
from edgekit.compression.settings import Compression
from edgekit.compression.trained import trained
from edgekit.errors import UnsupportedError, UsageError
from edgekit.frontend.loading import load_module
from edgekit.frontend.source import ModuleSource
from edgekit.frontend.streamed import materialize
from edgekit.low_rank import fold_branches
from edgekit.methods import RateReport, rate_report
from edgekit.methods.bitnet import BitLinear, ternary_weights
from edgekit.methods.masks import matrices
from edgekit.methods.processes import processes
from edgekit.methods.resume import claim_checkpoint, forget_checkpoint
from edgekit.methods.training import History
from edgekit.spec.methods import POST_TRAINING, SEARCH, TAUGHT, TRAINING
from edgekit.spec.names import ENCODED
from edgekit.spec.progress import Progress

RUNS: dict[str, Callable[[Job], Outcome]] = {
    TRAINING: trained, TAUGHT: trained, POST_TRAINING: post_trained, SEARCH: searched,
}  # fmt: skip
"""What runs the methods of each kind."""


@dataclass(frozen=True)
class Compressed:
    """What came out: the rate of the weights before and after, the training's history, and what ``export`` takes.

    ``layers`` says what became of each layer or group of layers, ``recipe`` is the file that stores it so, ``seconds``
    are wall time.
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
        began = [row for row in self.history.evaluations[:-1] if row["step"] == 0]  # of recover: the original, rounded
        last = self.history.evaluations[-1:]
        names = [name for name in (last[0] if began else ()) if name not in ("step", "zeros")]
        scores = [f"{name}: {' -> '.join(f'{row[name]:.4f}' for row in [*began, *last])}" for name in names]
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
    """Makes a smaller model of ``source`` (a Hugging Face directory or id, a .gguf, ``package.module:factory``) in
    ``output``.

    ``config`` is a YAML file (edgekit.compression.settings), ``method`` overrides its method. A training writes its
    state beside ``output`` every ``checkpoint_every`` steps and when it is interrupted, GPTQ and its like every block
    that is through; ``resume`` goes on from there and ends with the same bits, ``force`` begins anew and replaces an
    earlier result. Nothing else is at ``output`` before it is whole.

    Raises SourceError, RecipeError, UnsupportedError or UsageError for a model, data or settings that do not go
    together, CheckFailed when training diverges or a budget cannot be kept, KeyboardInterrupt when it is interrupted.
    """
    began = time.perf_counter()
    source, output = str(source), Path(output)
    config = Path(config) if isinstance(config, str) else config
    settings = Compression.load(config, method) if isinstance(config, Path) else config.with_method(method)
    if resume and settings.kind == SEARCH:
        raise UsageError(f"--resume: {settings.method} keeps no checkpoint; leave --resume out")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and settings.kind not in (TRAINING, TAUGHT):
        raise UsageError(f"{settings.method}: runs in one process; start it without a launcher")
    first = not several or processes().is_main_process  # the one that tells and writes
    progress = progress if first else lambda what, share: None
    check_output(output, force)
    checkpoint = claim_checkpoint(output, resume, force)
    progress("load the model", 0.0)
    opened = _load(source, allow_pickle)
    if not settings.keeps_weights:
        fold_branches(opened.module)
    directory = config.parent if isinstance(config, Path) else Path()
    data = material(opened, settings, directory)
    before = _rate(opened.module, settings.report_step)
    load = partial(_load, allow_pickle=allow_pickle)
    job = Job(source, opened, settings, data, directory, load, checkpoint, resume, progress)
    outcome = RUNS[settings.kind](job)
    after = outcome.rate or _rate(outcome.source.module, settings.report_step)
    exportable = f"{source.partition('@')[0]}@{output}" if opened.kind == "factory" else str(output)
    result = Compressed(
        source,
        settings.method,
        settings.to_dict(),
        before,
        after,
        outcome.history,
        time.perf_counter() - began,
        exportable,
        outcome.layers,
        str(output / RECIPE) if outcome.recipe is not None else "",
    )
    progress("write the model", 1.0)
    if first:
        write(outcome.source, result.to_json(), output, outcome.recipe, settings.bitnet.form)
        forget_checkpoint(checkpoint)
        for left in (job.answers, job.start):
            shutil.rmtree(left, ignore_errors=True)
    if several:
        processes().wait_for_everyone()
    return result


def rate_of(source: str, step: float, *, allow_pickle: bool = False) -> RateReport:
    """The rate of a model's matrices and convolutions as they are, rounded to multiples of ``step``."""
    model = _load(source, allow_pickle).module
    return _rate(model, step)


def _load(source: str, allow_pickle: bool) -> ModuleSource:
    """The model in memory, float32 and trainable."""
    opened = load_module(source, allow_pickle=allow_pickle)
    if opened.task in ENCODED:
        raise UnsupportedError(
            f"{source}: {opened.architecture} has an encoder and a decoder; compress is for models with one of them"
        )
    model = materialize(opened.module).float().eval()  # a part in training mode would drop inputs at random
    if any(hasattr(module, "activation_block_size") for module in model.modules()):
        raise UnsupportedError(f"{source}: {opened.architecture} is ternary already; edgekit export takes it as it is")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return opened


def _rate(model: nn.Module, step: float) -> RateReport:
    """Rate report of all matrices; ternary layers use their own step."""
    weights = {name: weight.detach() for name, weight in matrices(model).items()}
    steps = dict.fromkeys(weights, step)
    for name, layer in model.named_modules():
        if isinstance(layer, BitLinear):
            weights[f"{name}.weight"] = ternary_weights(layer.weight.detach())
            steps[f"{name}.weight"] = float(1 / inverse_scale(layer.weight.detach()))
    return rate_report(weights, steps, coded_bits)
