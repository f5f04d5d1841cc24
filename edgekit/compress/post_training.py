"""Compression without training: each linear layer rounded on real text, and what that costs compensated beside it.

One pass over the model (:func:`edgekit.compress.calibrate.layer_by_layer`): a group of layers that read one input is rounded by
plain rounding, GPTQ, ternary planes or 2:4 pruning, then, if asked, gets a low-rank side path (:mod:`edgekit.compress.eora`);
the outputs of what came of it feed the layers after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.calibrate import Batch, Group, Progress, blocks_of, groups_of, layer_by_layer
from edgekit.compress.eora import (
    Compensation,
    block_of,
    compensated,
    output_error,
    plain_svd,
    rank_within,
    stored,
    stored_bytes,
)
from edgekit.compress.gptq import GROUP_SIZES, Gptq, gptq, rounded
from edgekit.compress.prune import two_of_four
from edgekit.compress.ternarize import Planes, Ternary, block_sums, ternarize
from edgekit.errors import UnsupportedError
from edgekit.lowbit.formats import TERNARY_BLOCK
from edgekit.recipe import VERSION, Limits, Recipe, Rule
from edgekit.side_path import attach

Rounding = Callable[[Tensor, Tensor], Planes]
"""From a weight [N, K] and its input's moments float64 [K, K] to what it becomes."""
PARITY = Limits(kl=0.01, sqnr_db=20.0, cosine=0.99, top1=0.99, margin=0.5, perplexity_ratio=1.02)
"""What a bundle must keep of the compressed model: as in the shipped int4 recipe."""


@dataclass(frozen=True)
class Calibration:
    """``examples`` of the training data are run through the model, ``batch`` at a time; ``exclude`` are globs over layers."""

    examples: int = 64
    batch: int = 8
    sequential: bool = True  # a block's later layers see what its earlier ones have become
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.examples < 1 or self.batch < 1:
            raise UnsupportedError(f"calibration: examples {self.examples}, batch {self.batch}; both are at least 1")


@dataclass(frozen=True)
class Method:
    """How weights become smaller (one of ``of``: int4, gptq, ternarize, 2:4, none) and what compensates it, if anything."""

    of: str
    gptq: Gptq = field(default_factory=Gptq)
    ternary: Ternary = field(default_factory=Ternary)
    compensation: Compensation | None = None

    def rounding(self) -> Rounding:
        """The function that makes of a weight what ``of`` says."""
        if self.of == "int4":
            return lambda w, h: Planes((rounded(w, self.gptq.bits, self.gptq.group_size),), None)
        if self.of == "gptq":
            return lambda w, h: Planes((gptq(w, h, self.gptq),), None)
        if self.of == "ternarize":
            return lambda w, h: ternarize(w, h, self.ternary)
        if self.of == "2:4":
            return lambda w, h: Planes((w * two_of_four(w),), None)
        return lambda w, h: Planes((w.clone(),), None)


