"""One run of ``edgekit compress``: what each kind of method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.compression.material import Material
from edgekit.compression.settings import Compression
from edgekit.frontend.source import ModuleSource
from edgekit.methods import RateReport
from edgekit.methods.example_files import digest
from edgekit.methods.training import History
from edgekit.recipe import Recipe
from edgekit.spec.progress import Progress

MAY_DIFFER = ("checkpoint_every", "learning_rate", "second_learning_rate", "clip")
"""Of a training that goes on: a run that diverged needs other ones."""


@dataclass(frozen=True)
class Job:
    """What to compress and how.

    name: the source as the user gave it. data: None where the settings name none. directory: what paths in the settings
    are relative to. load: reads another model, a teacher or an original. checkpoint: where the run keeps its state, for
    ``resume``.
    """

    name: str
    source: ModuleSource
    settings: Compression
    data: Material | None
    directory: Path
    load: Callable[[str], ModuleSource]
    checkpoint: Path
    resume: bool
    progress: Progress

    @property
    def answers(self) -> Path:
        """Where a teacher's answers are kept until the run is through, unless the settings name a cache."""
        return self.checkpoint.with_suffix(".answers")

    @property
    def start(self) -> Path:
        """Where what a training begins with is kept until the run is through."""
        return self.checkpoint.with_suffix(".start")

    def belongs(self) -> dict[str, Any]:
        """What a checkpoint of this run belongs to."""
        settings = self.settings.to_dict()
        for key in MAY_DIFFER:
            settings.get("training", {}).pop(key, None)
        settings.get("bitnet", {}).pop("form", None)  # how the result is saved
        if self.data is None:
            return {"source": self.name, **settings}
        examples = {"examples": digest(self.data.train), "evaluation": digest(self.data.evaluation)}
        return {"source": self.name, **settings, **examples}


@dataclass(frozen=True)
class Outcome:
    """The compressed model, which may be another module than the source's, and how it came about.

    layers: what became of each layer or group of layers. recipe: what stores the model so, where it needs its own.
    rate: the report, where its steps are the method's own.
    """

    source: ModuleSource
    history: History
    layers: list[dict[str, Any]] = field(default_factory=list)
    recipe: Recipe | None = None
    rate: RateReport | None = None
