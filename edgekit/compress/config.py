"""What `edgekit compress` is told: one YAML file, read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from edgekit.compress.backslash import Rate
from edgekit.compress.prune import Pruning
from edgekit.compress.rate_quantize import Budget
from edgekit.compress.training import Training
from edgekit.errors import EdgekitError, RecipeError
from edgekit.schema import build, read_yaml, suggest

VERSION = 1
METHODS = ("backslash", "prune", "2:4", "rate-quantize", "none")
UNTRAINED = ("rate-quantize",)
REPORT_STEP = 2.0**-8
CONSTRAINED = 0.75
"""Share of the steps that the rate term acts in, where the file does not say."""


@dataclass(frozen=True)
class Data:
    """Where examples come from; paths are relative to the YAML file.

    ``train`` and ``evaluate`` are text files or directories of them (.txt, .md) for language models, one .npz with arrays
    under the names of the model's inputs and ``labels``, or one ``package.module:function`` that returns such arrays as a
    dict or as (inputs, labels). Without ``evaluate``, ``held_out`` of the examples are kept for it.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...] = ()
    held_out: float = 0.1
    length: int = 128  # tokens of an example (language models)
    most: int = 0  # train with so many examples at most; 0 takes all


@dataclass(frozen=True)
class Compression:
    """A method, its settings, and how long to train (rate-quantize does not). What is left out has its class's defaults.

    A section of a method that is not the one used is allowed, so that one file can serve several.
    """

    version: int
    data: Data | None = None  # needed by whatever trains
    method: str = "backslash"
    training: Training = field(default_factory=Training)
    rate: Rate | None = None
    prune: Pruning | None = None
    quantize: Budget | None = None
    report_step: float = REPORT_STEP  # weights are rounded to multiples of it in the rate report

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecipeError(f"compress.version: {self.version} is not {VERSION}, the version this edgekit reads")
        if self.method not in METHODS:
            raise RecipeError(
                f"compress.method: '{self.method}' is not one of {', '.join(METHODS)}{suggest(self.method, METHODS)}"
            )
        if not self.report_step > 0:
            raise RecipeError(f"compress.report_step: {self.report_step} is not above 0")
        if self.data is not None:
            _check_data(self.data)
        if self.method == "rate-quantize":
            self._check_budget()
        elif self.training.steps and self.data is None:
            raise RecipeError("compress.data: missing; training needs examples (or set training.steps: 0)")
        if self.method == "backslash":
            self._check_rate()
        steps = self.pruning().steps
        if self.method == "prune" and steps > max(1, self.training.steps):
            raise RecipeError(
                f"compress.prune.steps: {steps} is more than training.steps, {self.training.steps}; lower it or train longer"
            )

    def _check_budget(self) -> None:
        if self.quantize is None:
            raise RecipeError("compress.quantize: missing; give a budget, such as {bits: 3} or {loss: 0.01}")
        if self.data is None and (self.quantize.loss is not None or self.quantize.moments != "none"):
            raise RecipeError(
                "compress.data: missing; rate-quantize needs examples for second moments and losses (or a budget of bits with "
                "moments: none)"
            )

    def _check_rate(self) -> None:
        if not self.training.steps:
            raise RecipeError("compress.training.steps: 0, but backslash works by training; give at least some hundred")
        if self.rating().steps > self.training.steps:
            raise RecipeError(
                f"compress.rate.steps: {self.rating().steps} is more than training.steps, {self.training.steps}; the rate term acts "
                "in the first of them"
            )

    def rating(self) -> Rate:
        """The rate term's settings."""
        return self.rate or Rate(steps=max(1, round(CONSTRAINED * self.training.steps)))

    def pruning(self) -> Pruning:
        """The settings of either kind of pruning."""
        given = self.prune or Pruning()
        return replace(given, pattern="2:4") if self.method == "2:4" else given

    def budget(self) -> Budget:
        """What rate-aware quantization may cost."""
        assert self.quantize is not None
        return self.quantize

    def with_method(self, method: str | None) -> Compression:
        """The same with another method."""
        return self if method is None else replace(self, method=method)

    def to_dict(self) -> dict[str, Any]:
        """What was used, defaults included; sections of other methods are left out."""
        found = {k: v for k, v in asdict(self).items() if k not in ("rate", "prune", "quantize")}
        if self.method in UNTRAINED:
            del found["training"]
            found["quantize"] = asdict(self.budget())
        if self.method == "backslash":
            found["rate"] = asdict(self.rating())
        if self.method in ("prune", "2:4"):
            found["prune"] = asdict(self.pruning())
        return found

    @staticmethod
    def load(path: Path, method: str | None = None) -> Compression:
        """A YAML file, with another ``method`` if one is given. Raises RecipeError or UsageError naming file and key."""
        data = read_yaml(path, RecipeError)
        if method is not None and isinstance(data, dict):
            data = {**data, "method": method}
        try:
            return cast(Compression, build(Compression, data, "compress", RecipeError))
        except EdgekitError as error:
            raise type(error)(f"{path}: {error}") from None


def _check_data(data: Data) -> None:
    if not data.train:
        raise RecipeError("compress.data.train: empty; give text files, an .npz or package.module:function")
    if not 0 < data.held_out < 1:
        raise RecipeError(f"compress.data.held_out: {data.held_out} is not a share between 0 and 1")
    if data.length < 2 or data.most < 0:
        raise RecipeError(f"compress.data: length {data.length}, most {data.most}: at least 2 and 0")
