"""Dataclasses from unchecked data: whatever does not fit is refused, by path."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RecipeError, SourceError
from edgekit.strict import build, parse_json, read_json, read_yaml, suggest


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    items: tuple[Inner, ...] = ()
    either: int | str = 0
    maybe: Inner | None = None
    named: dict[str, float] = field(default_factory=dict)
    anything: Any = None


def make(data: object) -> Outer:
    found = build(Outer, data, "top", RecipeError)
    assert isinstance(found, Outer)
    return found


def test_everything_that_fits() -> None:
    data = {
        "name": "n", "items": [{"size": 1}, {"size": 2, "share": 1}], "either": "batch", "maybe": {"size": 3},
        "named": {"a": 1, "b": 0.5}, "anything": [1, {"x": None}],
    }  # fmt: skip
    found = make(data)
    assert found == Outer("n", (Inner(1), Inner(2, 1.0)), "batch", Inner(3), {"a": 1.0, "b": 0.5}, [1, {"x": None}])
    assert type(found.items[1].share) is float
    assert make({"name": "n", "either": 4, "maybe": None}) == Outer("n", either=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "top: expected a mapping, got NoneType"),
        ([], "top: expected a mapping, got list"),
        ({}, "top: missing key 'name'"),
        ({"nam": "n"}, "top: unknown key 'nam'; did you mean 'name'?; known are name, items, either, maybe, named, anything"),
        ({"name": "n", 3: 4}, "top: unknown key 3; known are name, items, either, maybe, named, anything"),
        ({"name": 5}, "top.name: expected str, got int ('5')"),
        ({"name": "n", "items": {"size": 1}}, "top.items: expected a list, got dict"),
        ({"name": "n", "items": "abc"}, "top.items: expected a list, got str"),
        ({"name": "n", "items": [{"size": True}]}, "top.items[0].size: expected int, got bool ('True')"),
        ({"name": "n", "items": [{"size": 1}, {"size": 1.0}]}, "top.items[1].size: expected int, got float ('1.0')"),
        ({"name": "n", "items": [{"size": 1, "share": "half"}]}, "top.items[0].share: expected float, got str ('half')"),
        ({"name": "n", "items": [{"size": 1, "share": False}]}, "top.items[0].share: expected float, got bool ('False')"),
        ({"name": "n", "either": 0.5}, "top.either: expected int, got float ('0.5')"),
        ({"name": "n", "maybe": 3}, "top.maybe: expected a mapping, got int"),
        ({"name": "n", "named": {"a": "x"}}, "top.named.a: expected float, got str ('x')"),
        ({"name": "n", "named": {1: 1.0}}, "top.named: expected text keys, got int"),
        ({"name": "n", "named": {"a": 10**399}}, "top.named.a: an integer of 400 digits, 64 bits at most"),
        ({"name": "n", "items": [{"size": -(2**63)}]}, "top.items[0].size: an integer of 19 digits, 64 bits at most"),
    ],
)  # fmt: skip
def test_refusals(data: object, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        make(data)
    assert str(refusal.value) == message


def test_suggestions() -> None:
    assert suggest("in4", ["int4", "fp32"]) == "; did you mean 'int4'?"
    assert suggest("zebra", ["int4", "fp32"]) == ""


def test_numbers_in_yaml_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: -2E5\nc: 1.5e+3\nd: .5e1\ne: 12\nf: 1e\ng: a1e3\n")
    found = read_yaml(path, RecipeError)
    assert found == {"a": 1e-3, "b": -2e5, "c": 1500.0, "d": 5.0, "e": 12, "f": "1e", "g": "a1e3"}
    assert type(found["a"]) is float and type(found["e"]) is int


def test_what_yaml_reads_into_plain_words_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 2020-02-31\nb: 1:30:99\nc: 190:20.5\nd: 0x1F\ne: 1_000\nf: .inf\ng: -3\n")
    found = read_yaml(path, RecipeError)
    expected = {"a": "2020-02-31", "b": "1:30:99", "c": "190:20.5", "d": 31, "e": 1000, "f": float("inf"), "g": -3}
    assert found == expected


YAML = [
    ("a: !!int abc", "invalid literal for int"), ("a: !!int ''", "string index out of range"), ("a: !!float x", "could not convert"),
    ("a: " + "9" * 5000, "Exceeds the limit"), ("a: !!timestamp 2020-02-31", "day is out of range"), ("a: !!bool x", "'x'"),
    ("a: !!timestamp x", "groupdict"), ("a: " + "[" * 3000, "nested deeper than 100 levels"),
    ("a: " + "{b: " * 3000, "nested deeper than 100 levels"), ("a: &x [*x]", "anchors and aliases are not read"),
    ("a: &x [1]\nb: [*x, *x]", "anchors and aliases are not read"), ("? [a]\n: 1", "unhashable key"), ("a: 1\na: 2", "'a' stands twice"),
    ("\n".join(" " * i + "a:" for i in range(300)), "nested deeper than 100 levels"), ("# " + "x" * (1 << 20), "more than 1,048,576 bytes"),
    ("a: !!python/object/apply:os.abort []", "could not determine a constructor"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(YAML)))
def test_yaml_that_is_refused(tmp_path: Path, number: int) -> None:
    text, message = YAML[number]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"x\.yaml: not valid YAML: .*{message}") as refusal:
        read_yaml(path, RecipeError)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_json_file_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(SourceError, match=r"x\.json: not readable as JSON \(No such file or directory\); fetch it"):
        read_json(path, SourceError, "fetch it")
    for text, message in (("[1]", "holds a list, expected a JSON object"), ('{"a": 1, "a": 2}', "'a' stands twice")):
        path.write_text(text)
        with pytest.raises(SourceError, match=rf"x\.json: .*{message}.*; fetch it$"):
            read_json(path, SourceError, "fetch it")
    path.write_text('{"limit": Infinity}')
    assert read_json(path, SourceError, "fetch it", infinite=True) == {"limit": float("inf")}


def test_json_may_be_nested_a_hundred_levels_deep_and_no_more() -> None:
    parse_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parse_json("[" * 101 + "]" * 101)
