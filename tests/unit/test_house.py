"""The house: no circle of imports, no file too long to read, names that say what is in them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import edgekit

PACKAGE = Path(edgekit.__file__).parent
MOST_LINES = 400
TRAVELS = "edgekit.devices.runner"
"""Goes to a device as one file."""
FORBIDDEN = ("utils", "helpers", "base", "manager")


def modules() -> dict[str, Path]:
    """All modules of the package by their full name."""
    files = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, within functions too; not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from imported(node)


def needs(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one imports, with the packages around them, which Python runs first; not those around itself."""
    names: set[str] = set()
    for node in imported(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    around = {".".join(full.split(".")[:count]) for full in names for count in range(1, full.count(".") + 2)}
    return {other for other in around & known.keys() if not f"{name}.".startswith(f"{other}.")}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, or of what leads to it; nothing where there is none."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_circle_of_imports_even_within_functions() -> None:
    known = modules()
    graph = {name: needs(name, file, known) for name, file in known.items()}
    assert len(graph) > 100 and circle(graph) == []


def test_files_are_short_enough_to_read() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules().items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES and name != TRAVELS} == {}


def test_a_file_is_named_for_what_it_holds() -> None:
    assert [name for name in modules() if name.rpartition(".")[2].strip("_") in FORBIDDEN] == []


def test_no_public_name_is_a_module() -> None:
    assert [name for name in edgekit.__all__ if f"edgekit.{name}" in modules()] == []
