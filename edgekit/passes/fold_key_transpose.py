"""Keys transposed by way of three dimensions -> one Transpose.

torch.onnx writes the transposition in scaled_dot_product_attention as Reshape to [B*H, S, D], Transpose, Reshape to
[B, H, D, S], with sizes read from the tensor at run time.
"""

from __future__ import annotations

import onnx_ir as ir

from edgekit.passes.dead_units.channels import integers
from edgekit.passes.layers import put_in_place, rewrite_each

FIRST, LAST = -(2**63), 2**63 - 1


class FoldKeyTranspose(ir.passes.InPlacePass):
    """Exact: the sizes are checked to be those of the tensor itself. What computed them is left for removal."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return rewrite_each(model, {("", "Reshape"): _fold})


def _fold(graph: ir.Graph, last: ir.Node) -> bool:
    turn = last.inputs[0].producer() if last.inputs[0] is not None else None
    if turn is None or turn.op_type != "Transpose" or "perm" not in turn.attributes:
        return False
    first = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if first is None or first.op_type != "Reshape" or tuple(turn.attributes["perm"].as_ints()) != (0, 2, 1):
        return False
    keys = first.inputs[0]
    shared = any(len(n.outputs[0].uses()) != 1 for n in (first, turn))
    if keys is None or keys.shape is None or len(keys.shape) != 4 or shared:
        return False
    length, size, lead = (-2, -1), (-1, LAST), (FIRST, -2)
    if _parts(first.inputs[1], keys) != [None, length, size] or _parts(last.inputs[1], keys) != [lead, size, length]:
        return False
    old, shape, order = last.outputs[0], list(keys.shape), ir.AttrInt64s("perm", (0, 1, 3, 2))
    new = ir.Node("", "Transpose", [keys], [order], num_outputs=1, name=f"{last.name}.turn")
    new.outputs[0].type, new.outputs[0].shape = old.type, ir.Shape([*shape[:2], shape[3], shape[2]])
    put_in_place(graph, new, [last, turn, first])
    return True


def _parts(target: ir.Value | None, of: ir.Value) -> list[tuple[int, int] | None] | None:
    """The slices of the shape of ``of`` that make a target, None for -1; None altogether where it is anything else."""
    concat = target.producer() if target is not None else None
    if concat is None or concat.op_type != "Concat":
        return None
    ranges: list[tuple[int, int] | None] = []
    for part in concat.inputs:
        cut = part.producer() if part is not None else None
        if integers(part) == [-1]:
            ranges.append(None)
            continue
        if cut is None or cut.op_type != "Slice" or len(cut.inputs) != 3 or cut.inputs[0] is None:
            return None
        shape, start, end = cut.inputs[0].producer(), integers(cut.inputs[1]), integers(cut.inputs[2])
        if shape is None or shape.op_type != "Shape" or shape.inputs[0] is not of or start is None or end is None:
            return None
        if shape.attributes.get("start", ir.AttrInt64("start", 0)).as_int() or "end" in shape.attributes:
            return None
        ranges.append((start[0], end[0]))
    return ranges
