"""Writes Kotlin's side of edgekit/spec: the records of the manifest, tasks, formats and limits.

``python -m tools.make_kotlin`` writes the file; a test fails where it is not what is committed.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path

from edgekit.recipe import Limits
from edgekit.spec import names
from edgekit.spec.formats import FORMATS, NATIVE_FORMATS, NEEDED_FORMATS
from edgekit.spec.records import (
    DeadUnits,
    DecoderInfo,
    EncoderInfo,
    FileInfo,
    Layer,
    StateTensor,
    TensorInfo,
    VectorInfo,
)

TARGET = Path(__file__).parent.parent / "android_demo/edgekit/src/main/kotlin/dev/edgekit/Spec.kt"
RECORDS = (TensorInfo, Layer, DeadUnits, StateTensor, EncoderInfo, DecoderInfo, VectorInfo, FileInfo, Limits)
HINTS: tuple[tuple[object, str, str], ...] = (
    (str, "String", "text"),
    (int, "Long", "whole"),
    (float, "Double", "number"),
    (bool, "Boolean", "flag"),
    (int | None, "Long?", "wholeOrNull"),
    (float | None, "Double?", "numberOrNull"),
    (tuple[int, ...], "List<Long>", "wholes"),
    (tuple[int | str, ...], "List<Any>", "wholesOrNames"),
)
"""A field's type, its type in Kotlin, and the method of ``Fields`` that reads it."""
LIMITED = {"Long": ("Int", "limited"), "List<Long>": ("List<Int>", "allLimited")}
"""Types and readers of the numbers that ``names.DECODER_LIMITS`` bounds."""
HEADER = """// Written by tools/make_kotlin.py from edgekit/spec: edit there, then run `python -m tools.make_kotlin`.
package dev.edgekit
"""


def kotlin() -> str:
    """The whole file."""
    return "\n".join([HEADER, _constants(), *map(_record, RECORDS)])


def _constants() -> str:
    major, minor = names.OLDEST_RUNTIME
    lines = [
        f"const val SCHEMA_VERSION = {names.SCHEMA_VERSION}",
        f"const val SCHEMA_MINOR = {names.SCHEMA_MINOR}",
        f"const val STATES_VERSION = {names.STATES_VERSION}",
        f"const val PICTURES_VERSION = {names.PICTURES_VERSION}L",
        f"val STATE_TYPES = {_texts(names.STATE_TYPES)}",
        f"val STATE_KINDS = {_texts(names.STATE_KINDS)}",
        f"const val LARGEST_STATE = {names.LARGEST_STATE}L",
        f"val TASKS = {_texts(names.TASKS)}",
        f"val NATIVE_FORMATS = {_texts(NATIVE_FORMATS)}",
        f"val NEEDED_FORMATS = {_texts(NEEDED_FORMATS)}",
        f"val TABLE_FORMATS = {_texts(row.name for row in FORMATS.values() if row.lookup)}",
        f'const val MANIFEST = "{names.MANIFEST}"',
        f'const val GRAPH = "{names.GRAPH}"',
        f"const val LARGEST_MANIFEST = {names.LARGEST_MANIFEST}L",
        f"const val OLDEST_MAJOR = {major}",
        f"const val OLDEST_MINOR = {minor}",
        f'const val SPIN_MICROSECONDS = "{names.SPIN_MICROSECONDS}"',
        f'const val ENCODER = "{names.ENCODER}"',
        f'const val CROSS_MASK = "{names.CROSS_MASK}"',
        f"const val PROMPT_PIECE = {names.PROMPT_PIECE}",
        f"const val REPLAY_PIECE = {names.REPLAY_PIECE}",
        f"const val ROUND_NANOSECONDS = {round(1e9 * names.ROUND_SECONDS)}L",
        f"const val ROUND_RUNS = {names.ROUND_RUNS}",
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return f"/** Names and limits that Python and Kotlin share. */\ninternal object Spec {{\n{body}\n}}\n"


def _texts(values: typing.Iterable[str]) -> str:
    return "listOf(" + ", ".join(f'"{value}"' for value in values) + ")"


def _record(record: type) -> str:
    """A class that reads itself from an object of the manifest."""
    hints, remarks = typing.get_type_hints(record), _remarks(record)
    lines = []
    for field in dataclasses.fields(record):
        if field.name in remarks:
            lines.append(f"    /** {_sentence(remarks[field.name])} */")
        lines.append(f"    public val {_camel(field.name)}: {_read(record, field, hints[field.name])}")
    summary = " ".join((record.__doc__ or "").split()).replace("``", "`")
    body = "\n".join([*lines, "", "    init {", "        fields.end()", "    }"])
    return f"/** {summary} */\npublic class {record.__name__} internal constructor(fields: Fields) {{\n{body}\n}}\n"


def _read(record: type, field: dataclasses.Field[typing.Any], hint: object) -> str:
    part = next((part for part in RECORDS if hint == part | None), None)
    if part is not None:
        return f'{part.__name__}? = fields.partOrNull("{field.name}", ::{part.__name__})'
    part = next((part for part in RECORDS if typing.get_args(hint)[:1] == (part,)), None)
    if part is not None:
        optional = "" if field.default is dataclasses.MISSING else ", optional = true"
        return f'List<{part.__name__}> = fields.parts("{field.name}", ::{part.__name__}{optional})'
    kind, reader = next((kind, reader) for known, kind, reader in HINTS if known == _plain(hint))
    arguments = f'"{field.name}"'
    if record is DecoderInfo and field.name in names.DECODER_LIMITS:
        kind, reader = LIMITED[kind]
        arguments += f", {names.DECODER_LIMITS[field.name]}"
    elif field.default is not dataclasses.MISSING and field.default is not None:
        arguments += f", {_literal(field.default)}"
    return f"{kind} = fields.{reader}({arguments})"


def _plain(hint: object) -> object:
    """``Optional[X]`` and ``X | None`` are one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        first, second = typing.get_args(hint)
        return first | second
    return hint


def _literal(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return "emptyList()" if value == () else str(value)


def _remarks(record: type) -> dict[str, str]:
    """The comments behind the fields of a dataclass."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(record), re.MULTILINE))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


if __name__ == "__main__":
    TARGET.write_text(kotlin(), encoding="utf-8")
