"""Calibration: collects input statistics per layer on real text, on the partly compressed model.

    layer_by_layer(model, batches, change)

runs the model's repeated blocks one after the other. For each group of linear layers that read one input it sums the
Hessian H = sum x x^T of their layer-wise squared error, has ``change`` compress them, and feeds the outputs of what
they have become to what comes next. The structure is found with hooks: any model whose blocks pass one tensor on, such
as Llama's or BERT's; a model without such blocks is one block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import CheckFailed, UnsupportedError, UsageError
from edgekit.low_rank import branch_names
from edgekit.methods.selection import is_conv1d, without
from edgekit.spec.progress import Progress

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Linear layers that read one input, by name in the order they are called.

    ``hessian`` float64 [K, K] is the sum of x x^T over ``count`` rows x of that input; padding is left out.
    """

    layers: dict[str, nn.Linear]
    hessian: Tensor
    count: int

    @property
    def name(self) -> str:
        """a.q_proj, a.k_proj -> a.q_proj+k_proj."""
        first, *others = self.layers
        return "+".join([first, *(name.rpartition(".")[2] for name in others)])


@dataclass
class _Inputs:
    """A block's arguments in one batch: the tensor that the block before it gave, and all others."""

    hidden: Tensor | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.no_grad()
def layer_by_layer(
    model: nn.Module,
    batches: Sequence[Batch],
    change: Callable[[Group], None],
    *,
    exclude: Sequence[str] = (),
    sequential: bool = True,
    restore: Callable[[str], bool] = lambda block: False,
    done: Callable[[str], None] = lambda block: None,
    progress: Progress = lambda what, share: None,
) -> None:
    """Calls ``change`` for every group of linear layers in the model's blocks, in the order they are computed.

    ``batches`` are for ``model(**batch)``. ``change`` may alter the layers' weights or replace the layers.
    ``sequential`` takes the Hessians of a block's later groups after its earlier ones were changed; otherwise one pass
    counts them all. ``restore`` is asked first for each block and may make it what an earlier run made of it; ``done``
    is told of every other block when it is through. ``exclude`` are globs over names. Embeddings, heads and whatever
    else stands outside the blocks are left alone.

    Raises UnsupportedError naming the layer for a model that cannot be calibrated so, UsageError for a pattern that
    fits nothing, CheckFailed naming the layer when an activation is not finite.
    """
    if not batches:
        raise UsageError("calibration: no examples; give at least one")
    blocks = blocks_of(model)
    targets = _targets(model, blocks, exclude)
    training = model.training
    model.eval()
    with _without_cache(model):
        inputs = _first_run(model, blocks, batches)
        hidden: list[Tensor] = []  # what the block before gave
        for index, (name, block) in enumerate(blocks.items()):
            progress("calibrate", index / len(blocks))
            calls = inputs[index]
            if index:
                for call, before in zip(calls, hidden, strict=True):
                    call.hidden = before
            if not restore(name):
                _change_block(model, block, targets[name], calls, batches, change, sequential)
                done(name)
            if index + 1 < len(blocks):
                hidden = [_tensor(_call(block, call)) for call in calls]
            inputs[index] = []  # its arguments are not needed any more
    model.train(training)
    progress("calibrate", 1.0)


@torch.no_grad()
def mean_squares(
    model: nn.Module,
    names: Collection[str],
    batches: Sequence[Batch],
    progress: Progress = lambda what, share: None,
) -> dict[str, Tensor]:
    """Of each named layer's inputs [..., K] the mean squares float64 [K], padding left out: the diagonals of the Hessians
    that :func:`layer_by_layer` counts, on the model as it is and in one pass.

    Layers that no batch reaches are not in it. Raises CheckFailed naming the layer when an activation is not finite.
    """
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    inside = {id(module) for module in body.modules()} if isinstance(body, nn.Module) else set()
    layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if name in names}
    # Logits over a large vocabulary are computed only where the head is asked for.
    run: Any = body if all(id(layer) in inside for layer in layers.values()) else model
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: Tensor | None = None

    def enter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        rows = _rows(args[0] if args else kwargs["input"], mask)
        sums[name] = sums.get(name, 0.0) + _finite(name, rows.square().sum(0).double())
        counts[name] = counts.get(name, 0) + len(rows)

    with _watched(layers, enter), _without_cache(model):
        for index, batch in enumerate(batches):
            progress("calibrate", index / len(batches))
            mask = batch.get("attention_mask")
            run(**batch)
    progress("calibrate", 1.0)
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


