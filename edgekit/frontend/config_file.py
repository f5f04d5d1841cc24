"""A checkpoint's config.json before transformers sees it: nothing in it loads code or other files, numbers have limits.

transformers 5 follows these keys, at any depth: ``_attn_implementation`` and its like name an attention kernel, which
is fetched from the hub and imported where the package ``kernels`` is installed ("flash_attention_2" too); ``auto_map``
names modules of the repository or of another; ``transformers_weights`` names another file of weights than those that
were checked; ``backbone`` and the timm model types make it ask the hub for a further configuration, or timm for code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import SourceError, UnsupportedError
from edgekit.frontend.checkpoint import AGAIN
from edgekit.strict import read_json

MOST_PARTS = 4096
"""Layers, experts, blocks or stages: each becomes a module before any weight is looked at."""
LARGEST_SIZE = 1 << 31
_IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal|_autoset)?")
_DROPPED = ("auto_map", "trust_remote_code", "fusion_config", "distributed_config")
_REFUSED = ("kernel_config", "use_kernels", "transformers_weights", "custom_generate")
_PARTS = re.compile(r"(num|n)_(\w+_)?(layers?|experts|blocks|stages|codebooks)|depths?")
_ELSEWHERE = re.compile(r"[/\\:@]")


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in ``path``, without the keys that say how attention is run or whose code runs it.

    Raises SourceError when it is unreadable or asks for an impossible number of parts, UnsupportedError when a key
    names a repository or file that would be loaded.
    """
    raw: dict[str, Any] = read_json(path, SourceError, AGAIN, infinite=True)
    for place, key, value in _entries(raw):
        if key in _REFUSED and value:
            _refuse(path, place, value)
        if (_IMPLEMENTATION.fullmatch(key) or key == "backbone") and any(map(_ELSEWHERE.search, _texts(value))):
            _refuse(path, place, value)
        if key == "model_type" and isinstance(value, str) and value.startswith("timm"):
            raise UnsupportedError(
                f"{path}: {place} {value!r}: timm would load what it names; build it in a 'package.module:factory'"
            )
        _check_sizes(path, place, key, value)
    cleaned: dict[str, Any] = _without_code(raw)
    return cleaned


def _refuse(path: Path, place: str, value: Any) -> None:
    raise UnsupportedError(
        f"{path}: {place} {str(value)[:80]!r} would load code or files from elsewhere, which edgekit never does; "
        "remove the key"
    )


def _check_sizes(path: Path, place: str, key: str, value: Any) -> None:
    most = MOST_PARTS if _PARTS.fullmatch(key) else LARGEST_SIZE
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int) and abs(number) > most:
            raise SourceError(f"{path}: {place} is {str(number)[:40]}, {most:,} at most; {AGAIN}")


def _entries(value: Any, before: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path of keys, key, value) of every entry of an object, and of the objects in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{before}{key}"[:200], key, item
            yield from _entries(item, f"{before}{key}.")
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, before)


def _texts(value: Any) -> list[str]:
    """All texts in a value; an implementation may be given for each part of a model."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])  # how transformers writes what JSON has no number for
        dropped = [k for k in value if k in (*_DROPPED, *_REFUSED) or _IMPLEMENTATION.fullmatch(k)]
        return {key: _without_code(item) for key, item in value.items() if key not in dropped}
    return [_without_code(item) for item in value] if isinstance(value, list) else value
