"""Methods that train: with a constraint on the weights, with a teacher's answers, or with neither as a baseline."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from edgekit.compression.job import Job, Outcome
from edgekit.compression.recovering import recovered
from edgekit.compression.settings import Compression
from edgekit.compression.teaching import Classroom, with_teacher
from edgekit.errors import UnsupportedError
from edgekit.frontend.source import ModuleSource
from edgekit.methods import Backslash, Pruner
from edgekit.methods.bitnet import BitNetTraining, convert, convertible
from edgekit.methods.bitnet_checkpoint import check_rows
from edgekit.methods.processes import processes
from edgekit.methods.resume import Checkpoint, forget_checkpoint
from edgekit.methods.training import Constraint, History, Run
from edgekit.spec.methods import TAUGHT


def trained(job: Job) -> Outcome:
    """Trains a model; a ternary one may come out as another module. Without data it only gets its constraint."""
    if job.settings.method == "recover":
        return recovered(job)
    settings, data, source, transition = job.settings, job.data, job.source, None
    source.module.to(processes().device)
    room = Classroom(job)
    if settings.student == "bitnet":
        check_ternary(source, settings)
    if settings.kind == TAUGHT and data is not None:
        data, transition = with_teacher(room, data)
    if settings.student == "bitnet":
        source = replace(source, module=convert(source.module, settings.bitnet))
    constraint = transition or constraint_of(source.module, settings)
    if data is None:
        return Outcome(replace(source, module=source.module.cpu()), History())
    run = Run(
        source.module,
        data.objective,
        data.train,
        settings.training,
        constraint=constraint,
        evaluation=data.evaluation,
        hold_after=settings.rate_term().steps if settings.student == "backslash" else None,
    )
    checkpoint = Checkpoint(job.checkpoint, {**job.belongs(), "teachers": room.digests})
    if job.resume:
        run.resume(checkpoint)
    elif run.accelerator.is_main_process:
        forget_checkpoint(job.checkpoint)
    job.progress("train", run.step / max(1, settings.training.steps))
    history = run.go(checkpoint=checkpoint, progress=job.progress)
    source.module.cpu()
    return Outcome(source, history)


def constraint_of(model: nn.Module, settings: Compression) -> Constraint | None:
    """What the method does to the weights after each step."""
    if settings.student == "backslash":
        return Backslash(model, settings.rate_term())
    if settings.student == "bitnet":
        return BitNetTraining(model, settings.bitnet)
    return Pruner(model, settings.pruning()) if settings.student in ("prune", "2:4") else None


def check_ternary(source: ModuleSource, settings: Compression) -> None:
    """Raises UnsupportedError for what the bitnet format cannot hold."""
    if source.kind not in ("hf", "gguf") or source.task != "text-generation":
        raise UnsupportedError(
            f"{source.name}: bitnet saves Hugging Face causal language models, this is {source.kind}, {source.task}; "
            "train other models with edgekit.methods.bitnet in your own loop"
        )
    names = convertible(source.module, settings.bitnet.exclude)
    check_rows({name: source.module.get_submodule(name) for name in names}, settings.bitnet.form)