def groups_of(model: nn.Module, batch: Batch, exclude: Sequence[str] = ()) -> list[dict[str, nn.Linear]]:
    """The groups that :func:`layer_by_layer` would give, without changing anything."""
    groups: list[dict[str, nn.Linear]] = []
    layer_by_layer(model, [batch], lambda group: groups.append(group.layers), exclude=exclude, sequential=False)
    return groups


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The longest list of modules that all hold linear layers (not inside another list), or the whole model."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [
        (name, module)
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other, _ in lists if other != name)
        and len(module) > 0
        and all(any(map(_is_linear, inner.modules())) for inner in module)
    ]
    if not outer:
        return {"": model}
    name, longest = max(outer, key=lambda entry: len(entry[1]))
    return {f"{name}.{index}": block for index, block in enumerate(longest)}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _inside(block: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A block's modules with their names in the model."""
    return ((f"{block}.{name}" if block else name, inner) for name, inner in module.named_modules())


def _targets(model: nn.Module, blocks: Mapping[str, nn.Module], exclude: Sequence[str]) -> dict[str, list[str]]:
    """The names of each block's layers that are to be changed."""
    uses: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            uses.setdefault(id(weight), []).append(name)
    branches = branch_names(model)
    linears = {
        block: [name for name, module in _inside(block, blocks[block]) if _is_linear(module) and name not in branches]
        for block in blocks
    }
    chosen = without([name for names in linears.values() for name in names], exclude, "layer")
    if not chosen:
        raise UnsupportedError(f"{type(model).__name__}: no linear layer in its blocks; nothing to compress")
    for name in chosen:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise UnsupportedError(
                f"{name} ({type(layer).__name__}): only nn.Linear layers are calibrated; leave it out with exclude"
            )
        others = [other for other in uses[id(layer.weight)] if other != name]
        if others:
            raise UnsupportedError(f"{name}: shares its weight with {others[0]}; leave it out with exclude")
    return {block: [name for name in names if name in chosen] for block, names in linears.items()}


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A block that is run several times must not append to a key-value cache each time."""
    configs: dict[int, Any] = {
        id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "use_cache")
    }
    before = [(config, config.use_cache) for config in configs.values()]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, value in before:
            config.use_cache = value


def _first_run(model: nn.Module, blocks: Mapping[str, nn.Module], batches: Sequence[Batch]) -> list[list[_Inputs]]:
    """The arguments of each block in each batch; checks that a block's input is the output of the one before."""
    if list(blocks) == [""]:
        return [[_Inputs(None, (), dict(batch)) for batch in batches]]
    calls_of: list[list[_Inputs]] = [[] for _ in blocks]
    last: list[Tensor] = []  # the output of the block before

    def enter(index: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _split(name, args, kwargs)
        if index and not (last and call.hidden is not None and torch.equal(last[0], call.hidden)):
            raise UnsupportedError(
                f"{name}: its input is not the output of the block before it; calibration cannot follow this model"
            )
        if index:
            call.hidden = None
        calls_of[index].append(call)

    handles = []
    for index, (name, block) in enumerate(blocks.items()):
        handles += [
            block.register_forward_pre_hook(lambda _, a, k, i=index, n=name: enter(i, n, a, k), with_kwargs=True),
            block.register_forward_hook(lambda _, args, out: last.__setitem__(slice(None), [_tensor(out)])),
        ]
    try:
        for number, batch in enumerate(batches):
            model(**batch)
            missed = next((n for n, calls in zip(blocks, calls_of, strict=True) if len(calls) != number + 1), None)
            if missed is not None:
                raise UnsupportedError(f"{missed}: not run once in a pass; calibration goes block by block")
    finally:
        for handle in handles:
            handle.remove()
    return calls_of


def _split(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
    if args and isinstance(args[0], Tensor):
        return _Inputs(args[0], args[1:], dict(kwargs))
    if not args and isinstance(kwargs.get("hidden_states"), Tensor):
        return _Inputs(kwargs["hidden_states"], (), {k: v for k, v in kwargs.items() if k != "hidden_states"})
    raise UnsupportedError(f"{name}: its first argument is no tensor; calibration cannot follow this model")


def _call(block: nn.Module, call: _Inputs) -> Any:
    return block(*(() if call.hidden is None else (call.hidden,)), *call.args, **call.kwargs)


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _change_block(
    model: nn.Module,
    block: nn.Module,
    names: Sequence[str],
    calls: Sequence[_Inputs],
    batches: Sequence[Batch],
    change: Callable[[Group], None],
    sequential: bool,
) -> None:
    masks = [batch.get("attention_mask") for batch in batches]
    groups = _hessians(model, block, names, calls, masks, only_first=sequential)
    for index, group in enumerate(groups):
        if sequential and index:
            group = _hessians(model, block, list(group.layers), calls, masks, stop=True)[0]
        change(group)


class _Reached(Exception):
    """All that a pass was for has been seen."""


def _hessians(
    model: nn.Module, block: nn.Module, names: Sequence[str], calls: Sequence[_Inputs],
    masks: Sequence[Tensor | None], *, only_first: bool = False, stop: bool = False,
) -> list[Group]:  # fmt: skip
    """Runs a block on all batches; layers that are given the very same tensor are one group.

    ``only_first`` sums for the first group alone, ``stop`` leaves a batch when each layer has been called.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    leaders: dict[str, str] = {}  # of each layer the first that read its input
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    reading: list[tuple[Tensor, str]] = []  # in this batch
    called: set[str] = set()  # in this batch
    mask: Tensor | None = None

    def read(name: str, x: Tensor) -> None:
        leader = next((other for seen, other in reading if seen is x), name)
        if leaders.setdefault(name, leader) != leader or (leader == name and any(n == name for _, n in reading)):
            raise UnsupportedError(f"{name}: reads several inputs in one pass; leave it out with exclude")
        if leader != name:
            return
        reading.append((x, name))
        if only_first and sums and name not in sums:
            sums[name], counts[name] = torch.zeros(0, 0), 0
        if only_first and name != next(iter(sums), name):
            return
        rows = _rows(x, mask)
        total = _finite(name, (rows.t() @ rows).double())  # float32 within a batch, float64 over batches
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + len(rows)

    def enter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        read(name, args[0] if args else kwargs["input"])
        called.add(name)
        known = len(leaders) == len(layers)  # what reads what; then a pass need not go on behind the first group
        if (stop and len(called) == len(layers)) or (only_first and known and name in sums):
            raise _Reached

    with _watched(layers, enter):
        for call, mask_of_batch in zip(calls, masks, strict=True):
            mask = mask_of_batch  # read by the hooks
            reading.clear()
            called.clear()
            with suppress(_Reached):
                _call(block, call)
    missed = next((name for name in names if name not in leaders), None)
    if missed is not None:
        raise UnsupportedError(f"{missed}: the calibration examples never reach it; leave it out with exclude")
    return [
        Group({n: layers[n] for n, leader in leaders.items() if leader == first}, sums[first], counts[first])
        for first in sums
    ]


@contextmanager
def _watched(
    layers: Mapping[str, nn.Module], enter: Callable[[str, tuple[Any, ...], Mapping[str, Any]], None]
) -> Iterator[None]:
    """Within the block ``enter`` is told the name and the arguments of every call of the layers."""
    hooks = [
        m.register_forward_pre_hook(lambda _, a, k, n=name: enter(n, a, k), with_kwargs=True)
        for name, m in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """What a layer reads [..., K] as float32 rows, without those that ``mask`` says are padding."""
    return (x.flatten(0, -2) if mask is None or mask.shape != x.shape[:-1] else x[mask.bool()]).float()


def _finite(name: str, total: Tensor) -> Tensor:
    if not torch.isfinite(total).all():
        raise CheckFailed(
            f"{name}: its input is not finite on the calibration examples; the model cannot be calibrated"
        )
    return total
