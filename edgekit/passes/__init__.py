"""Graph rewrites on ``onnx_ir.Model``, in the one order in which they run."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from edgekit.passes.choose_formats import ChooseFormats
from edgekit.passes.dead_units.removal import RemoveDeadUnits
from edgekit.passes.dead_units.rows import RemoveDeadRows
from edgekit.passes.fold_key_transpose import FoldKeyTranspose
from edgekit.passes.fold_rope import FoldRope
from edgekit.passes.fuse_skip_norm import FuseSkipNorm
from edgekit.passes.guard_products import GuardProducts
from edgekit.passes.lower_attention import LowerAttention
from edgekit.passes.lower_experts import LowerExperts
from edgekit.passes.lower_linears import Calibrate, LowerLinears
from edgekit.passes.merge_linears import MergeLinears
from edgekit.passes.normalize_linear import NormalizeLinear
from edgekit.passes.stock_layers import ListStockLayers
from edgekit.recipe import Recipe

CONSTANT_ELEMENTS = 16
"""Smaller constants stay nodes: shapes and axes that other tools' passes look for there."""


def pipeline(
    recipe: Recipe, abis: Sequence[str] = (), calibrate: Calibrate | None = None
) -> tuple[ir.passes.PassBase, ...]:
    """The passes from a frontend's graph to the one that is written, for systems ``abis`` (none: this machine);
    ``calibrate`` as for :class:`LowerLinears`."""
    return (
        LiftConstantsToInitializersPass(size_limit=CONSTANT_ELEMENTS),  # TorchScript graphs hold weights in nodes
        NormalizeLinear(),  # generic graphs: layers as decoders have them
        FoldKeyTranspose(),  # before anything follows the heads of attention
        RemoveUnusedNodesPass(),  # what these two left: a weight is shared only where both readers count
        RemoveDeadUnits(),  # before the choice: formats, blocks and merging then fit what is left
        RemoveDeadRows(recipe.unused_embedding_rows == "drop"),  # likewise
        ChooseFormats(recipe, abis),  # before anything merges: rules see the layers as the user knows them
        FoldRope(),  # before merging: attention then reads the linear layers directly
        MergeLinears(),  # after the choice: only layers of one format merge
        FuseSkipNorm(),  # any time
        GuardProducts(),  # after dead units, which are followed through the guard where PyTorch has it
        LowerExperts(),  # after the choice
        LowerAttention(),  # after merging, which knows the stock operator; before the next, which adds function bodies
        LowerLinears(calibrate),  # last rewrite: abstract layers become operators
        ListStockLayers(),  # after it: what it left
        RemoveUnusedNodesPass(),  # weights that merging replaced
        RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    )
