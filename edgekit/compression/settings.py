"""What `edgekit compress` is told: one YAML file, read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from edgekit.errors import EdgekitError, RecipeError, UsageError
from edgekit.frontend.samples import DATA
from edgekit.methods.backslash import Rate
from edgekit.methods.bitnet import BitNet
from edgekit.methods.distill import Distillation
from edgekit.methods.eora import Compensation
from edgekit.methods.example_files import text_files
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration, Method
from edgekit.methods.lora import Lora
from edgekit.methods.prune import Pruning
from edgekit.methods.rate_quantize import Budget
from edgekit.methods.recover import Recovery
from edgekit.methods.salt import Salt
from edgekit.methods.sensitivity import Scan
from edgekit.methods.ternarize import Ternary
from edgekit.methods.training import Training
from edgekit.spec.methods import BY_NAME, POST_TRAINING, TAUGHT, TRAINING
from edgekit.strict import build, read_yaml, suggest

VERSION = 1
REPORT_STEP = 2.0**-8
CONSTRAINED = 0.75
"""Share of the steps that the rate term acts in, where the file does not say."""


@dataclass(frozen=True)
class Data:
    """Where examples come from; paths are relative to the YAML file.

    ``train`` and ``evaluate`` are text files or directories of them (.txt, .md) for language models, one .npz with
    arrays under the names of the model's inputs and ``labels``, or one ``package.module:function`` that returns such
    arrays as a dict or as (inputs, labels). Without ``evaluate``, ``held_out`` of the examples are kept for it.
    """

    train: tuple[str, ...]
    evaluate: tuple[str, ...] = ()
    held_out: float = 0.1
    length: int = 128  # tokens of an example (language models); 0: 256, or as many as the model takes
    most: int = 0  # train with so many examples at most; 0 takes all
    filled: bool = False  # language models: with general text, where train has less than calibration.examples


@dataclass(frozen=True)
class Compression:
    """A method, its settings, and how long to train. What is left out has its class's defaults.

    A section of a method that is not the one used is allowed, so that one file can serve several.
    """

    version: int
    data: Data | None = None  # needed by whatever trains
    method: str = "backslash"
    training: Training = field(default_factory=Training)
    rate: Rate | None = None  # left out: its defaults, over three quarters of the steps
    prune: Pruning = field(default_factory=Pruning)
    bitnet: BitNet = field(default_factory=BitNet)
    salt: Salt | None = None
    distill: Distillation | None = None
    recover: Recovery = field(default_factory=Recovery)
    quantize: Budget | None = None
    calibration: Calibration = field(default_factory=Calibration)
    gptq: Gptq = field(default_factory=Gptq)  # read by gptq, and by eora and lora that compress so
    ternarize: Ternary = field(default_factory=Ternary)
    eora: Compensation | None = None
    lora: Lora | None = None
    sensitivity: Scan | None = None
    report_step: float = REPORT_STEP  # weights are rounded to multiples of it in the rate report

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecipeError(f"compress.version: {self.version} is not {VERSION}, the version this edgekit reads")
        if self.method not in BY_NAME:
            raise RecipeError(
                f"compress.method: '{self.method}' is not one of {', '.join(BY_NAME)}{suggest(self.method, BY_NAME)}"
            )
        if not self.report_step > 0:
            raise RecipeError(f"compress.report_step: {self.report_step} is not above 0")
        method = BY_NAME[self.method]
        if method.example and getattr(self, method.section) is None:
            raise RecipeError(f"compress.{method.section}: missing; give for example {method.example}")
        if self.data is not None:
            _check_data(self.data)
        if method.kind in (TRAINING, TAUGHT):
            self._check_training(method.kind)
        elif self.data is None and self._needs_examples():
            raise RecipeError(f"compress.data: missing; {self.method} needs examples to calibrate with")

    def _check_training(self, kind: str) -> None:
        steps = self.training.steps
        if steps and self.data is None:
            raise RecipeError("compress.data: missing; training needs examples (or set training.steps: 0)")
        if not steps and (kind == TAUGHT or self.student in ("backslash", "bitnet")):
            raise RecipeError(
                f"compress.training.steps: 0, but {self.method} works by training; give at least some hundred"
            )
        stages = {
            "salt.steps": (self.salt.steps if self.salt else 0, "the teacher helps in the first of them"),
            "rate.steps": (self.rate_term().steps, "the rate term acts in the first of them"),
            "bitnet.ramp": (self.bitnet.ramp, "a model that ends inside the ramp was never ternary"),
            "prune.steps": (self.pruning().steps, "lower it or train longer"),
        }
        for key, (length, why) in stages.items():
            read = key.partition(".")[0] in self.sections()
            if read and length > max(1, steps):
                raise RecipeError(f"compress.{key}: {length} is more than training.steps, {steps}; {why}")

    def _needs_examples(self) -> bool:
        """Whether a method that does not train looks at examples with these settings."""
        if self.method == "rate-quantize":
            assert self.quantize is not None
            return self.quantize.loss is not None or self.quantize.moments != "none"
        return self.method in ("eora", "sensitivity") or self.layer_method().of != "none"

    @property
    def kind(self) -> str:
        """Of the method, one of edgekit.spec.methods."""
        return BY_NAME[self.method].kind

    @property
    def student(self) -> str:
        """The method that constrains the weights while they are trained."""
        return self.distill.student if self.method == "distill" and self.distill is not None else self.method

    def sections(self) -> set[str]:
        """The keys of the settings that the method reads."""
        sections = {BY_NAME[name].section for name in (self.method, self.student)}
        if self.kind in (TRAINING, TAUGHT):
            return {"training", *sections, *(("calibration",) if self.method == "recover" else ())}
        if self.method == "rate-quantize":
            return sections
        of = self.layer_method().of
        return {"calibration", *sections, *({"int4": "gptq"}.get(of, of),)} - {"none", "2:4"}

    def rate_term(self) -> Rate:
        """The rate term's settings."""
        return self.rate or Rate(steps=max(1, round(CONSTRAINED * self.training.steps)))

    def pruning(self) -> Pruning:
        """The settings of either kind of pruning."""
        return replace(self.prune, pattern="2:4") if self.student == "2:4" else self.prune

    def layer_method(self) -> Method:
        """How weights are rounded layer by layer, and what compensates it."""
        compensation = self.eora if self.method == "eora" else None
        own = {"eora": self.eora and self.eora.of, "lora": self.lora and self.lora.of, "sensitivity": "none"}
        return Method(own.get(self.method, self.method) or "none", self.gptq, self.ternarize, compensation)

    @property
    def keeps_weights(self) -> bool:
        """True when existing weights stay and only a low-rank branch is added."""
        merged = self.method == "lora" and self.lora is not None and self.lora.merge
        return self.method in ("eora", "lora") and self.layer_method().of == "none" and not merged

    def with_method(self, method: str | None) -> Compression:
        """The same with another method."""
        return self if method is None else replace(self, method=method)

    def to_dict(self) -> dict[str, Any]:
        """What was used, defaults included; sections of other methods are left out."""
        filled = replace(self, rate=self.rate_term(), prune=self.pruning())
        left_out = SECTIONS - self.sections()
        return {key: value for key, value in asdict(filled).items() if key not in left_out}

    @staticmethod
    def calibrated(method: str, samples: Path | None) -> Compression:
        """A method as it is by default, calibrated on texts (a file or a directory), or on the shipped one; what they lack
        of ``Calibration.examples`` is general text.

        Raises UsageError for a method that needs more than that, SourceError where no text is.
        """
        if BY_NAME[method].kind != POST_TRAINING or BY_NAME[method].example:
            raise UsageError(f"--method {method}: needs --config FILE, which has its data and settings")
        text = samples or DATA / "calibration.txt"
        text_files([text])
        return Compression(VERSION, Data((str(text),), length=0, filled=True), method)

    @staticmethod
    def load(path: Path, method: str | None = None) -> Compression:
        """A YAML file, perhaps with another ``method``. Raises RecipeError or UsageError naming file and key."""
        data = read_yaml(path, RecipeError)
        if method is not None and isinstance(data, dict):
            data = {**data, "method": method}
        try:
            return cast(Compression, build(Compression, data, "compress", RecipeError))
        except EdgekitError as error:
            raise type(error)(f"{path}: {error}") from None


SECTIONS = {f.name for f in fields(Compression)} - {"version", "data", "method", "report_step"}
"""What some methods read and others do not."""


def _check_data(data: Data) -> None:
    if not data.train:
        raise RecipeError("compress.data.train: empty; give text files, an .npz or package.module:function")
    if not 0 < data.held_out < 1:
        raise RecipeError(f"compress.data.held_out: {data.held_out} is not a share between 0 and 1")
    if data.length < 0 or data.length == 1 or data.most < 0:
        raise RecipeError(f"compress.data: length {data.length}, most {data.most}: at least 2 (or 0) and 0")
