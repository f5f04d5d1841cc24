"""What a bundle holds, without running it."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.bundle import Bundle, BundleLike
from edgekit.bundle.tensors import read_graph
from edgekit.spec.names import REAL_INPUT
from edgekit.spec.records import DeadUnits
from edgekit.strict import ranges

MEGA = 1e6


@dataclass(frozen=True)
class Inspection:
    """A bundle in short; ``operators`` counts the nodes of the graph by type."""

    bundle: Bundle
    operators: dict[str, int]

    @property
    def nodes(self) -> int:
        """Nodes of the main graph; a function counts as one."""
        return sum(self.operators.values())

    @property
    def bits_per_weight(self) -> float:
        """Over all listed layers, each weight tensor counted once."""
        # A tied embedding and head have names of their own for one tensor, but share the scales.
        layers = self.bundle.manifest.layers
        seen = {(layer.scales or layer.tensor or layer.name, layer.rows): layer for layer in layers}
        weights = sum(layer.weights for layer in seen.values())
        return sum(layer.bits_per_weight * layer.weights for layer in seen.values()) / weights if weights else 0.0

    @property
    def encoder(self) -> Inspection | None:
        """That of the bundle in the bundle, which reads sources or pictures."""
        return None if self.bundle.encoder is None else inspect(self.bundle.encoder)

    def to_json(self) -> dict[str, Any]:
        """The contract of ``edgekit inspect --json``."""
        manifest = self.bundle.manifest
        encoder = {} if self.encoder is None else {"encoder": self.encoder.to_json()}
        return {
            "schema_version": 1,
            "bundle": str(self.bundle.directory),
            "task": manifest.task,
            "architecture": manifest.architecture,
            "recipe": manifest.recipe.get("name"),
            "nodes": self.nodes,
            "bytes": self.bundle.model_bytes,
            "bundle_bytes": self.bundle.nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "operators": self.operators,
            "inputs": [dataclasses.asdict(i) for i in manifest.inputs],
            "outputs": [dataclasses.asdict(o) for o in manifest.outputs],
            "layers": [dataclasses.asdict(layer) for layer in manifest.layers],
            "dead_units": [dataclasses.asdict(units) for units in manifest.dead_units],
            "evaluation": manifest.evaluation,
            "versions": manifest.versions,
            **encoder,
        }

    def summary(self) -> Iterator[str]:
        """What was made, in a few lines."""
        manifest = self.bundle.manifest
        formats = Counter(layer.format for layer in manifest.layers)
        listed = ", ".join(f"{count} {name}" for name, count in formats.most_common())
        name = manifest.architecture or manifest.name
        yield f"{self.bundle.directory}: {name}, {manifest.task}, recipe {manifest.recipe.get('name')}"
        yield (
            f"  model {self.bundle.model_bytes / MEGA:.1f} MB, bundle {self.bundle.nbytes / MEGA:.1f} MB, "
            f"{self.nodes} nodes, {self.bits_per_weight:.2f} bits per weight; layers: {listed or 'none'}"
        )
        removed = Counter[str]()
        for units in manifest.dead_units:
            removed[units.unit] += units.count * units.removed
        if removed.total():
            counts = ", ".join(f"{n:,} {unit}{'s' * (n > 1)}" for unit, n in removed.items() if n)
            yield f"  removed because they change no output: {counts}"
        for name, value in manifest.evaluation.items():
            yield f"  {name.replace('_', ' ')} {value:.4g}"
        if not any(vector.kind in REAL_INPUT for vector in manifest.vectors):
            yield "  golden vectors: no real input, so verify cannot say PASS; export again with --samples"

    def lines(self) -> Iterator[str]:
        """The summary, the operators, and a table of layers with equal ones of a kind on one line."""
        yield from self.summary()
        yield "  operators: " + ", ".join(f"{op} {count}" for op, count in self.operators.items())
        groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for layer in self.bundle.manifest.layers:
            alike = layer.format, layer.block_size, layer.bits_per_weight, layer.shape, layer.reason
            groups[(_kind(layer.name), *alike)].append(layer.name)
        kinds = Counter(key[0] for key in groups)
        labels = {key: key[0] if kinds[key[0]] == 1 < len(m) else _together(key[0], m) for key, m in groups.items()}
        width = max(map(len, labels.values()), default=0)
        yield f"  {'layer':<{width}}  count  format  block  bits/weight  shape"
        for key, members in groups.items():
            _, name, block, bits, shape, reason = key
            size = "×".join(str(s) for s in shape)
            note = f"   {reason}" if reason else ""
            yield (
                f"  {labels[key]:<{width}}  {len(members):>5}  {name:<11.11} {block or '':>5}  {bits:>11.3f}  {size}{note}"
            )
        yield from _dead_units(self.bundle.manifest.dead_units)
        if self.encoder is not None:
            yield from self.encoder.lines()


def _dead_units(dead: tuple[DeadUnits, ...]) -> Iterator[str]:
    """A table with equal layers on one line, what was removed first; counts are ranges over those layers."""
    groups: dict[tuple[Any, ...], list[DeadUnits]] = defaultdict(list)
    for units in dead:
        groups[not units.removed, _kind(units.layer), units.unit, units.of, units.reason].append(units)
    width = max((len(key[1]) for key in groups), default=0)
    if groups:
        yield f"  {'dead units in':<{width}}  layers  {'count':>11}  of"
    for (stays, kind, unit, of, reason), members in sorted(groups.items(), key=lambda pair: pair[0][0]):
        low, high = min(m.count for m in members), max(m.count for m in members)
        count = f"{low}" if low == high else f"{low} to {high}"
        state = "kept" if stays else "removed"
        yield f"  {kind:<{width}}  {len(members):>6}  {count:>11}  {of} {unit}s {state}: {_kind(reason)}"


def _kind(name: str) -> str:
    """model.layers.3.mlp.up_proj -> model.layers.*.mlp.up_proj."""
    return ".".join("*" if part.isdecimal() and len(part) < 10 else part for part in name.split("."))


def _together(kind: str, names: list[str]) -> str:
    """Names of a kind of which others look different: model.layers.{0-3,7}.mlp.up_proj."""
    if len(names) == 1:
        return names[0]
    columns = [set(parts) for parts in zip(*(name.split(".") for name in names), strict=True)]
    if sum(len(column) > 1 for column in columns) > 1:
        return kind
    return ".".join(c.pop() if len(c) == 1 else f"{{{ranges(map(int, c))}}}" for c in columns)


def inspect(bundle: BundleLike) -> Inspection:
    """Reads the graph (not the weights) and counts its nodes. Raises BundleError when it cannot be read."""
    opened = Bundle.open(bundle)
    graph = read_graph(opened.graph_path).graph
    return Inspection(opened, dict(Counter(node.op_type for node in graph.node).most_common()))
