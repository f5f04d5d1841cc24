"""What `verify` found, as frozen dataclasses, JSON and lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.metrics import Check
from edgekit.parity.labels import LabelAccuracy, LabelScore
from edgekit.spec.names import REAL_INPUT

SCHEMA_VERSION = 1
UNPROVEN = (
    "no real input was compared, only random or example input; export again with --samples (a text, pictures, an .npz)"
)


@dataclass(frozen=True)
class Section:
    """One comparison: ``against`` which model, over how many positions of text or samples, and how each limit fared."""

    against: str
    count: int
    unit: str  # "positions" or "samples"
    checks: tuple[Check, ...]
    details: dict[str, float] = field(default_factory=dict)  # measured beside what limits can name
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)  # by graph output

    @property
    def passed(self) -> bool:
        """No limit was missed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Metrics by name, beside them each with its limit under ``checks``."""
        values = {check.metric: check.value for check in self.checks}
        facts = {"passed": self.passed, "against": self.against, self.unit: self.count}
        more = {"checks": [asdict(c) for c in self.checks], "outputs": self.outputs}
        return {**facts, **values, **self.details, **more}


@dataclass(frozen=True)
class LayerDistance:
    """How far one layer's output is from the compressed PyTorch model's: the median over tokens or samples."""

    layer: str
    formats: str  # what its weights are stored as
    max_abs: float
    sqnr_db: float
    cosine: float
    first: bool  # the first that diverges


@dataclass(frozen=True)
class TextPerplexity:
    """Perplexity over the user's own text; ``original`` only where the original model was given."""

    file: str
    tokens: int
    window: int  # tokens of context at most
    bundle: float
    original: float | None = None


@dataclass(frozen=True)
class Report:
    """The result of `verify`."""

    bundle: str
    target: str
    threads: int
    kernel: str
    inputs: tuple[str, ...]  # kinds of the golden inputs: "text", "sample", "random"
    parity: Section
    accuracy: Section
    layers: tuple[LayerDistance, ...] = ()  # filled when parity failed
    text: TextPerplexity | None = None
    labels: LabelAccuracy | None = None
    versions: dict[str, str] = field(default_factory=dict)
    encoder: Report | None = None  # of an encoder-decoder; all else is of the decoder behind it

    @property
    def passed(self) -> bool:
        """No limit was missed, on real input."""
        return self.verdict == "PASS"

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or UNPROVEN: no limit was missed, but on input of which nobody said that it is real."""
        if not (self.parity.passed and self.accuracy.passed) or (self.encoder and self.encoder.verdict == "FAIL"):
            return "FAIL"
        return "PASS" if any(kind in REAL_INPUT for kind in self.inputs) else "UNPROVEN"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; what is not a finite number becomes None."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("parity", "accuracy", "encoder")}
        if self.encoder is not None:
            facts["encoder"] = self.encoder.to_json()
        sections = {"parity": self.parity.to_json(), "accuracy": self.accuracy.to_json()}
        head = {"schema_version": SCHEMA_VERSION, "passed": self.passed, "verdict": self.verdict}
        return dict(finite({**head, **sections, **facts}))

    def lines(self) -> Iterator[str]:
        """The report for people: every number with its limit, the layers when parity failed, the verdict last."""
        yield f"{self.bundle} on {self.target}, {self.threads} thread{'s' if self.threads > 1 else ''}: {self.kernel}"
        if self.encoder is not None:
            yield from self.encoder.lines()
            yield "decoder"
        yield from _section("parity", self.parity)
        yield from _section("accuracy", self.accuracy)
        if self.text is not None:
            yield from _text(self.text)
        if self.labels is not None:
            yield from _labels(self.labels)
        if self.layers:
            yield from layer_lines(self.layers)
        elif not self.parity.passed:
            yield "  which layer it is cannot be said: the golden vectors hold no layer's output"
        if self.verdict == "UNPROVEN":
            yield UNPROVEN
        yield f"verdict: {self.verdict}"


def _section(name: str, section: Section) -> Iterator[str]:
    yield f"{name} against the {section.against}, {section.count} {section.unit}"
    for check in section.checks:
        mark = " " if check.limit is None else "✓" if check.passed else "✗"
        yield f"  {mark} {check.metric:<17} {check.value:>12.6g}  {check.bound}".rstrip()
    for metric, value in section.details.items():
        yield f"    {metric:<17} {value:>12.6g}"


def _text(text: TextPerplexity) -> Iterator[str]:
    yield f"perplexity of {text.file}, {text.tokens} tokens, windows of {text.window}"
    yield f"    bundle            {text.bundle:>12.6g}"
    if text.original is not None:
        yield f"    original          {text.original:>12.6g}"
        yield f"    ratio             {text.bundle / text.original:>12.6g}"


def _labels(labels: LabelAccuracy) -> Iterator[str]:
    ours, theirs = labels.bundle, labels.original
    yield f"accuracy against the labels of {ours.file}, {ours.samples} samples ({labels.order})"
    yield _score("bundle", ours)
    if theirs is not None:
        yield _score("original", theirs)
        change = f"{ours.difference:>+12.4f} ± {ours.difference_error:.4f}  {ours.gained} gained, {ours.lost} lost"
        yield f"    difference        {change}"


def _score(name: str, score: LabelScore) -> str:
    top5 = "" if score.top5 is None else f"  top 5 {score.top5:.4f}"
    return f"    {name:<17} {score.top1:>12.4f} ± {score.error:.4f}{top5}"


def layer_lines(layers: tuple[LayerDistance, ...]) -> Iterator[str]:
    """A table of layers, the first that diverges marked; nothing for none."""
    if not layers:
        return
    width = max(len(layer.layer) for layer in layers)
    yield f"  {'layer':<{width}}  {'sqnr dB':>8}  {'cosine':>9}  {'max abs':>9}  weights"
    for layer in layers:
        mark = "   <- first that diverges" if layer.first else ""
        yield (
            f"  {layer.layer:<{width}}  {layer.sqnr_db:>8.1f}  {layer.cosine:>9.6f}  {layer.max_abs:>9.3g}  "
            f"{layer.formats}{mark}".rstrip()
        )
    if not any(layer.first for layer in layers):
        yield "  no layer loses much more than those before it: rounding adds up over the layers"


def finite(value: Any) -> Any:
    """A document with None for numbers that are not finite: JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
