"""The recipe's decision for every linear and embedding layer, written on the nodes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from edgekit.errors import RecipeError
from edgekit.lowbit.formats import detect_ternary, keeps, sparse_facts
from edgekit.lowbit.initializers import weight_of
from edgekit.passes.layers import EXPERT_WEIGHTS, experts_of, layers_of, weight_shape
from edgekit.recipe import Recipe, Rule
from edgekit.spec.facts import plan_of, set_plan
from edgekit.spec.formats import EXPERT_FORMATS, FORMATS

BREAK_EVEN = 0.4
"""From which share of zeros on a sparse format is faster than its dense one: measured with one token and weights from
memory at 25 and 23 %, and a margin (benchmarks/sparse.py, docs/kernels.md)."""
SPARSE_PROCESSOR = "x86_64"
"""Where that was measured, with AVX512-VBMI2. With AVX2 sparse formats are slower, on ARM nobody has measured them."""
CACHE_BYTES = 32 << 20
"""Weights that fit here (the last cache of the machine measured) are read from it; dense formats are faster there."""


class ChooseFormats(ir.passes.InPlacePass):
    """Plans format and block size of each ``Linear`` and ``Embedding``, with a remark.

    Raises RecipeError when a rule matches no layer: the commonest cause of "it exported but nothing shrank".
    """

    def __init__(self, recipe: Recipe, abis: Sequence[str] = ()) -> None:
        """``abis`` are the systems that the model is for; none is this machine."""
        self.recipe = recipe
        self._slower = next((abi for abi in abis if not abi.endswith(SPARSE_PROCESSOR)), "")
        self._from_cache = False  # the model's weights are few enough to stay there

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in layers_of(model.graph) if not plan_of(n).format]  # others are decided: routers
        weights: dict[int, list[ir.Node]] = {}
        for node in nodes:
            weights.setdefault(id(node.inputs[1]), []).append(node)
        # The largest table holds the tokens; others hold positions and segments.
        tokens = max((weight_shape(n)[0] for n in nodes if n.op_type == "Embedding"), default=-1)
        used: set[Rule] = set()
        self._from_cache = self._dense_bytes(nodes) <= CACHE_BYTES
        for sharing in weights.values():
            self._decide(sharing, used, vocabulary=weight_shape(sharing[0])[0] == tokens)
        mixtures = experts_of(model.graph)
        for node in mixtures:
            self._decide_experts(node, used)
        self._check_rules(used, [plan_of(n).layer for n in (*nodes, *mixtures)])
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _decide(self, sharing: Sequence[ir.Node], used: set[Rule], vocabulary: bool) -> None:
        """All nodes that read one weight get one format: the linear layer's, if there is one."""
        leader = next((n for n in sharing if n.op_type == "Linear"), sharing[0])
        embedding = any(n.op_type == "Embedding" for n in sharing)
        applies = partial(_applies, leader, vocabulary, embedding)
        rules = {id(node): self.recipe.rule_for(plan_of(node).layer, applies) for node in sharing}
        used.update(rule for rule in rules.values() if rule is not None)
        rule = rules[id(leader)]
        if rule is not None and FORMATS[rule.format].layout == "sparse":
            format_name, block, reason = self._sparse(rule, leader, embedding)
        else:
            format_name, block, reason = _resolve(rule, weight_shape(leader)[1], embedding)
        for node in sharing:
            note = reason if rules[id(node)] == rule else f"shares its weight with {plan_of(leader).layer}"
            set_plan(node, replace(plan_of(node), format=format_name, block_size=block, reason=note))

    def _decide_experts(self, node: ir.Node, used: set[Rule]) -> None:
        """All experts of a layer get one format, of those that ExpertMatMul reads."""
        plan, (_, columns), (_, hidden) = plan_of(node), *(weight_shape(node, place) for place in EXPERT_WEIGHTS)
        rule = self.recipe.rule_for(plan.layer, partial(_all_ternary, node))
        name, block, reason = _resolve(rule, columns, embedding=False)
        if rule is not None:
            used.add(rule)
        if FORMATS[name].layout == "floats" and name != "fp32":
            name, reason = "fp32", f"experts are read in place; {name} would be widened whole"
        elif FORMATS[name].layout != "floats" and name not in EXPERT_FORMATS:
            stand_in = FORMATS[name].stand_in or "int8"
            reason = f"experts cannot be {name}; stored as {stand_in}"
            name, block = stand_in, FORMATS[stand_in].block_size
        elif name == "t2" and (columns % block or hidden % block):
            reason = f"experts of {columns} and {hidden} columns, no multiples of {block}; stored as int8"
            name, block = "int8", FORMATS["int8"].block_size
        while block and (columns % block or hidden % block):
            block //= 2
        smallest = min(FORMATS[name].block_sizes, default=0)
        if block < smallest:
            reason = f"experts of {columns} and {hidden} columns, no multiples of {smallest}"
            name, block = "fp32", 0
        set_plan(node, replace(plan, format=name, block_size=block, reason=reason))

    def _sparse(self, rule: Rule, leader: ir.Node, embedding: bool) -> tuple[str, int, str]:
        """Sparse where that was measured to be faster than the dense format that it replaces, else that one."""
        kind, weight = FORMATS[rule.format], leader.inputs[1]
        dense = kind.stand_in
        if embedding or weight is None or weight.const_value is None:
            why = "embedding: looked up by row"
        elif self._slower:
            why = f"for {self._slower} too (--abi), where {rule.format} was not measured to be faster"
        elif self._from_cache:
            why = f"the model's weights stay in a cache of {CACHE_BYTES >> 20} MiB, where {dense} is faster"
        else:
            zeros, _ = sparse_facts(weight_of(weight.const_value), kind.bits)
            if zeros >= BREAK_EVEN:
                return rule.format, 0, f"{zeros:.1%} zeros: faster than {dense} from {BREAK_EVEN:.0%}"
            why = f"{zeros:.1%} zeros, {rule.format} is faster than {dense} from {BREAK_EVEN:.0%}"
        name, block, note = _resolve(Rule(rule.match, dense), weight_shape(leader)[1], embedding)
        return name, block, f"{why}; stored as {dense}" + (f", {note}" if note else "")

    def _dense_bytes(self, nodes: Sequence[ir.Node]) -> int:
        """Bytes of all weights of linear layers, sparse ones as what they replace."""
        total, seen = 0, set()
        for node in nodes:
            if node.op_type != "Linear" or id(node.inputs[1]) in seen:
                continue
            seen.add(id(node.inputs[1]))
            rule = self.recipe.rule_for(plan_of(node).layer)
            rows, columns = weight_shape(node)
            total += rows * columns * (FORMATS[rule.format].bits if rule else 32) // 8
        return total

    def _check_rules(self, used: set[Rule], layers: Sequence[str]) -> None:
        exact = [rule for rule in self.recipe.rules if rule.only == "exact"]
        if layers and exact and not used.intersection(exact):
            formats = ", ".join(f"{rule.format} in blocks of {rule.block_size}" for rule in exact)
            raise RecipeError(
                f"recipe {self.recipe.name}: no layer holds values that {formats} keep bit for bit (a GGUF file of Q4_0 or Q8_0 "
                "does, or what edgekit compress made); use int8 or int4"
            )
        for index, rule in enumerate(self.recipe.rules):
            if rule in used or rule in exact or (rule.match == "*" and (not layers or rule.only == "vocabulary")):
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


