"""Which layers or weights a method takes: all of a kind but those that the user's patterns leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from edgekit.errors import UsageError


def without(names: Iterable[str], exclude: Sequence[str], kind: str) -> list[str]:
    """The ``names`` that none of the globs in ``exclude`` fits, in their order; ``kind`` is what they name.

    Raises UsageError for a glob that fits none of them.
    """
    names = list(names)
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"exclude: '{pattern}' fits no {kind}; {kind}s are named like {', '.join(names[:3]) or '(none)'}"
            )
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude)]


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D: a linear layer stored as [K, N]."""
    return type(module).__name__ == "Conv1D"