@torch.no_grad()
def compress_layers(
    model: nn.Module, batches: Sequence[Batch], method: Method, calibration: Calibration = Calibration(),
    originals: Mapping[str, Tensor] | None = None, progress: Progress = lambda what, share: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compresses the linear layers of a model's blocks in place; a row for each group that reads one input.

    Errors are shares of the energy of the group's outputs on the calibration text: ``error`` of the rounded weights alone,
    ``compensated`` with the side path, ``svd`` with a plain decomposition of the same rank instead (both null without).
    ``bytes`` is what a bundle stores for the group. ``originals`` are the weights [N, K] by layer before an earlier
    compression, which is then what is compensated. Raises what :func:`layer_by_layer` does, UsageError for a budget that
    is too small.
    """
    settings, rank = method.compensation, 0
    rows: list[dict[str, Any]] = []
    if settings is not None:
        rank = settings.rank
        if settings.bytes:
            groups = groups_of(model, batches[0], calibration.exclude)
            shapes = [
                (sum(layer.out_features for layer in g.values()), next(iter(g.values())).in_features) for g in groups
            ]
            rank = rank_within(settings.bytes, shapes, settings.format)
    layer_by_layer(
        model, batches, lambda group: rows.append(_compress(model, group, method, rank, originals)),
        exclude=calibration.exclude, sequential=calibration.sequential, progress=progress,
    )  # fmt: skip
    return rows


def _compress(
    model: nn.Module, group: Group, method: Method, rank: int, given: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    rounding = method.rounding()
    weights = {name: _whole(layer) for name, layer in group.layers.items()}
    originals = weights if given is None else {name: given[name] for name in weights}
    found = {name: rounding(weight, group.moments) for name, weight in weights.items()}
    difference = torch.cat([originals[name] - result.weight for name, result in found.items()])
    energy = max(output_error(torch.cat(list(originals.values())), group.moments), 1e-30)
    row: dict[str, Any] = {
        "layer": group.name, "shape": list(difference.shape), "error": output_error(difference, group.moments) / energy,
        "compensated": None, "svd": None, "rank": 0, "bytes": _bytes(group, method),
    }  # fmt: skip
    downs, ups = _offsets(found, group)
    settings = method.compensation
    if settings is not None:
        low = compensated(difference, group.moments, settings, rank)
        downs, ups = [*downs, low.down], [torch.cat([*ups, low.up], 1)] if ups else [low.up]
        row["compensated"] = output_error(difference - low.product, group.moments) / energy
        row["svd"] = output_error(difference - plain_svd(difference, rank).product, group.moments) / energy
    if downs:
        name = settings.format if settings is not None else "int8"
        down, up = torch.cat(downs), ups[0]
        up = stored(up, name) if len(downs) > 1 or settings is None else up  # mu and B share a row's step
        row["rank"] = len(down)
        row["bytes"] += stored_bytes(len(down), down.shape[1], name) + stored_bytes(len(up), up.shape[1], name)
    _put(model, found, (down, up) if downs else None)
    return row


def _whole(layer: nn.Linear) -> Tensor:
    """A layer's weight float32, with a second plane added that it may have already."""
    second = getattr(layer, "second", None)
    return layer.weight.detach().float().clone() if second is None else layer.weight + second.weight


def _offsets(found: dict[str, Planes], group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """The A and the stacked B that add each row's mu times the sums of the inputs; nothing without offsets."""
    offsets = [result.offset for result in found.values() if result.offset is not None]
    return ([block_sums(len(group.moments))], [torch.cat(offsets)]) if offsets else ([], [])


def _put(model: nn.Module, found: dict[str, Planes], side: tuple[Tensor, Tensor] | None) -> None:
    shared = nn.Parameter(side[0], requires_grad=False) if side is not None else None
    start = 0
    for name, result in found.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(result.planes[0])
        parts: dict[str, Tensor] = {"second": result.planes[1]} if len(result.planes) > 1 else {}
        if side is not None and shared is not None:
            parts |= {"lora_A": shared, "lora_B": side[1][start : start + layer.out_features].clone()}
        start += layer.out_features
        if parts:
            attach(model, name, parts)


def _bytes(group: Group, method: Method) -> int:
    total = 0
    for layer in group.layers.values():
        rows, columns = layer.weight.shape
        if method.of == "ternarize":
            total += method.ternary.planes * rows * -(-columns // TERNARY_BLOCK) * (TERNARY_BLOCK // 4 + 4)
        elif method.of in ("int4", "gptq"):
            total += _int4_bytes(rows, columns, stored_block([(rows, columns)], method.gptq.group_size))
        else:
            total += 4 * rows * columns
    return total


def _int4_bytes(rows: int, columns: int, block: int) -> int:
    return rows * -(-columns // block) * (block // 2 + 4)


def stored_block(shapes: Sequence[tuple[int, int]], group_size: int) -> int:
    """The block size with which int4 stores layers [N, K] of a GPTQ group size in the fewest bytes, and exactly.

    Blocks may be parts of a group: padding a last half group can cost more than a second scale.
    """
    fitting = [size for size in GROUP_SIZES[1:] if not group_size or group_size % size == 0]
    return min(fitting, key=lambda size: sum(_int4_bytes(n, k, size) for n, k in shapes))


def recipe_for(model: nn.Module, method: Method, name: str, exclude: Sequence[str] = ()) -> Recipe:
    """The recipe that stores a compressed model as it is: every weight on its grid, side paths in their formats.

    What stands outside the blocks, and what was left out of them by ``exclude``, is stored at 8 bits.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    rules: list[Rule] = []
    kind = method.compensation.format if method.compensation is not None else "int8"
    for part in ("lora_A", "lora_B"):
        found = [m for n, m in linears.items() if n.endswith(f".{part}")]
        if found:
            # A group's layers differ in N alone, so that their blocks are the same and they can be merged.
            rules.append(Rule(f"*.{part}", kind, 0 if kind == "fp16" else block_of(max(m.in_features for m in found))))
    rules += [Rule(pattern, "int8") for pattern in exclude]
    inside = next(iter(blocks_of(model))).rpartition(".")[0]
    pattern = f"{inside}.*" if inside else "*"
    if not inside and any(isinstance(m, nn.Embedding) for m in model.modules()):
        rules.append(Rule("*", "int8", only="vocabulary"))
    if method.of == "ternarize":
        rules.append(Rule(pattern, "t2", only="ternary"))
    elif method.of in ("int4", "gptq"):
        shapes = [
            m.weight.shape for n, m in linears.items() if n.startswith(inside) and not n.endswith(("lora_A", "lora_B"))
        ]
        rules.append(Rule(pattern, "int4", stored_block([(n, k) for n, k in shapes], method.gptq.group_size)))
    rules.append(Rule("*", "int8"))
    return Recipe(VERSION, name, tuple(rules), "made by edgekit compress for this model", PARITY)
