"""The ground floor says what docs/spec.md and docs/operators.md say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from edgekit.bundle import Manifest
from edgekit.lowbit.formats import CODECS
from edgekit.lowbit.functions import FUNCTIONS
from edgekit.spec.formats import FORMATS, STOCK_BLOCKS, Format
from edgekit.spec.names import (
    DATA,
    DECODER_LIMITS,
    EDGEKIT,
    GRAPH,
    LARGEST_GRAPH,
    LARGEST_MANIFEST,
    MANIFEST,
    MICROSOFT,
    NATIVE_OPERATORS,
    TASKS,
    VECTOR_KINDS,
)
from edgekit.spec.records import FileInfo, Layer, TensorInfo, VectorInfo

DOCS = Path(__file__).parents[2] / "docs"
SPEC = (DOCS / "spec.md").read_text(encoding="utf-8")
OPERATORS = (DOCS / "operators.md").read_text(encoding="utf-8")
SCALES = {
    "none": "none",
    "float32 [N, ⌈K/b⌉]": "block",
    "float16 [N, ⌈K/b⌉]": "block",
    "float32 [N]": "row",
    "float32 [1], [N] or [N, ⌈K/128⌉]": "ternary",
}


def table(text: str, header: str) -> list[list[str]]:
    """The rows of the table that begins with a header line, a list of cells each."""
    lines = text[text.index(header) :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]


def keys(text: str, header: str = "| key | type | meaning |") -> list[str]:
    """The keys of a table of a JSON object, in order; those marked * may be left out."""
    return [key for row in table(text, header) for key in re.findall(r"`(\w+)`\*?", row[0])]


def described(row: Format) -> str:
    """The bytes of a format as docs/operators.md has them, without remarks."""
    if row.layout == "floats":
        return f"float{row.bits} [N, K]"
    if row.layout == "sparse":
        return "uint8 [bytes]"
    block = "b" if row.scales == "block" else str(row.block_size)
    part = block if row.bits == 8 else f"b/{8 // row.bits}" if block == "b" else str(row.block_size * row.bits // 8)
    return f"uint8 [N, ⌈K/{block}⌉, {part}]"


def test_formats_are_those_of_the_operators_page() -> None:
    rows = table(OPERATORS, "| name | bytes | scales |")
    assert [row[0].strip("`") for row in rows] == list(FORMATS) == list(CODECS)
    for (name, data, scales, _, operator, lookup), row in zip(rows, FORMATS.values(), strict=True):
        assert data.startswith(described(row)), name
        assert SCALES[scales] == row.scales and (row.scale_bits == 16) == scales.startswith("float16"), name
        assert operator == f"`{row.operator}`", name
        assert lookup == (row.lookup or f"`{row.stand_in}`"), name
    (blocks,) = re.findall(r"^b is (\d+) unless the recipe says ([\d, ]+) or (\d+)", OPERATORS, re.M)
    sizes = {int(size) for size in (blocks[0], *blocks[1].split(", "), blocks[2])}
    assert sizes == set(STOCK_BLOCKS) and {FORMATS[name].block_size for name in ("int4", "int8")} == {int(blocks[0])}


def test_a_row_fits_itself() -> None:
    for row in FORMATS.values():
        assert row.lookup or FORMATS[row.stand_in].lookup, f"{row.name}: as a table it must be stored as something"
        assert row.block_size in row.block_sizes or not row.block_sizes
    assert set(FUNCTIONS) == set(NATIVE_OPERATORS)


def test_bytes_of_a_dense_weight() -> None:
    assert FORMATS["fp16"].nbytes(1, 100) == 200
    assert FORMATS["int4-fp16"].nbytes(1, 100) == 4 * (16 + 2)
    assert FORMATS["int4"].nbytes(1, 100, 32) == 4 * (16 + 4)  # four blocks, each with a scale
    assert FORMATS["int8-channel"].nbytes(3, 100) == 3 * (128 + 4)
    assert FORMATS["t2"].nbytes(3, 129) == 3 * 2 * (32 + 4)


def test_operators_are_described() -> None:
    assert f"Domain `{EDGEKIT}`" in OPERATORS
    assert re.findall(r"^## (\w+)\(", OPERATORS, re.M) == list(NATIVE_OPERATORS)
    assert f"`{MICROSOFT}` 1" in SPEC


def test_tasks_kinds_and_limits_are_those_of_the_spec() -> None:
    rows = {row[0]: row[2] for row in table(SPEC, "| key | type | meaning |")}
    assert re.findall(r"`([\w-]+)`", rows["`task`"]) == list(TASKS)
    section = SPEC[SPEC.index("## 6. Golden vectors") :]
    assert re.findall(r"`(\w+)`", section[section.index("`kind`") + 6 : section.index("a report MUST")]) == list(
        VECTOR_KINDS
    )
    assert f"at most {LARGEST_MANIFEST >> 20} MiB" in SPEC and f"at most {LARGEST_GRAPH >> 20} MiB" in SPEC
    limits = re.findall(r"(\w+) ≤ ([\d,^]+)|(\w+) and\s(\w+) ≤ 2\^27", SPEC[SPEC.index("Limits: ") :])
    written = {key: int(number.replace(",", "")) for key, number, *_ in limits if key}
    written |= {key: 1 << 27 for *_, first, second in limits for key in (first, second) if key}
    assert written == DECODER_LIMITS
    assert all(name in SPEC for name in (MANIFEST, GRAPH, DATA))


def test_records_have_the_keys_of_the_spec() -> None:
    assert [key for key in keys(SPEC) if key != "schema_minor"] == [field.name for field in fields(Manifest)]
    layers = SPEC[SPEC.index("## 4. Layers") :]
    assert keys(layers) == [field.name for field in fields(Layer)]
    for record, written in (
        (TensorInfo, "{name, dtype, dims}"),
        (VectorInfo, "{file, kind}"),
        (FileInfo, "{path, bytes, sha256}"),
    ):
        assert written == "{" + ", ".join(field.name for field in fields(record)) + "}" and written in SPEC
