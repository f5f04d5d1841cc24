"""Builds the operator library for every system when hatchling makes a wheel, an editable one too.

One wheel serves every platform: it holds the libraries of all eight, and no Python extension module. So it stays
py3-none-any, and needs no compiler where it is installed.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """The one hook; pyproject.toml names this file and, as artifacts, what it makes."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fills edgekit/lowbit/native in the tree that is being built. Raises RuntimeError when a compiler fails."""
        command = [sys.executable, "-m", "tools.build_kernels", "--all"]
        done = subprocess.run(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"building the operator library failed:\n{done.stdout}")
        self.app.display_info(done.stdout)
