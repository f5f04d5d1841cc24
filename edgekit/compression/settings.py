"""What `edgekit compress` is told: one YAML file, read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from edgekit.errors import EdgekitError, RecipeError
from edgekit.methods.backslash import Rate
from edgekit.methods.bitnet import BitNet
from edgekit.methods.distill import Distillation
from edgekit.methods.eora import Compensation
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration, Method
from edgekit.methods.lora import Lora
from edgekit.methods.prune import Pruning
from edgekit.methods.rate_quantize import Budget
from edgekit.methods.salt import Salt
from edgekit.methods.sensitivity import Scan
from edgekit.methods.ternarize import Ternary
from edgekit.methods.training import Training
from edgekit.strict import build, read_yaml, suggest

VERSION = 1
POST_TRAINING = ("gptq", "ternarize", "eora", "lora", "sensitivity")
TAUGHT = ("salt", "distill")
METHODS = ("backslash", "prune", "2:4", "bitnet", *TAUGHT, "rate-quantize", *POST_TRAINING, "none")
UNTRAINED = ("rate-quantize", *POST_TRAINING)
SECTIONS = (
    "rate",
    "prune",
    "bitnet",
    "salt",
    "distill",
    "quantize",
    "calibration",
    "gptq",
    "ternarize",
    "eora",
    "lora",
    "sensitivity",
)
"""What some methods read and others do not."""
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
    """A method, its settings, and how long to train (what is in UNTRAINED does not). What is left out has its class's defaults.

    A section of a method that is not the one used is allowed, so that one file can serve several.
    """

    version: int
    data: Data | None = None  # needed by whatever trains
    method: str = "backslash"
    training: Training = field(default_factory=Training)
    rate: Rate | None = None
    prune: Pruning | None = None
    bitnet: BitNet | None = None
    salt: Salt | None = None
    distill: Distillation | None = None
    quantize: Budget | None = None
    calibration: Calibration | None = None
    gptq: Gptq | None = None  # read by gptq, and by eora and lora that compress so
    ternarize: Ternary | None = None
    eora: Compensation | None = None
    lora: Lora | None = None
    sensitivity: Scan | None = None
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
        elif self.method in POST_TRAINING:
            self._check_post_training()
        elif self.training.steps and self.data is None:
            raise RecipeError("compress.data: missing; training needs examples (or set training.steps: 0)")
        if self.method in TAUGHT:
            self._check_teacher()
        if self.student == "backslash":
            self._check_rate()
        if self.student == "bitnet":
            self._check_ramp()
        steps = self.pruning().steps
        if self.student == "prune" and steps > max(1, self.training.steps):
            raise RecipeError(
                f"compress.prune.steps: {steps} is more than training.steps, {self.training.steps}; lower it or train longer"
            )

    def _check_budget(self) -> None:
        if self.quantize is None:
            raise RecipeError("compress.quantize: missing; give a budget, such as {bits: 3} or {loss: 0.01}")
        if self.data is None and (self.quantize.loss is not None or self.quantize.moments != "none"):
            raise RecipeError(
                "compress.data: missing; rate-quantize needs examples for Hessians and losses (or a budget of bits with "
                "moments: none)"
            )

    def _check_post_training(self) -> None:
        examples = {"eora": "{of: gptq, rank: 32}", "lora": "{adapter: DIRECTORY}", "sensitivity": "{bits: 5}"}
        if self.method in examples and getattr(self, self.method) is None:
            raise RecipeError(f"compress.{self.method}: missing; give for example {examples[self.method]}")
        if self.data is None and self.post_training().of != "none":
            raise RecipeError(f"compress.data: missing; {self.method} needs examples to calibrate with")
        if self.data is None and self.method in ("eora", "sensitivity"):
            raise RecipeError(f"compress.data: missing; {self.method} needs examples to calibrate with")

    def _check_teacher(self) -> None:
        if getattr(self, self.method) is None:
            example = "{teacher: MODEL, steps: 200}" if self.method == "salt" else "{teacher: MODEL}"
            raise RecipeError(f"compress.{self.method}: missing; give for example {example}")
        if not self.training.steps:
            raise RecipeError(
                f"compress.training.steps: 0, but {self.method} works by training; give at least some hundred"
            )
        if self.method == "salt" and self.salting().steps > self.training.steps:
            raise RecipeError(
                f"compress.salt.steps: {self.salting().steps} is more than training.steps, {self.training.steps}; the teacher helps in "
                "the first of them"
            )

    def _check_ramp(self) -> None:
        if not self.training.steps:
            raise RecipeError("compress.training.steps: 0, but bitnet works by training; give at least some hundred")
        if self.ternary().ramp > self.training.steps:
            raise RecipeError(
                f"compress.bitnet.ramp: {self.ternary().ramp} is more than training.steps, {self.training.steps}; a model that ends "
                "inside the ramp was never ternary"
            )

    def _check_rate(self) -> None:
        if not self.training.steps:
            raise RecipeError("compress.training.steps: 0, but backslash works by training; give at least some hundred")
        if self.rating().steps > self.training.steps:
            raise RecipeError(
                f"compress.rate.steps: {self.rating().steps} is more than training.steps, {self.training.steps}; the rate term acts "
                "in the first of them"
            )

    @property
    def student(self) -> str:
        """The method that constrains the weights while they are trained."""
        return self.distill.student if self.method == "distill" and self.distill is not None else self.method

    def ternary(self) -> BitNet:
        """How layers become ternary."""
        return self.bitnet or BitNet()

    def salting(self) -> Salt:
        """Who teaches at first."""
        assert self.salt is not None
        return self.salt

    def distillation(self) -> Distillation:
        """Who teaches."""
        assert self.distill is not None
        return self.distill

    def rating(self) -> Rate:
        """The rate term's settings."""
        return self.rate or Rate(steps=max(1, round(CONSTRAINED * self.training.steps)))

    def pruning(self) -> Pruning:
        """The settings of either kind of pruning."""
        given = self.prune or Pruning()
        return replace(given, pattern="2:4") if self.student == "2:4" else given

    def budget(self) -> Budget:
        """What rate-aware quantization may cost."""
        assert self.quantize is not None
        return self.quantize

    def post_training(self) -> Method:
        """How weights are rounded without training, and what compensates it."""
        compensation = self.eora if self.method == "eora" else None
        own = {"eora": self.eora and self.eora.of, "lora": self.lora and self.lora.of, "sensitivity": "none"}
        return Method(
            own.get(self.method, self.method) or "none", self.gptq or Gptq(), self.ternarize or Ternary(), compensation
        )

    @property
    def keeps_weights(self) -> bool:
        """Whether what was compressed before stays as it is and gets something beside it."""
        merged = self.method == "lora" and self.lora is not None and self.lora.merge
        return self.method in ("eora", "lora") and self.post_training().of == "none" and not merged

    def with_method(self, method: str | None) -> Compression:
        """The same with another method."""
        return self if method is None else replace(self, method=method)

    def to_dict(self) -> dict[str, Any]:
        """What was used, defaults included; sections of other methods are left out."""
        found = {k: v for k, v in asdict(self).items() if k not in SECTIONS}
        if self.method in UNTRAINED:
            del found["training"]
        if self.method == "rate-quantize":
            found["quantize"] = asdict(self.budget())
        if self.method in POST_TRAINING:
            found |= self._post_training_sections()
        if self.method in TAUGHT:
            found[self.method] = asdict(self.salting() if self.method == "salt" else self.distillation())
        if self.student == "backslash":
            found["rate"] = asdict(self.rating())
        if self.student in ("prune", "2:4"):
            found["prune"] = asdict(self.pruning())
        if self.student == "bitnet":
            found["bitnet"] = asdict(self.ternary())
        return found

    def _post_training_sections(self) -> dict[str, Any]:
        method = self.post_training()
        found = {"calibration": asdict(self.calibration or Calibration())}
        if method.of in ("gptq", "int4"):
            found["gptq"] = asdict(method.gptq)
        if method.of == "ternarize":
            found["ternarize"] = asdict(method.ternary)
        if method.compensation is not None:
            found["eora"] = asdict(method.compensation)
        if self.method == "lora" and self.lora is not None:
            found["lora"] = asdict(self.lora)
        if self.method == "sensitivity" and self.sensitivity is not None:
            found["sensitivity"] = asdict(self.sensitivity)
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
