"""Unchecked JSON and YAML, and frozen dataclasses made of them: unknown, missing and repeated keys are errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgekit.errors import EdgekitError, one_line

LARGEST_JSON = 64 << 20
LARGEST_YAML = 1 << 20  # bytes; its parser takes some ten seconds for them
DEEPEST = 100  # lists and mappings inside each other
LARGEST_INTEGER = 2**63 - 1


def build(kind: Any, data: Any, where: str, error: type[EdgekitError]) -> Any:
    """``data`` (dicts, lists, numbers, strings) as ``kind``; raises ``error`` saying where it does not fit.

    ``kind`` may be a dataclass, ``tuple[X, ...]``, ``dict[str, X]``, a union, a plain type or Any. Whole numbers are
    accepted for float; nothing else is converted. An integer has 64 bits at most.
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
    if kind in (int, float) and type(data) is int:
        if abs(data) > LARGEST_INTEGER:
            raise error(f"{where}: an integer of {len(str(abs(data)))} digits, 64 bits at most")
        return kind(data)
    if type(data) is not kind:
        shown = f" ({str(data)[:60]!r})" if isinstance(data, bool | int | float | str) else ""
        raise error(f"{where}: expected {kind.__name__}, got {type(data).__name__}{shown}")
    return data


def known(kind: Any, data: Any) -> Any:
    """``data`` without the keys that dataclasses in ``kind`` do not know, for :func:`build`; what misfits stays."""
    choices = [a for a in typing.get_args(kind) if a not in (type(None), Ellipsis)]
    if dataclasses.is_dataclass(kind) and isinstance(data, Mapping):
        hints = typing.get_type_hints(kind)
        return {key: known(hints[key], value) for key, value in data.items() if key in hints}
    if typing.get_origin(kind) is tuple and isinstance(data, list):
        return [known(choices[0], item) for item in data]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return known(choices[0], data)
    return data


def parse_json(text: str | bytes, infinite: bool = False) -> Any:
    """Plain data out of JSON; raises ValueError, and nothing else, with the reason on one line.

    A key that stands twice, nesting deeper than ``DEEPEST`` and, unless ``infinite``, numbers that are not finite are
    refused.
    """
    try:
        constants = None if infinite else _no_constant
        data = json.loads(text, object_pairs_hook=_once, parse_constant=constants, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [data]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _inside(outer)]
    if level:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return data


def read_json(path: Path, error: type[EdgekitError], advice: str, *, kind: type = dict, infinite: bool = False) -> Any:
    """The object in a JSON file (:func:`parse_json`), or the list where ``kind`` says so.

    Raises ``error``, which ends with ``advice``, for anything else.
    """
    try:
        data = parse_json(_content(path, LARGEST_JSON, "JSON"), infinite)
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or one_line(cause, 120)
        raise error(f"{path}: not readable as JSON ({reason}); {advice}") from None
    if not isinstance(data, kind):
        expected = "object" if kind is dict else kind.__name__
        raise error(f"{path}: holds a {type(data).__name__}, expected a JSON {expected}; {advice}")
    return data


def read_text(path: Path, error: type[EdgekitError], expected: str) -> str:
    """A file's UTF-8 text. Raises ``error``, which says what is ``expected``, when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: not a readable UTF-8 text ({type(cause).__name__}); {expected}") from cause


def read_yaml(path: Path, error: type[EdgekitError], expected: str = "a YAML file") -> Any:
    """Plain data out of a YAML file; raises ``error`` when it cannot be read, is no YAML, or has a key twice.

    Dates and numbers to base 60 are texts, anchors and aliases are refused.
    """
    try:
        return yaml.load(_content(path, LARGEST_YAML, "YAML").decode("utf-8"), _StrictLoader)
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); give {expected}") from cause
    # yaml.YAMLError, and what Python says of a text that is no number, such as !!int abc.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as cause:
        raise error(f"{path}: not valid YAML: {one_line(cause, 300)}") from cause


def _content(path: Path, largest: int, kind: str) -> bytes:
    """A file's bytes. Raises OSError when it cannot be read, ValueError when there are more than ``largest``."""
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"more than {largest:,} bytes; no {kind} file that edgekit reads is that large")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:40]!r} stands twice")
    return data


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _inside(data: Any) -> Iterable[Any]:
    """The lists and mappings that are directly in ``data``."""
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return (item for item in items if isinstance(item, dict | list))


class _StrictLoader(yaml.SafeLoader):
    """Plain data only; a key that stands twice is an error instead of the last one winning."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not read", event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested deeper than {DEEPEST} levels", event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        data = super().construct_mapping(node, deep)
        if len(data) != len(node.value):
            twice = Counter(str(key.value) for key, _ in node.value).most_common(1)[0][0]
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return data


def _number_resolvers() -> None:
    """Numbers as everybody writes them: YAML 1.1 takes 1e-3 for a text, 1:30 for ninety, and knows dates."""
    kept = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _StrictLoader.yaml_implicit_resolvers = kept
    digits = list("-+.0123456789")
    for kind, pattern in (
        ("int", r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+)"),
        ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    ):
        _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), digits)


_number_resolvers()


def suggest(value: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def ranges(numbers: Iterable[int]) -> str:
    """[4, 5, 6, 7, 9] as "4-7,9"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


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
