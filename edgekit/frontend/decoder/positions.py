"""Tables of positions, whatever a model counts from: each is looked up where its own numbers were found to come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.frontend.decoder.attention import Context
from edgekit.frontend.streamed import stored_weight

FIRST = 64
"""Rows of a table in which the first position is looked for: BART counts from 2, RoBERTa from its padding token's id + 1."""


@dataclass(frozen=True)
class Place:
    """Where position 0 stands in a module's table, and the rows from there on."""

    offset: int
    rows: int


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[nn.Module, Place]]:
    """Within the block, where each table of positions is read while the model runs on rows of equal length."""
    places: dict[nn.Module, Place] = {}
    hooks = [
        module.register_forward_hook(_hook(places))
        for name, module in model.named_modules()
        if "position" in name.lower() and _table(module) is not None
    ]
    try:
        yield places
    finally:
        for hook in hooks:
            hook.remove()


def _table(module: nn.Module) -> Tensor | None:
    """Learned positions are an embedding; sines are a buffer, which has no one name."""
    table = getattr(module, "weight", getattr(module, "weights", None))
    positional = isinstance(module, nn.Embedding) or "PositionalEmbedding" in type(module).__name__
    return table if positional and isinstance(table, Tensor) and table.dim() == 2 else None


def _hook(places: dict[nn.Module, Place]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        table, stored = _table(module), stored_weight(module)
        if table is None or not isinstance(output, Tensor) or output.shape[-1] != table.shape[1]:
            return
        rows = output.detach().reshape(-1, *output.shape[-2:])
        length = rows.shape[1]
        first = table[: FIRST + length] if stored is None else torch.from_numpy(stored[: FIRST + length])
        for offset in range(min(FIRST, len(first) - length + 1)):
            if bool((rows == first[offset : offset + length]).all()):
                places[module] = Place(offset, len(table) - offset)
                return

    return hook


def looked_up(module: nn.Module, place: Place, context: Context) -> Callable[..., Tensor]:
    """Stands in for a table's forward: the rows of the aligned tokens' positions, float32 [B, S, K]."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        assert context.positions is not None
        places, table = context.positions + place.offset, _table(module)
        assert table is not None
        return functional.embedding(places, table) if isinstance(module, nn.Embedding) else table[places]

    return forward
