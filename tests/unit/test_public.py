"""The public surface: names, what importing costs, and that errors tell exit codes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import errors

NAMES = [
    "BenchResult", "Bundle", "BundleLike", "Comparison", "Compressed", "Compression", "Decoder", "EdgekitError",
    "Evaluation", "Generation", "Inspection", "Limits", "Packed", "Recipe", "Report", "Rule", "Sampling", "Session",
    "__version__", "bench", "compress", "evaluate", "export", "generate", "inspect", "pack", "unpack", "verify", "verify_on",
]  # fmt: skip
PACKAGE = Path(edgekit.__file__).parent
HEAVY = ("torch", "accelerate", "transformers", "onnxruntime", "onnx", "onnx_ir", "numpy")


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after ``code``."""
    program = f"{code}\nimport sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_names() -> None:
    assert sorted(edgekit.__all__) == dir(edgekit) == NAMES
    for name in NAMES:
        assert getattr(edgekit, name) is not None
    with pytest.raises(AttributeError, match="module 'edgekit' has no attribute 'exprot'"):
        edgekit.exprot  # noqa: B018


def test_a_name_that_a_package_gives_is_none_of_its_submodules() -> None:
    """Else ``from package import name`` gives the function or the module, whichever was imported last."""
    clashes = []
    for init in PACKAGE.rglob("__init__.py"):
        tree = ast.walk(ast.parse(init.read_text(encoding="utf-8")))
        imported = {
            alias.asname or alias.name for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        submodules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
        clashes += [f"{init.parent.name}.{name}" for name in sorted(imported & submodules)]
    assert clashes == []


def test_functions_stay_functions_whatever_is_imported() -> None:
    """In a process of its own: importing a submodule sets an attribute of its package."""
    modules = (
        "import edgekit.benchmark, edgekit.cli.bench, edgekit.exporter, edgekit.inspection, edgekit.coding.packing"
    )
    verbs = "bench, export, inspect, pack, unpack, verify, generate, compress, evaluate"
    names = f"from edgekit import {verbs}; import edgekit; assert all(callable(f) for _ in range(2) for f in [{verbs}])"
    again = "; ".join(f"assert edgekit.{name} is {name}" for name in verbs.split(", "))
    program = f"{names}\n{modules}\n{names}\n{again}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_type_checker_sees_the_types(tmp_path: Path) -> None:
    """``py.typed`` is there, and no name is Any. Uses the cache that `make lint` leaves."""
    program = tmp_path / "program.py"
    program.write_text("import edgekit\nreveal_type(edgekit.export('m', 'int8', 'b'))\nreveal_type(edgekit.verify)\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", str(program)],
        capture_output=True, text=True, check=False, cwd=PACKAGE.parent,
    )  # fmt: skip
    assert 'Revealed type is "edgekit.bundle.reading.Bundle"' in run.stdout, run.stdout
    assert "-> edgekit.parity.report.Report" in run.stdout
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("code", ["import edgekit", "import edgekit.cli", "import edgekit.doctor"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert imported_by(code) == set()


def test_reading_a_bundle_needs_neither_torch_nor_onnxruntime() -> None:
    assert imported_by("import edgekit.inspection; edgekit.Bundle") == {"numpy"}


def test_running_needs_no_torch() -> None:
    assert imported_by("edgekit = __import__('edgekit'); edgekit.verify, edgekit.bench, edgekit.generate") <= {"numpy"}


def test_changelog_has_this_version() -> None:
    text = (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{edgekit.__version__}] - " in text


def test_exit_codes() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {  # type: ignore[attr-defined]
        "EdgekitError": 2, "UsageError": 2, "RecipeError": 2, "SourceError": 2, "UnsupportedError": 2,
        "BundleError": 2, "RuntimeUnavailable": 2, "CheckFailed": 1,
    }  # fmt: skip
    assert all(kind.__name__ in str(errors.__doc__) for kind in kinds)
