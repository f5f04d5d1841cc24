"""GroupQueryAttention -> ``ai.edgekit::CachedAttention``."""

from __future__ import annotations

import onnx_ir as ir

from edgekit.lowbit.functions import ATTENTION_FLOATS, ATTENTION_INTS
from edgekit.passes.layers import layers_of, rewrite_each
from edgekit.spec.facts import plan_of
from edgekit.spec.formats import NATIVE_FORMATS
from edgekit.spec.names import CACHED_ATTENTION, EDGEKIT, GROUP_QUERY_ATTENTION, MICROSOFT

HEAD_STEP, LARGEST_HEAD = 8, 512
"""What the size of a head is a multiple of, and at most."""
_PLACES = (*range(9), 11)  # of CachedAttention's inputs among the stock operator's
_DEFAULTS: dict[str, int | float] = {"do_rotary": 0, "rotary_interleaved": 0, "local_window_size": -1, "softcap": 0.0}


class LowerAttention(ir.passes.InPlacePass):
    """Attention in models that bring edgekit's operators along; their function body is the stock operator.

    Left alone where an input or attribute is used that edgekit's operator does not have (positions, a bias, a quantized
    cache, a smooth softmax, a scale that is not given), where a head is not a multiple of 8 up to 512 floats, and in
    models without a layer in edgekit's formats, for whose sake the operator library would have to be carried.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(
            plan_of(node).format in NATIVE_FORMATS for node in layers_of(model.graph) if node.op_type == "Linear"
        ):
            return ir.passes.PassResult(model, modified=False)
        return rewrite_each(model, {(MICROSOFT, GROUP_QUERY_ATTENTION): _lower})


def _lower(graph: ir.Graph, node: ir.Node) -> bool:
    inputs = [*node.inputs, *[None] * (max(_PLACES) + 1 - len(node.inputs))]
    if any(value is not None for place, value in enumerate(inputs) if place not in _PLACES):
        return False
    known = {*ATTENTION_INTS, *ATTENTION_FLOATS}
    if not set(node.attributes) <= known or len(node.outputs) != 3 or not _fits(inputs[3]):
        return False
    values = {**_DEFAULTS, **{name: attribute.value for name, attribute in node.attributes.items()}}
    if not values.get("scale"):
        return False
    attributes: list[ir.Attr] = [ir.AttrInt64(name, values[name]) for name in ATTENTION_INTS]
    attributes += [ir.AttrFloat32(name, values[name]) for name in ATTENTION_FLOATS]
    given = [inputs[place] for place in _PLACES]
    while given[-1] is None:
        given.pop()
    new = ir.Node(EDGEKIT, CACHED_ATTENTION, given, attributes, num_outputs=3, name=node.name)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.type, made.shape = old.type, old.shape
    names = [output.name for output in node.outputs]
    ir.convenience.replace_all_uses_with(node.outputs, new.outputs, replace_graph_outputs=True)
    graph.insert_after(node, new)
    graph.remove(node, safe=True)
    for made, name in zip(new.outputs, names, strict=True):
        made.name = name
    return True


def _fits(cache: ir.Value | None) -> bool:
    """Whether the head of a cache [batch, heads, positions, head] has a size that the operator takes."""
    size = cache.shape[3] if cache is not None and cache.shape is not None and len(cache.shape) == 4 else None
    return isinstance(size, int) and size % HEAD_STEP == 0 and 0 < size <= LARGEST_HEAD
