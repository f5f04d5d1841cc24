"""Teachers of ``salt`` and ``distill``: loaded, asked once, their answers given to the training with the examples."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.compression.job import Job
from edgekit.compression.material import Material, near, read_tokenizer
from edgekit.errors import UsageError
from edgekit.frontend.source import ModuleSource
from edgekit.methods.distill import INDICES, Distillation, cached, distilled, predictions, weights_digest, with_targets
from edgekit.methods.examples import Examples, device_of
from edgekit.methods.processes import processes
from edgekit.methods.salt import Salt, Staged, Transition, challenge, hardest, salted
from edgekit.methods.training import epoch_order


@dataclass(frozen=True)
class Classroom:
    """The teachers of a job; ``digests`` are checksums of those that were loaded, by name."""

    job: Job
    digests: dict[str, str] = field(default_factory=dict)

    def teacher(self, name: str) -> nn.Module:
        """The teacher's model in memory. Raises SourceError, or UsageError for another vocabulary than the pupil's."""
        pupil = self.job.source
        teacher = self.job.load(near(self.job.directory, name))
        if teacher.task != pupil.task:
            raise UsageError(f"{name}: a model for {teacher.task} cannot teach one for {pupil.task}")
        ours, theirs = vocabulary(pupil), vocabulary(teacher)
        if ours is not None and theirs is not None and ours != theirs:
            other = next((t for t in theirs if ours.get(t) != theirs[t]), next(iter(ours)))
            raise UsageError(
                f"{name}: its vocabulary is another one ({len(theirs)} tokens against {len(ours)}, {other!r} for "
                "example); give a teacher with the same tokenizer"
            )
        self.digests[name] = weights_digest(teacher.module)
        return teacher.module.to(device_of(pupil.module)).eval()

    def answers(
        self, teacher: nn.Module, examples: Examples, data: Material, lesson: Salt | Distillation
    ) -> dict[str, Tensor]:
        """What a teacher answers to examples, asked once. Raises UsageError for classes that the pupil has not."""
        job = self.job
        cache = job.directory / Path(lesson.cache).expanduser() if lesson.cache else job.answers
        ask = partial(cached, cache, teacher, data.objective, examples, lesson.top, lesson.temperature)
        with processes().main_process_first():  # the others find its answers
            answers = ask(name=lesson.teacher, progress=job.progress)
        pupil = job.source.module
        with torch.no_grad():
            batch = next(data.evaluation.batches(1, device_of(pupil)))
            width = predictions(data.objective, pupil, batch)[0].shape[-1]
        largest = int(answers[INDICES].max())
        if largest >= width:
            raise UsageError(
                f"{job.source.name}: has {width} classes, its teacher answers {largest}; give a teacher with the same "
                "ones"
            )
        return answers


def with_teacher(room: Classroom, data: Material) -> tuple[Material, Transition | None]:
    """What there is to learn, with a teacher's answers; and for SALT what counts its two stages."""
    settings = room.job.settings
    if settings.method == "salt":
        assert settings.salt is not None
        return _salted(room, data, settings.salt)
    assert settings.distill is not None
    return _distilled(room, data, settings.distill), None


def _distilled(room: Classroom, data: Material, lesson: Distillation) -> Material:
    pupil = room.job.source.module
    teacher = room.teacher(lesson.teacher) if lesson.teacher else copy.deepcopy(pupil).eval()
    answers = room.answers(teacher, data.train, data, lesson)
    return replace(data, objective=distilled(data.objective, lesson), train=with_targets(data.train, answers))


def _salted(room: Classroom, data: Material, salt: Salt) -> tuple[Material, Transition]:
    teacher = room.teacher(salt.teacher)
    rows = _rows(room, data, salt, teacher)
    answers = room.answers(teacher, Examples(data.train.select(rows)), data, salt)
    transition = Transition(room.job.source.module, salt.steps)
    train = Staged(data.train.arrays, chosen=rows, answers=answers, transition=transition)
    return replace(data, objective=salted(data.objective, salt, transition), train=train), transition


def _rows(room: Classroom, data: Material, salt: Salt, teacher: nn.Module) -> Tensor:
    """The examples of the first stage in their order: SALT_DS's choice, or the first epoch of plain training."""
    training, count = room.job.settings.training, len(data.train)
    order = epoch_order(training.seed, count, 0)
    if salt.share < 1:
        room.job.progress("choose examples", 0.0)
        scorer = room.teacher(salt.scorer) if salt.scorer else teacher
        scores = challenge(scorer, data.objective, data.train, salt.within, salt.unlearnable)
        return order[torch.isin(order, hardest(scores, salt.share))]
    return order[: salt.steps * min(training.batch_size, count)]


def vocabulary(source: ModuleSource) -> dict[str, int] | None:
    """A model's tokens with their numbers; None where it has no tokenizer."""
    file = next((asset for asset in source.assets if asset.name == "tokenizer.json"), None)
    if file is None:
        return None
    return dict(read_tokenizer(file).get_vocab())
