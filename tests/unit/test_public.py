"""The public surface: names, what importing costs, and that errors tell exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import errors

NAMES = [
    "Bundle", "Decoder", "EdgekitError", "Recipe", "Rule", "Session", "__version__", "bench", "export", "generate", "verify",
]  # fmt: skip
HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "numpy")


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after ``code``."""
    program = f"{code}\nimport sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_names() -> None:
    assert edgekit.__all__ == NAMES
    assert dir(edgekit) == sorted(NAMES)
    for name in NAMES:
        assert getattr(edgekit, name) is not None
    with pytest.raises(AttributeError, match="module 'edgekit' has no attribute 'exprot'"):
        edgekit.exprot  # noqa: B018


@pytest.mark.parametrize("code", ["import edgekit", "import edgekit.cli", "import edgekit.doctor"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert imported_by(code) == set()


def test_reading_a_bundle_needs_neither_torch_nor_onnxruntime() -> None:
    assert imported_by("import edgekit.inspection; edgekit.Bundle") == {"numpy"}


def test_running_needs_no_torch() -> None:
    assert imported_by("edgekit = __import__('edgekit'); edgekit.verify, edgekit.bench, edgekit.generate") <= {"numpy"}


def test_changelog_has_this_version() -> None:
    text = (Path(edgekit.__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{edgekit.__version__}] - " in text


def test_exit_codes() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {  # type: ignore[attr-defined]
        "EdgekitError": 2, "UsageError": 2, "RecipeError": 2, "SourceError": 2, "UnsupportedError": 2,
        "BundleError": 2, "RuntimeUnavailable": 2, "CheckFailed": 1,
    }  # fmt: skip
    assert all(kind.__name__ in str(errors.__doc__) for kind in kinds)