def _all_ternary(node: ir.Node, rule: Rule) -> bool:
    """Whether a rule for ternary layers only is for a mixture of experts; other such rules are not."""
    weights = [node.inputs[place] for place in EXPERT_WEIGHTS]
    return rule.only == "ternary" and all(
        w is not None and w.const_value is not None and detect_ternary(weight_of(w.const_value)) is not None
        for w in weights
    )


def _applies(node: ir.Node, vocabulary: bool, embedding: bool, rule: Rule) -> bool:
    """Whether a rule for some layers only is for this one; weights are looked at only where a recipe asks."""
    if rule.only == "vocabulary":
        return vocabulary
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return False
    values = weight_of(weight.const_value)
    if rule.only == "ternary":
        return detect_ternary(values) is not None
    name, block, _ = _resolve(rule, weight_shape(node)[1], embedding)  # what it would be stored as
    return keeps(name, block, values)


def _resolve(rule: Rule | None, columns: int, embedding: bool) -> tuple[str, int, str]:
    """Format, block size and remark for a weight with K = ``columns``."""
    if rule is None:
        return "fp32", 0, "no rule matches"
    kind = FORMATS[rule.format]
    block = rule.block_size or kind.block_size
    if embedding and not kind.lookup:
        why = f"embedding: looked up by row, stored as {kind.stand_in}"
        name, block, note = _resolve(Rule(rule.match, kind.stand_in), columns, embedding)
        return name, block, f"{why}, {note}" if note else why
    if kind.lookup != "quantized":
        return rule.format, block, ""
    smallest = kind.block_sizes[0]
    fitting = block
    # The lookup operator cannot read a padded row.
    while embedding and fitting >= smallest and columns % fitting:
        fitting //= 2
    if fitting < smallest:
        return "fp16", 0, f"embedding of {columns} columns is no multiple of {smallest}; stored as fp16"
    note = "" if fitting == block else f"blocks of {fitting}: {columns} columns are no multiple of {block}"
    return rule.format, fitting, note
