"""The recipe's decision for every linear and embedding layer, written on the nodes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import onnx_ir as ir

from edgekit.errors import RecipeError
from edgekit.lowbit.formats import FORMATS, detect_ternary
from edgekit.lowbit.initializers import weight_of
from edgekit.recipe import Recipe, Rule

EDGEKIT = "ai.edgekit"
SMALLEST_BLOCK = 16  # of MatMulNBits and GatherBlockQuantized


class ChooseFormats(ir.passes.InPlacePass):
    """Sets ``edgekit.format``, ``edgekit.block_size`` and ``edgekit.reason`` on each ``Linear`` and ``Embedding``.

    Raises RecipeError when a rule matches no layer: the commonest cause of "it exported but nothing shrank".
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if n.domain == EDGEKIT and n.op_type in ("Linear", "Embedding")]
        weights: dict[int, list[ir.Node]] = {}
        for node in nodes:
            weights.setdefault(id(node.inputs[1]), []).append(node)
        # The largest table holds the tokens; others hold positions and segments.
        tokens = max((_sizes(n)[0] for n in nodes if n.op_type == "Embedding"), default=-1)
        used: set[Rule] = set()
        for sharing in weights.values():
            self._decide(sharing, used, vocabulary=_sizes(sharing[0])[0] == tokens)
        self._check_rules(used, [n.metadata_props["edgekit.layer"] for n in nodes])
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _decide(self, sharing: Sequence[ir.Node], used: set[Rule], vocabulary: bool) -> None:
        """All nodes that read one weight get one format: the linear layer's, if there is one."""
        leader = next((n for n in sharing if n.op_type == "Linear"), sharing[0])
        kinds = (["vocabulary"] if vocabulary else []) + (["ternary"] if self._is_ternary(leader) else [])
        rules = {id(node): self.recipe.rule_for(node.metadata_props["edgekit.layer"], kinds) for node in sharing}
        used.update(rule for rule in rules.values() if rule is not None)
        rule = rules[id(leader)]
        embedding = any(n.op_type == "Embedding" for n in sharing)
        format_name, block, reason = _resolve(rule, _sizes(leader)[1], embedding)
        for node in sharing:
            name = leader.metadata_props["edgekit.layer"]
            note = reason if rules[id(node)] == rule else f"shares its weight with {name}"
            node.metadata_props.update(
                {"edgekit.format": format_name, "edgekit.block_size": str(block), "edgekit.reason": note}
            )

    def _is_ternary(self, node: ir.Node) -> bool:
        """Whether the weight is ternary; looked at only where the recipe asks."""
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or not any(r.only == "ternary" for r in self.recipe.rules):
            return False
        return detect_ternary(weight_of(weight.const_value)) is not None

    def _check_rules(self, used: set[Rule], layers: Sequence[str]) -> None:
        for index, rule in enumerate(self.recipe.rules):
            if rule in used or (rule.match == "*" and (not layers or rule.only == "vocabulary")):
                continue
            if index and rule.match == "*" and not rule.only:
                continue  # a catch-all that earlier rules left nothing for
            where = f"recipe {self.recipe.name}, rules[{index}] (match: '{rule.match}')"
            if rule.only == "ternary":
                raise RecipeError(
                    f"{where}: no layer holds ternary weights ({{-s, 0, s}} per tensor, row or 128 columns); "
                    "this model was not trained for it, use int4 or int8"
                )
            close = difflib.get_close_matches(rule.match, layers, n=3, cutoff=0.3) or list(layers[:3])
            raise RecipeError(f"{where}: matches no layer; layers are named like {', '.join(close) or '(none)'}")


def _sizes(node: ir.Node) -> tuple[int, int]:
    """N and K of a layer's weight."""
    shape = node.inputs[1].shape  # type: ignore[union-attr]
    return int(shape[0]), int(shape[1])  # type: ignore[index, arg-type]


def _resolve(rule: Rule | None, columns: int, embedding: bool) -> tuple[str, int, str]:
    """Format, block size and remark for a weight with K = ``columns``."""
    if rule is None:
        return "fp32", 0, "no rule matches"
    kind = FORMATS[rule.format]
    block = rule.block_size or kind.default_block_size
    if rule.format == "t2" and embedding:
        return "int8", FORMATS["int8"].default_block_size, "embedding: looked up by row, stored as int8"
    if rule.format not in ("int8", "int4"):
        return rule.format, block, ""
    fitting = block
    # The lookup operator cannot read a padded row.
    while embedding and fitting >= SMALLEST_BLOCK and columns % fitting:
        fitting //= 2
    if fitting < SMALLEST_BLOCK:
        return "fp16", 0, f"embedding of {columns} columns is no multiple of {SMALLEST_BLOCK}; stored as fp16"
    note = "" if fitting == block else f"blocks of {fitting}: {columns} columns are no multiple of {block}"
    return rule.format, fitting, note
