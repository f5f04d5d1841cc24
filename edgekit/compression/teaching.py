"""Teachers of ``salt`` and ``distill``: loaded, asked once, and their answers given to the training beside the examples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.compression.material import Material, near, read_tokenizer
from edgekit.compression.settings import Compression
from edgekit.errors import UnsupportedError, UsageError
from edgekit.frontend.source import ModuleSource
from edgekit.methods.distill import INDICES, cached, distilled, predictions, weights_digest, with_targets
from edgekit.methods.examples import Examples
from edgekit.methods.salt import Staged, Transition, challenge, hardest, salted
from edgekit.methods.training import epoch_order
from edgekit.spec.progress import Progress

Load = Callable[[str], ModuleSource]


@dataclass(frozen=True)
class Classroom:
    """Where a teacher is looked for and where its answers are kept: in ``scratch`` unless the settings name a cache.

    ``digests`` are checksums of the teachers that were loaded, by name.
    """

    directory: Path
    scratch: Path
    load: Load
    progress: Progress
    digests: dict[str, str] = field(default_factory=dict)

    def teacher(self, name: str, pupil: ModuleSource) -> nn.Module:
        """The teacher's model in memory. Raises SourceError, or UsageError for another vocabulary than the pupil's."""
        teacher = self.load(near(self.directory, name))
        if teacher.task != pupil.task:
            raise UsageError(f"{name}: a model for {teacher.task} cannot teach one for {pupil.task}")
        ours, theirs = vocabulary(pupil), vocabulary(teacher)
        if ours is not None and theirs is not None and ours != theirs:
            other = next((t for t in theirs if ours.get(t) != theirs[t]), next(iter(ours)))
            raise UsageError(
                f"{name}: its vocabulary is another one ({len(theirs)} tokens against {len(ours)}, {other!r} for example); give a "
                "teacher with the same tokenizer"
            )
        self.digests[name] = weights_digest(teacher.module)
        return teacher.module.eval()

    def cache(self, given: str) -> Path:
        """Where answers go."""
        return self.directory / Path(given).expanduser() if given else self.scratch


def with_teacher(
    source: ModuleSource, settings: Compression, data: Material, room: Classroom
) -> tuple[Material, Transition | None]:
    """What there is to learn, with a teacher's answers; and for SALT what counts its two stages."""
    if settings.method == "distill":
        return _distilled(source, settings, data, room), None
    return _salted(source, settings, data, room)


def _distilled(source: ModuleSource, settings: Compression, data: Material, room: Classroom) -> Material:
    lesson = settings.distillation()
    teacher = room.teacher(lesson.teacher, source) if lesson.teacher else copy.deepcopy(source.module).eval()
    answers = cached(
        room.cache(lesson.cache), teacher, data.objective, data.train, lesson.top, lesson.temperature,
        name=lesson.teacher, progress=room.progress,
    )  # fmt: skip
    _check_width(source, answers, data)
    return replace(data, objective=distilled(data.objective, lesson), train=with_targets(data.train, answers))


def _salted(
    source: ModuleSource, settings: Compression, data: Material, room: Classroom
) -> tuple[Material, Transition]:
    salt = settings.salting()
    teacher = room.teacher(salt.teacher, source)
    rows = _rows(settings, data, room, source, teacher)
    some = Examples(data.train.select(rows))
    answers = cached(
        room.cache(salt.cache), teacher, data.objective, some, salt.top, salt.temperature, name=salt.teacher,
        progress=room.progress,
    )  # fmt: skip
    _check_width(source, answers, data)
    transition = Transition(source.module, salt.steps)
    train = Staged(data.train.arrays, chosen=rows, answers=answers, transition=transition)
    return replace(data, objective=salted(data.objective, salt, transition), train=train), transition


def _rows(settings: Compression, data: Material, room: Classroom, source: ModuleSource, teacher: nn.Module) -> Tensor:
    """The examples of the first stage in their order: SALT_DS's choice, or what plain training would see in its first epoch."""
    salt, count = settings.salting(), len(data.train)
    order = epoch_order(settings.training.seed, count, 0)
    if salt.share < 1:
        room.progress("choose examples", 0.0)
        scorer = room.teacher(salt.scorer, source) if salt.scorer else teacher
        scores = challenge(scorer, data.objective, data.train, salt.within, salt.unlearnable)
        return order[torch.isin(order, hardest(scores, salt.share))]
    return order[: salt.steps * min(settings.training.batch_size, count)]


def _check_width(source: ModuleSource, answers: dict[str, Tensor], data: Material) -> None:
    """A teacher that knows more classes than the pupil has asks for the impossible."""
    with torch.no_grad():
        width = predictions(data.objective, source.module, data.evaluation.select(slice(0, 1)))[0].shape[-1]
    largest = int(answers[INDICES].max())
    if largest >= width:
        raise UsageError(
            f"{source.name}: has {width} classes, its teacher answers {largest}; give a teacher with the same ones"
        )


def vocabulary(source: ModuleSource) -> dict[str, int] | None:
    """A model's tokens with their numbers; None where it has no tokenizer."""
    file = next((asset for asset in source.assets if asset.name == "tokenizer.json"), None)
    if file is None:
        return None
    return dict(read_tokenizer(file).get_vocab())


def check_ternary(source: ModuleSource) -> None:
    """Raises UnsupportedError for what the bitnet format cannot hold."""
    if source.kind not in ("hf", "gguf") or source.task != "text-generation":
        raise UnsupportedError(
            f"{source.name}: bitnet saves Hugging Face causal language models, this is {source.kind}, {source.task}; train other "
            "models with edgekit.methods.bitnet in your own loop"
        )
