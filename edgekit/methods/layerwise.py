"""Compression without training: each linear layer rounded on real text, and what that costs compensated beside it.

One pass over the model (:func:`edgekit.methods.calibrate.layer_by_layer`): a group of layers that read one input is
rounded by plain rounding, GPTQ, ternary planes or 2:4 pruning, then, if asked, gets a low-rank branch
(:mod:`edgekit.methods.eora`); the outputs of what came of it feed the layers after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import CheckFailed, UnsupportedError
from edgekit.low_rank import BranchedLinear, attach
from edgekit.methods.calibrate import Batch, Group, groups_of, layer_by_layer
from edgekit.methods.eora import Compensation, LowRank, compensated, output_error, rank_within, stored, stored_bytes
from edgekit.methods.fitted_recipe import Option, option_of, weight_bytes
from edgekit.methods.gptq import Gptq, gptq, rounded
from edgekit.methods.prune import two_of_four
from edgekit.methods.resume import FinishedBlocks
from edgekit.methods.ternarize import Planes, Ternary, block_sums, ternarize
from edgekit.spec.progress import Progress

Rounding = Callable[[Tensor, Tensor], Planes]
"""From a weight [N, K] and its input's Hessian float64 [K, K] to what it becomes."""


@dataclass(frozen=True)
class Calibration:
    """``examples`` drawn from the training data run through the model, ``batch`` at a time; ``exclude``: globs over layers."""

    examples: int = 256
    batch: int = 8
    sequential: bool = True  # a block's later layers see what its earlier ones have become
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.examples < 1 or self.batch < 1:
            raise UnsupportedError(f"calibration: examples {self.examples}, batch {self.batch}; both are at least 1")


@dataclass(frozen=True)
class Method:
    """How weights become smaller (``of``: int4, gptq, ternarize, 2:4, none) and what compensates it, if anything."""

    of: str
    gptq: Gptq = field(default_factory=Gptq)
    ternary: Ternary = field(default_factory=Ternary)
    compensation: Compensation | None = None

    @property
    def damping(self) -> float:
        """Of the Hessian where it is inverted."""
        return self.ternary.damping if self.of == "ternarize" else self.gptq.damping

    def option(self, model: nn.Module) -> Option | None:
        """How the blocks' layers are stored afterwards; None where each keeps its own format."""
        return option_of(model, self.of, self.gptq.group_size)

    def rounding(self) -> Rounding:
        """The function that makes of a weight what ``of`` says."""
        if self.of == "int4":
            return lambda w, h: Planes((rounded(w, self.gptq.bits, self.gptq.group_size, torch.diagonal(h)),), None)
        if self.of == "gptq":
            return lambda w, h: Planes((gptq(w, h, self.gptq),), None)
        if self.of == "ternarize":
            return lambda w, h: ternarize(w, h, self.ternary)
        if self.of == "2:4":
            return lambda w, h: Planes((w * two_of_four(w),), None)
        return lambda w, h: Planes((w.clone(),), None)


@torch.no_grad()
def compress_layers(
    model: nn.Module,
    batches: Sequence[Batch],
    method: Method,
    calibration: Calibration = Calibration(),
    originals: Mapping[str, Tensor] | None = None,
    finished: FinishedBlocks | None = None,
    progress: Progress = lambda what, share: None,
) -> list[dict[str, Any]]:
    """Compresses the linear layers of a model's blocks in place; a row for each group that reads one input.

    Errors are shares of the energy of the group's outputs on the calibration text: ``error`` of the rounded weights
    alone, ``compensated`` with the low-rank branch, ``svd`` with a plain decomposition of the same rank and format
    instead (both null without). ``bytes`` is what a bundle stores for the group. ``originals`` are the weights [N, K]
    by layer before an earlier compression, which is then what is compensated. ``finished`` keeps every block that is
    through, and knows those of an interrupted run. Raises what :func:`layer_by_layer` does, UsageError for a budget
    that is too small.
    """
    settings, rank, option = method.compensation, 0, method.option(model)
    rows: list[dict[str, Any]] = []
    if settings is not None:
        rank = settings.rank
        if settings.bytes:
            groups = [list(group.values()) for group in groups_of(model, batches[0], calibration.exclude)]
            shapes = [(sum(layer.out_features for layer in group), group[0].in_features) for group in groups]
            rank = rank_within(settings.bytes, shapes, settings.format)
    began = 0  # rows before the current block

    def restore(block: str) -> bool:
        nonlocal began
        earlier = finished.restore(model, block) if finished is not None else None
        rows.extend(earlier or ())
        began = len(rows)
        return earlier is not None

    def done(block: str) -> None:
        if finished is not None:
            finished.keep(model, block, rows[began:])

    layer_by_layer(
        model,
        batches,
        lambda group: rows.append(_compress(model, group, method, option, rank, originals)),
        exclude=calibration.exclude,
        sequential=calibration.sequential,
        restore=restore,
        done=done,
        progress=progress,
    )
    return rows


