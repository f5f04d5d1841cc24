"""Frozen dataclasses from unchecked data, strictly: unknown keys, missing keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgekit.errors import EdgekitError


def build(kind: Any, data: Any, where: str, error: type[EdgekitError]) -> Any:
    """``data`` (dicts, lists, numbers, strings) as ``kind``; raises ``error`` saying where it does not fit.

    ``kind`` may be a dataclass, ``tuple[X, ...]``, ``dict[str, X]``, a union, a plain type or Any. Whole numbers are
    accepted for float; nothing else is converted.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, data, where, error)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), data, where, error)
    if origin is tuple:
        items = _expect(data, list | tuple, "a list", where, error)
        return tuple(build(arguments[0], item, f"{where}[{i}]", error) for i, item in enumerate(items))
    if origin is dict:
        entries = _expect(data, Mapping, "a mapping", where, error)
        return {_key(k, where, error): build(arguments[1], v, f"{where}.{k}", error) for k, v in entries.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if type(data) is not kind:
        shown = f" ({str(data)[:60]!r})" if isinstance(data, bool | int | float | str) else ""
        raise error(f"{where}: expected {kind.__name__}, got {type(data).__name__}{shown}")
    return data


def read_yaml(path: Path, error: type[EdgekitError], expected: str = "a YAML file") -> Any:
    """Plain data out of a YAML file; raises ``error`` when it cannot be read, is no YAML, or has a key twice."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); give {expected}") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise error(f"{path}: not valid YAML: {' '.join(str(cause).split())}") from cause


class _StrictLoader(yaml.SafeLoader):
    """Plain data only; a key that stands twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            twice = Counter(str(key.value) for key, _ in node.value).most_common(1)[0][0]
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return found


# YAML 1.1 takes 1e-3, which everybody writes, for a text; 1.2 does not.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+"), list("-+.0123456789")
)


def suggest(value: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _expect(data: Any, kind: Any, words: str, where: str, error: type[EdgekitError]) -> Any:
    if not isinstance(data, kind):
        raise error(f"{where}: expected {words}, got {type(data).__name__}")
    return data


def _key(key: Any, where: str, error: type[EdgekitError]) -> str:
    return str(_expect(key, str, "text keys", where, error))


def _union(arguments: tuple[Any, ...], data: Any, where: str, error: type[EdgekitError]) -> Any:
    if data is None and type(None) in arguments:
        return None
    choices = [a for a in arguments if a is not type(None)]
    exact = next((a for a in choices if type(data) is a), choices[0])
    return build(exact, data, where, error)


def _dataclass(kind: type, data: Any, where: str, error: type[EdgekitError]) -> Any:
    entries = _expect(data, Mapping, "a mapping", where, error)
    hints = typing.get_type_hints(kind)
    for key in entries:
        if key not in hints:
            raise error(f"{where}: unknown key {key!r}{suggest(str(key), hints)}; known are {', '.join(hints)}")
    for field in dataclasses.fields(kind):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not optional and field.name not in entries:
            raise error(f"{where}: missing key {field.name!r}")
    return kind(**{key: build(hints[key], value, f"{where}.{key}", error) for key, value in entries.items()})
