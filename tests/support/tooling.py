"""Tools that tests of the native code need: missing ones fail in CI and are skipped, with the reason, elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (ROOT / "tools" / "native-test-packages.txt").read_text(encoding="utf-8").split()


def need(*programs: str) -> None:
    """Ends the test unless all programs are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    require(not missing, f"{', '.join(missing)} not installed; as root: apt-get install {' '.join(PACKAGES)}")


def require(there: bool, message: str) -> None:
    """Ends the test with ``message`` unless what it needs is there."""
    if not there and os.environ.get("CI"):
        pytest.fail(message)
    if not there:
        pytest.skip(message)