def _compress(
    model: nn.Module, group: Group, method: Method, option: Option | None, rank: int,
    uncompressed: Mapping[str, Tensor] | None,
) -> dict[str, Any]:  # fmt: skip
    rounding = method.rounding()
    weights = {name: _whole(name, layer) for name, layer in group.layers.items()}
    originals = weights if uncompressed is None else {name: uncompressed[name] for name in weights}
    try:
        results = {name: rounding(weight, group.hessian) for name, weight in weights.items()}
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CheckFailed(
            f"{group.name}: the Hessian of its inputs cannot be inverted with damping {method.damping:g}; raise "
            "damping, or calibrate with more examples"
        ) from error
    bare = torch.cat([originals[name] - sum(result.planes) for name, result in results.items()])
    offsets = _offsets(results, len(group.hessian))
    difference = bare if offsets is None else bare - offsets.product
    energy = max(output_error(torch.cat(list(originals.values())), group.hessian), 1e-30)
    row: dict[str, Any] = {"layer": group.name, "shape": list(difference.shape)}
    row |= {"error": output_error(difference, group.hessian) / energy, "compensated": None, "svd": None}
    row |= {"rank": 0, "bytes": 0}
    branch, settings = offsets, method.compensation
    if settings is not None:
        branch = compensated(difference, group.hessian, settings, rank, offsets)
        row["compensated"] = output_error(bare - branch.product, group.hessian) / energy
        plain = branch
        if settings.method != "svd":
            plain = compensated(difference, group.hessian, replace(settings, method="svd"), rank, offsets)
        row["svd"] = output_error(bare - plain.product, group.hessian) / energy
    if branch is not None:
        name = settings.format if settings is not None else "int8"
        row["rank"] = len(branch.down)
        row["bytes"] = sum(stored_bytes(len(part), part.shape[1], name) for part in (branch.down, branch.up))
    _put(model, results, branch, keep=method.of == "none")
    row["bytes"] += weight_bytes(map(model.get_submodule, group.layers), option)
    return row


def _whole(name: str, layer: nn.Linear) -> Tensor:
    """A layer's weight float32, with a second plane added that it may have already."""
    if not isinstance(layer, BranchedLinear):
        return layer.weight.detach().float().clone()
    if layer.lora_A is not None:
        raise UnsupportedError(f"{name}: has a low-rank branch already; leave it out with exclude, or compress anew")
    return layer.weight if layer.second is None else layer.weight + layer.second.weight


def _offsets(results: Mapping[str, Planes], columns: int) -> LowRank | None:
    """The branch that adds each row's mu times the sums of the inputs, as stored; None without offsets."""
    offsets = [result.offset for result in results.values() if result.offset is not None]
    return LowRank(stored(torch.cat(offsets), "int8"), block_sums(columns)) if offsets else None


def _put(model: nn.Module, results: Mapping[str, Planes], branch: LowRank | None, keep: bool) -> None:
    """Writes what became of a group's weights (``keep``: they stay), and gives the layers their branches."""
    shared = nn.Parameter(branch.down, requires_grad=False) if branch is not None else None
    start = 0
    for name, result in results.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if not keep:
            layer.weight.copy_(result.planes[0])
            if isinstance(layer, BranchedLinear):
                layer.second = None  # its sum with the weight is what was rounded
        parts: dict[str, Tensor] = {"second": result.planes[1]} if len(result.planes) > 1 else {}
        if branch is not None and shared is not None:
            parts |= {"lora_A": shared, "lora_B": branch.up[start : start + layer.out_features].clone()}
        start += layer.out_features
        if parts:
            attach(model, name, parts)
