"""Recipes: what each layer is stored as, and what the result must reach. Frozen dataclasses <-> YAML, strictly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from edgekit.errors import RecipeError
from edgekit.spec.formats import FORMATS, SEARCHED
from edgekit.strict import build, read_yaml, suggest

VERSION = 1
EMBEDDING_ROWS = ("keep", "drop")
ONLY = ("", "ternary", "vocabulary", "exact")
MOST_SAMPLES = 4096


@dataclass(frozen=True)
class Rule:
    """One line of a recipe; the first rule whose pattern matches a layer decides."""

    match: str  # glob over module paths, e.g. "*.down_proj"
    format: str  # one of spec.formats.FORMATS
    block_size: int = 0  # weights that share a scale; 0 = the format's default
    # "ternary": weights with at most 3 symmetric values; "vocabulary": embedding and output head; "exact": weights that
    # the format keeps bit for bit
    only: str = ""


@dataclass(frozen=True)
class Limits:
    """What must hold; None is not checked. max_abs, kl (nats) and perplexity_ratio are upper limits, the others lower.

    ``top1`` is a share of positions, ``sqnr_db`` is in decibels.
    """

    max_abs: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None
    kl: float | None = None
    perplexity_ratio: float | None = None
    margin: float = 0.0  # a changed top-1 counts only where the reference's lead exceeds this many logits


@dataclass(frozen=True)
class StaticQuantization:
    """INT8 with ranges found by calibration (QDQ), for convolutional nets."""

    weights: str = "int8"
    activations: str = "uint8"
    method: str = "minmax"  # minmax, percentile or entropy
    samples: int = 64
    per_channel: bool = True


@dataclass(frozen=True)
class Recipe:
    """How to export: rules for layers, limits of parity (to the compressed model) and accuracy (to the original)."""

    version: int
    name: str
    rules: tuple[Rule, ...] = ()
    description: str = ""
    parity: Limits = Limits()
    accuracy: Limits = Limits()
    static: StaticQuantization | None = None
    unused_embedding_rows: str = "keep"  # "drop": rows of zeros are stored once (docs/rewrites.md)
    calibrate: int = (
        0  # samples of real input with which int4 scales are searched: windows of a text, sentences, pictures
    )

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecipeError(f"recipe.version: {self.version} is not {VERSION}, the version this edgekit reads")
        if not self.rules:
            raise RecipeError("recipe.rules: empty; at least one rule is needed, e.g. {match: '*', format: int8}")
        for index, rule in enumerate(self.rules):
            _check_rule(rule, f"recipe.rules[{index}]")
        _one_of(self.unused_embedding_rows, EMBEDDING_ROWS, "recipe.unused_embedding_rows")
        if not 0 <= self.calibrate <= MOST_SAMPLES:
            raise RecipeError(f"recipe.calibrate: {self.calibrate} is not a number of samples from 0 to {MOST_SAMPLES}")
        if self.calibrate and all(rule.format not in SEARCHED for rule in self.rules):
            raise RecipeError("recipe.calibrate: searches the scales of int4, and no rule says int4; leave it out")
        _check_limits(self.parity, "recipe.parity")
        _check_limits(self.accuracy, "recipe.accuracy")
        if self.static is not None:
            _check_static(self.static, "recipe.static")

    @staticmethod
    def load(name: str | Path) -> Recipe:
        """A shipped recipe by name or any YAML file. Raises RecipeError."""
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            if str(name) not in shipped_recipes():
                raise RecipeError(
                    f"{name}: no such recipe{suggest(str(name), shipped_recipes())}; "
                    f"give one of {', '.join(shipped_recipes())} or a .yaml file"
                )
            path = _directory() / f"{name}.yaml"
        data = read_yaml(path, RecipeError, f"a YAML file or one of {', '.join(shipped_recipes())}")
        try:
            return Recipe.from_dict(data)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    @staticmethod
    def from_dict(data: Any) -> Recipe:
        """The recipe that ``to_dict`` gave. Raises RecipeError naming the key."""
        return cast(Recipe, build(Recipe, data, "recipe", RecipeError))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for YAML or JSON."""
        return dataclasses.asdict(self)

    def rule_for(self, layer: str, applies: Callable[[Rule], bool] = lambda rule: False) -> Rule | None:
        """The first rule that applies to a layer, or None; ``applies`` is asked about rules for some layers only."""
        return next((r for r in self.rules if fnmatchcase(layer, r.match) and (not r.only or applies(r))), None)


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with edgekit."""
    return tuple(sorted(p.stem for p in _directory().glob("*.yaml")))


def _directory() -> Path:
    """export_configs: inside the installed package, or at the repository's root in an editable install."""
    inside = Path(__file__).parent / "export_configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "export_configs"


def _check_rule(rule: Rule, where: str) -> None:
    _one_of(rule.format, tuple(FORMATS), f"{where}.format")
    _one_of(rule.only, ONLY, f"{where}.only")
    sizes = FORMATS[rule.format].block_sizes
    if rule.block_size not in (0, *sizes):
        choice = f"one of {', '.join(map(str, sizes))} (or 0, the default)" if sizes else "0: it has no blocks"
        raise RecipeError(f"{where}.block_size: {rule.block_size} given, {rule.format} takes {choice}")


def _check_limits(limits: Limits, where: str) -> None:
    for name, value in dataclasses.asdict(limits).items():
        if value is not None and not math.isfinite(value):
            raise RecipeError(f"{where}.{name}: {value} is not a finite number")
    for name in ("top1", "cosine"):
        value = getattr(limits, name)
        if value is not None and not 0 <= value <= 1:
            raise RecipeError(f"{where}.{name}: {value} is not a share between 0 and 1")


def _check_static(static: StaticQuantization, where: str) -> None:
    _one_of(static.weights, ("int8",), f"{where}.weights")
    _one_of(static.activations, ("uint8", "int8"), f"{where}.activations")
    _one_of(static.method, ("minmax", "percentile", "entropy"), f"{where}.method")
    if static.samples < 1:
        raise RecipeError(f"{where}.samples: {static.samples} is not a number of samples; 64 is usual")


def _one_of(value: str, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise RecipeError(
            f"{where}: '{value}' is not one of {', '.join(repr(k) for k in known)}{suggest(value, known)}"
        )
