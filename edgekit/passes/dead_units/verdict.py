"""Which classes of channels do nothing, and why what looks dead has to stay."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.passes.dead_units.channels import Attention, Flow, Product
from edgekit.passes.dead_units.weights import CHUNK, Bools, Ints, scaled_by_columns
from edgekit.passes.layers import joined
from edgekit.spec.records import DeadUnits

UNIFORM = "GroupQueryAttention needs as many query heads for each key-value head"
LAST = "the last one stays: no operator takes a width of 0"
BLOCKS = "its weight has a scale for each 128 columns, which would shift"


@dataclass
class Verdict:
    """``dead`` bool by class; ``pinned``: the first pin of each, or -1; ``limits``: why one that does nothing stays."""

    flow: Flow
    root: Ints
    pinned: Ints
    dead: Bools
    limits: dict[int, str] = field(default_factory=dict)

    def keep(self, ids: Ints) -> Bools:
        """Which of the given channels stay."""
        return np.asarray(~self.dead[self.root[ids]])

    def revive(self, classes: Sequence[int] | Ints, reason: str) -> bool:
        """Makes classes stay; True where one was dead."""
        changed = False
        for root in np.unique(np.asarray(classes, np.int64)).tolist():
            if self.dead[root]:
                self.dead[root], changed = False, True
                self.limits.setdefault(root, reason)
        return changed


def judge(flow: Flow) -> Verdict:
    """Decides for every class of channels.

    A class is dead when nobody else needs it and every layer that reads one of its channels either has zeros there or
    gets a constant that its bias can take.
    """
    root = flow.roots()
    pinned = np.full(flow.count, -1)
    for index in reversed(range(len(flow.pins))):
        pinned[root[flow.pins[index][0]]] = index
    read, blocked = np.zeros(flow.count, bool), pinned >= 0
    for product in flow.products:
        classes = root[product.x.ids]
        if not blocked[classes].all():
            read[classes] = True
            blocked[classes[~removable(product)]] = True
    for attention in flow.attentions:
        read[root[attention.keys]] = True
    verdict = Verdict(flow, root, pinned, read & ~blocked)
    _limit(verdict)
    return verdict


def removable(product: Product) -> Bools:
    """bool [K]: the layer would not miss this input."""
    constant = product.x.constant
    foldable = np.isfinite(constant) if not product.unfoldable else constant == 0
    return np.asarray(foldable | (~product.alive.columns & (not product.rounds_input)))


def _limit(verdict: Verdict) -> None:
    """What the operators themselves demand; every step only makes more stay, so it ends."""
    flow, changed = verdict.flow, True
    for product in flow.products:
        gone, matrix = ~verdict.keep(product.x.ids), product.rows_axis == 0 and len(product.tensor.shape) == 2
        if gone.any() and matrix and scaled_by_columns(product.tensor):
            verdict.revive(verdict.root[product.x.ids[gone]], BLOCKS)
    while changed:
        changed = False
        for attention in flow.attentions:
            changed |= _limit_heads(verdict, attention)
        if not changed:  # only then: at first every key-value head counts as dead
            for ids in (channels.ids for channels in flow.values.values()):
                changed |= len(ids) > 0 and not verdict.keep(ids).any() and verdict.revive(verdict.root[ids[:1]], LAST)


def _limit_heads(verdict: Verdict, attention: Attention) -> bool:
    """A key-value head goes with all of its query heads; of the other groups, equally many query heads go."""
    keys = verdict.root[attention.keys]
    queries = verdict.root[attention.queries].reshape(len(keys), -1)
    dead = verdict.dead[queries]
    whole = dead.all(axis=1) & verdict.dead[keys]
    changed = verdict.revive(keys[~whole], "")
    rest = np.flatnonzero(~whole)
    most = min([queries.shape[1] - 1, *dead[rest].sum(axis=1).tolist()])
    for group in rest:
        surplus = np.flatnonzero(dead[group])[most:]
        changed |= verdict.revive(queries[group, surplus], UNIFORM)
    return changed


def removed_rows(verdict: Verdict) -> Iterator[DeadUnits]:
    """What goes, by the layers that made it."""
    counts: Counter[tuple[str, str, int, str]] = Counter()
    causes, makers, units = _causes(verdict), _makers(verdict), _units(verdict)
    for root in np.flatnonzero(verdict.dead).tolist():
        if root in makers:
            products = makers[root]
            unit, of = units.get(root, (products[0].unit, len(np.unique(verdict.root[products[0].y.ids]))))
            cause = causes.get(root, "all its query heads are dead")
            counts[_together([p.name for p in products]), unit, of, cause] += 1
    for (layer, unit, of, reason), count in counts.items():
        yield DeadUnits(layer, unit, count, of, True, reason)


def _makers(verdict: Verdict) -> dict[int, list[Product]]:
    makers: dict[int, list[Product]] = defaultdict(list)
    for product in verdict.flow.products:
        classes = verdict.root[product.y.ids]
        for root in np.unique(classes[verdict.dead[classes]]).tolist():
            makers[root].append(product)
    return makers


def _units(verdict: Verdict) -> dict[int, tuple[str, int]]:
    """Classes that are attention heads, and how many the attention has."""
    units: dict[int, tuple[str, int]] = {}
    for name, groups in (
        ("attention head", verdict.flow.heads),
        ("query head", [a.queries for a in verdict.flow.attentions]),
        ("key-value head", [a.keys for a in verdict.flow.attentions]),
    ):
        for ids in groups:
            for root in verdict.root[ids].tolist():
                # Where query, key and value of a head lie side by side, they are one.
                known = units.get(root, (name,))[0]
                units[root] = (name if known == name else "attention head"), len(ids)
    return units


def _causes(verdict: Verdict) -> dict[int, str]:
    """Why a dead class is dead, as its readers see it."""
    unread, zero = np.ones(len(verdict.root), bool), np.ones(len(verdict.root), bool)
    seen = set()
    for product in verdict.flow.products:
        classes = verdict.root[product.x.ids]
        if verdict.dead[classes].any():
            np.logical_and.at(unread, classes, ~product.alive.columns)
            np.logical_and.at(zero, classes, product.x.constant == 0)
            seen.update(classes[verdict.dead[classes]].tolist())
    texts = dict.fromkeys(seen, "constant, folded into the next bias")
    texts.update({root: "always zero" for root in seen if zero[root]})
    texts.update({root: "nothing reads it" for root in seen if unread[root]})
    return texts


def kept_rows(verdict: Verdict) -> Iterator[DeadUnits]:
    """Rows and columns of zeros, and heads, that stay, with the reason; of weights that were looked at or are small."""
    units = _units(verdict)
    for root, reason in verdict.limits.items():
        if reason and root in units:
            yield DeadUnits(_head_layer(verdict, root), units[root][0], 1, units[root][1], False, reason)
    told = {root for root, reason in verdict.limits.items() if reason and root in units}
    for product in verdict.flow.products:
        if not verdict.flow.scans.has(product.tensor) and product.tensor.size > CHUNK:
            continue  # a vocabulary, read for nothing but this table
        if any(use.node.op_type == "Embedding" for use in product.node.inputs[1].uses()):  # type: ignore[union-attr]
            continue  # its rows are told with the embedding's
        rows, columns = (product.y.ids, product.alive.rows), (product.x.ids, product.alive.columns)
        for kind, (ids, alive) in {"zero row": rows, "zero column": columns}.items():
            dead = [root for root in verdict.root[ids[~alive]].tolist() if root not in told]
            reasons = Counter(_reason(verdict, root, product, kind) for root in dead)
            for reason, count in reasons.items():
                yield DeadUnits(product.name, kind, count, len(ids), False, reason)


def _head_layer(verdict: Verdict, root: int) -> str:
    """The layers that make a head."""
    names = [p.name for p in verdict.flow.products if (verdict.root[p.y.ids] == root).any()]
    return _together(names) if names else "attention"


def _reason(verdict: Verdict, root: int, product: Product, kind: str) -> str:
    """Why the class of a zero row or column stays."""
    residual = any((verdict.root[ids] == root).any() for ids in verdict.flow.additions)
    if verdict.pinned[root] >= 0:
        _, pin = verdict.flow.pins[int(verdict.pinned[root])]
        return f"residual width: {pin}" if residual else pin
    if verdict.limits.get(root):
        return verdict.limits[root]
    if residual:
        return "added to another branch that is alive there"
    for reader in verdict.flow.products:
        here = (verdict.root[reader.x.ids] == root) & ~removable(reader)
        if not here.any():
            continue
        constant = reader.x.constant[here][0]
        if np.isfinite(constant):
            return f"its constant {constant:.4g} stays: in {reader.name} {reader.unfoldable}"
        if reader.rounds_input and not reader.alive.columns[here].any():
            return f"it varies, and {reader.name} rounds its input by the largest value of each row"
        if reader is product and kind == "zero column":
            return "a part of a unit that is used elsewhere"
        return f"{reader.name} reads it, and it varies"
    return "a part of a unit that is used elsewhere"


def _together(names: Sequence[str]) -> str:
    """The layers that make a unit, by one name."""
    return joined(names) if len({name.rpartition(".")[0] for name in names}) == 1 else " + ".join(names)
