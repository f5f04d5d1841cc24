"""How channels pass through attention: as GroupQueryAttention, and written as MatMul, Softmax, MatMul."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgekit.passes.dead_units.channels import Attention, Channels, Flow, Rule, of_first, varying
from edgekit.passes.dead_units.constants import Floats, whole
from edgekit.passes.dead_units.cuts import CountCut
from edgekit.passes.dead_units.weights import Ints
from edgekit.spec.names import MICROSOFT


def split_heads(x: Channels, start: int, stop: int) -> tuple[Ints, Floats]:
    """Channels ``start`` to ``stop`` of each head."""
    ids, constant = x.ids.reshape(-1, x.size), x.constant.reshape(-1, x.size)
    return ids[:, start:stop].reshape(-1), constant[:, start:stop].reshape(-1)


@of_first
def rotary(flow: Flow, node: ir.Node, x: Channels) -> None:
    """Turns the channels of each head among themselves."""
    heads = whole(node, "num_heads", 0)
    if x.inner is None and (x.axis != -1 or heads < 1 or len(x.ids) % heads):
        return flow.opaque(node)
    size = len(x.ids) // heads if x.inner is None else x.size
    flow.bind_heads(x.ids, size)
    if heads:
        flow.cuts.append(CountCut(node, "num_heads", x.ids[::size]))
    flow.give(node.outputs[0], replace(x, constant=varying(len(x.ids))))


def group_query(flow: Flow, node: ir.Node) -> None:
    """Query heads share key-value heads in equal numbers; the cache has the key-value heads."""
    heads, groups = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    parts = _query_key_value(flow, node, heads, groups)
    if parts is None or any(v is not None for v in node.inputs[9:]):
        return flow.opaque(node)
    (queries, _), (keys, _), (values, constant) = parts
    size = len(queries) // heads
    for ids in (queries, keys, values):
        flow.bind_heads(ids, size)
    flow.unite(keys[::size], values[::size])
    flow.cuts += [CountCut(node, "num_heads", queries[::size]), CountCut(node, "kv_num_heads", keys[::size])]
    flow.attentions.append(Attention(queries[::size], keys[::size]))
    _cache(flow, node, keys[::size])
    # A query head answers with a mean of its value head's rows: of equal ones, that row.
    result = np.repeat(constant.reshape(groups, size), heads // groups, axis=0).reshape(-1)
    if whole(node, "smooth_softmax", 0) > 0:
        result = np.where(result == 0, 0.0, np.nan)  # its weights sum to less than 1
    flow.give(node.outputs[0], Channels(queries, result, -1, 3))


Part = tuple[Ints, Floats]


def _query_key_value(flow: Flow, node: ir.Node, heads: int, groups: int) -> tuple[Part, Part, Part] | None:
    """Channels and constants of the three inputs, which may lie one after the other in the first."""
    query, key, value = node.inputs[:3]
    if query is None or groups < 1 or heads % groups:
        return None
    queries = flow.values.get(query)
    if queries is None or queries.axis != -1 or queries.inner is not None:
        return None
    if key is None or value is None:
        size = len(queries.ids) // (heads + 2 * groups)
        ends = [0, heads * size, (heads + groups) * size, len(queries.ids)]
        q, k, v = ((queries.ids[a:b], queries.constant[a:b]) for a, b in pairwise(ends))
        return q, k, v
    size = len(queries.ids) // heads
    k, v = ((c.ids, c.constant) for c in (flow.known(x, groups * size, -1, 3) for x in (key, value)))
    return (queries.ids, queries.constant), k, v


def _cache(flow: Flow, node: ir.Node, heads: Ints) -> None:
    """Past and present keep their batch and length; they are the model's inputs and outputs, or stay as they are."""
    ends = [v for v in (*node.inputs[3:5], *node.outputs[1:3]) if v is not None and v.name]
    own = all(len(v.uses()) == 1 if v.is_graph_input() else v.producer() is node and not v.uses() for v in ends)
    for value in ends:
        flow.give(value, Channels(heads, varying(len(heads)), -3, 4), cache=True)
    if not own:
        flow.pin(heads, f"the key-value cache of {node.outputs[0].name} is read elsewhere too")


def product_of_heads(flow: Flow, node: ir.Node) -> None:
    """Scores = query times key, answer = scores times value, head by head."""
    a, b = (flow.values.get(v) if v is not None else None for v in node.inputs[:2])
    if a is None and b is None:
        return
    if a is None or b is None or a.axis != b.axis or len(a.units) != len(b.units) or a.axis not in (-3, -4):
        return flow.opaque(node)
    if a.inner == -1 and b.inner == -2 and a.size == b.size:
        flow.unite(a.units, b.units)
        flow.heads.append(a.units)
        return flow.give(node.outputs[0], Channels(a.units, varying(len(a.units)), a.axis, a.rank))
    if a.inner is None and b.inner == -1:
        flow.unite(a.ids, b.units)
        steady = b.constant if a.sums_to_one else np.where(b.constant == 0, 0.0, np.nan)
        return flow.give(node.outputs[0], replace(b, constant=steady, rank=a.rank or b.rank))
    return flow.opaque(node)


ATTENTION: dict[tuple[str, str], Rule] = {
    (MICROSOFT, "RotaryEmbedding"): rotary,
    (MICROSOFT, "GroupQueryAttention"): group_query,
}
