"""Rotary embeddings of a model as ``edgekit::rope``: which of the known layouts its own numbers have, and whole tables of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder import ops
from edgekit.frontend.decoder.attention import Context


@dataclass(frozen=True)
class Layout:
    """How a model's tables and the tensors they turn are to be read."""

    reading: str  # which columns of the tables are the angles'
    interleaved: bool  # pairs are neighbours, not halves
    heads: int  # which axis of [B, ., ., D] they are
    backwards: bool  # by the angle less than nothing: the sines' signs are the other ones


LAYOUTS = [
    Layout(reading, interleaved, heads, backwards)
    for backwards in (False, True)
    for reading, interleaved in (("half", False), ("half", True), ("even", True), ("whole", False), ("whole", True))
    for heads in (1, 2)
]


def _true_layout(
    own: Sequence[Tensor], given: Sequence[Tensor], tables: tuple[Tensor, Tensor], heads: int | None
) -> tuple[Layout, list[Tensor]] | None:
    """Which reading of the model's own tables makes ``edgekit::rope`` give the model's own result, and what it gives.

    A result in another order is taken too: neighbours turned and then put into halves, as DeepSeek does. Query and key
    are in the same order, so their products are the same.
    """
    positions = torch.arange(tables[0].shape[-2]).expand(given[0].shape[0], -1)
    for layout in LAYOUTS:
        c, s = _angles(tables, layout)
        if heads not in (None, layout.heads) or 2 * c.shape[1] > given[0].shape[-1]:
            continue
        if given[0].shape[3 - layout.heads] != positions.shape[1]:
            continue
        heads_first = [_heads_first(x, layout.heads).float() for x in given]
        turned = [_heads_first(ops.rope(x, c, s, positions, layout.interleaved), layout.heads) for x in heads_first]
        halves = [torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1) for x in turned]
        for mine in (turned, halves) if layout.interleaved else (turned,):
            if all(close(a, b) for a, b in zip(mine, own, strict=True)):
                return layout, turned
    return None


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _read(table: Tensor, reading: str) -> Tensor:
    if reading == "whole":
        return table
    return table[:, 0::2] if reading == "even" else table[:, : table.shape[1] // 2]


def _angles(tables: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, float32 [S, R / 2], of a model's tables [B, S, .]."""
    cos, sin = (_read(table[0].float(), layout.reading) for table in tables)
    return cos, -sin if layout.backwards else sin


def _cos_and_sin(tables: Tensor | tuple[Tensor, ...], cos_first: bool) -> tuple[Tensor, Tensor]:
    """From what a rotary embedding returns: a pair in either order, or complex numbers."""
    if isinstance(tables, Tensor):
        return tables.real, tables.imag
    return (tables[0], tables[1]) if cos_first else (tables[1], tables[0])


@dataclass
class Rotary:
    """Stands in for a rotary embedding module: its own tables while probing, whole ones while tracing."""

    module: nn.Module
    original: Callable[..., Any]
    context: Context
    layouts: dict[str, tuple[Layout, bool]] = field(default_factory=dict)  # key: layout, whether cos comes first
    full: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = "_".join(str(a) for a in (*args, *kwargs.values())) or "default"
        if self.context.tracing and key not in self.layouts:
            return self.original(x, position_ids, *args, **kwargs)  # no layer rotates with these
        if self.context.tracing:
            cos, sin = getattr(self.module, f"edgekit_cos_{key}"), getattr(self.module, f"edgekit_sin_{key}")
            tables = (cos, sin) if self.layouts[key][1] else (sin, cos)
            self.context.tables.append((tables, key, self))
            return cos if isinstance(self.full[key], Tensor) else tables
        tables = self.original(x, position_ids, *args, **kwargs)
        every = torch.arange(self.context.max_length)[None]
        self.full[key] = self.original(x.new_zeros(1, 1, 1), every, *args, **kwargs)
        self.context.tables.append((tables if isinstance(tables, tuple) else (tables,), key, self))
        return tables

    def settle(self) -> list[str]:
        """Writes the tables as buffers, so that the trace sees them; returns their names."""
        names = []
        for key, (layout, cos_first) in self.layouts.items():
            for part, rows in zip(
                ("cos", "sin"), _angles(_cos_and_sin(self.full[key], cos_first), layout), strict=True
            ):
                names.append(f"edgekit_{part}_{key}")
                self.module.register_buffer(names[-1], rows.contiguous(), persistent=False)
        return names


def rotates(function: Any) -> bool:
    """Whether a modeling file's function turns what stands before its tables: ``apply_rotary_pos_emb`` and its like."""
    names = list(inspect.signature(function).parameters)
    return any(names[n : n + 2] in (["cos", "sin"], ["sin", "cos"]) for n in (1, 2)) or names[2:3] == ["freqs_cis"]


def rotate(context: Context, original: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for a modeling file's function that ``rotates``, of query and key or of one tensor; proves itself while probing."""
    signature = inspect.signature(original)
    names = list(signature.parameters)
    count = min(names.index(name) for name in ("cos", "sin", "freqs_cis") if name in names)
    first = names[count]

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        table = bound.arguments[first]
        entry = next((t for t in context.tables if any(table is own for own in t[0])), None)
        if entry is None and context.tracing and len(context.tables) == 1:
            entry = context.tables[0]  # moved to where it is
        if entry is None:
            raise UnsupportedError(f"{original.__module__}: rotary tables change before {original.__name__}")
        tables, key, rotary = entry
        given = [bound.arguments[name] for name in names[:count]]
        if not context.tracing:
            own = original(*args, **kwargs)
            cos_first = first != "sin"
            pair = _cos_and_sin(tables[0] if len(tables) == 1 else tables, cos_first)
            found = _true_layout(
                own if isinstance(own, tuple) else (own,), given, pair, bound.arguments.get("unsqueeze_dim")
            )
            if found is None or rotary.layouts.setdefault(key, (found[0], cos_first))[0] != found[0]:
                raise UnsupportedError(
                    f"{original.__module__}: its rotary embedding matches no known layout; no substitution exists"
                )
            results = found[1]
        else:
            layout, cos_first = rotary.layouts[key]
            cos, sin = _cos_and_sin(tables, cos_first)
            results = [
                _heads_first(
                    torch.ops.edgekit.rope(
                        _heads_first(x, layout.heads), cos, sin, context.positions, layout.interleaved
                    ),
                    layout.heads,
                )
                for x in given
            ]
        return tuple(results) if count > 1 else results[0]

    return forward


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """[B, S, H, D] as [B, H, S, D] and back where the model has ``heads`` = 2; otherwise as it is."""
    return x.transpose(1, 2) if heads == 2 else x
