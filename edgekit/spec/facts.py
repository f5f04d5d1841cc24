"""Where passes keep what they know: one object on the model, one on each layer's node, in their ``meta``.

Passes change a model in place, so both stay with it; ``Model.clone`` leaves the model's behind.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from edgekit.spec.records import DeadUnits, DecoderInfo, Layer, Plan, Surviving

_FACTS = "edgekit.facts"
_PLAN = "edgekit.plan"
_NO_LAYER = Plan("")


class _HasMeta(Protocol):
    @property
    def meta(self) -> MutableMapping[str, Any]: ...


@dataclass
class Facts:
    """What is known about a model beside its graph; the manifest is made of it."""

    layers: list[Layer] = field(default_factory=list)
    dead_units: list[DeadUnits] = field(default_factory=list)
    decoder: DecoderInfo | None = None
    taps: dict[str, str] = field(default_factory=dict)  # module path -> value that holds its output
    surviving: dict[str, Surviving] = field(default_factory=dict)  # by layer

    def metadata(self) -> dict[str, str]:
        """What model.onnx says of it in its own ``metadata_props``, for who has the graph alone."""
        written: dict[str, Any] = {}
        if self.decoder is not None:
            tokens = ("bos_token_id", "eos_token_ids")  # known when the tokenizer's files are read
            written["decoder"] = {k: v for k, v in asdict(self.decoder).items() if k not in tokens}
            written["taps"] = self.taps
        if self.dead_units:
            written["dead_units"] = [asdict(units) for units in self.dead_units]
        places = ("tensor", "scales", "rows")  # of layers that are stored by rows
        written["layers"] = [
            {k: v for k, v in asdict(layer).items() if layer.tensor or k not in places} for layer in self.layers
        ]
        return {f"edgekit.{key}": json.dumps(value) for key, value in written.items()}


def facts_of(model: _HasMeta) -> Facts:
    """The facts about a model; passes add to them."""
    facts: Facts = model.meta.setdefault(_FACTS, Facts())
    return facts


def plan_of(node: _HasMeta) -> Plan:
    """What a layer's node is to be stored as; one without a layer for other nodes."""
    plan: Plan = node.meta.get(_PLAN, _NO_LAYER)
    return plan


def set_plan(node: _HasMeta, plan: Plan) -> None:
    """Says what a layer's node is to be stored as."""
    node.meta[_PLAN] = plan
