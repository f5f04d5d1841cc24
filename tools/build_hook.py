"""What hatchling makes before it makes a wheel: the operator libraries of every system (for an editable one too), and the runner
for Android where a JDK and npm are.

One wheel serves every platform: it holds the libraries of all eight, and no Python extension module. So it stays
py3-none-any, and needs no compiler where it is installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RUNNER = "edgekit/devices/android/runner.jar"


class WheelHook(BuildHookInterface[BuilderConfig]):
    """The one hook; pyproject.toml names this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fills edgekit/lowbit/native in the tree that is being built. Raises RuntimeError when a compiler fails."""
        done = run(self.root, "tools.build_kernels", "--all")
        if done.returncode != 0:
            raise RuntimeError(f"building the operator library failed:\n{done.stdout}")
        self.app.display_info(done.stdout)
        if version != "editable":
            fault = runner_fault(self.root)
            if fault:
                self.app.display_warning(f"this wheel cannot set up Android phones, it has no {RUNNER}: {fault}")
            else:
                build_data["artifacts"].append(RUNNER)


def runner_fault(root: str) -> str:
    """Builds the runner for Android in the tree ``root``; gives why that cannot be done, or nothing."""
    if not Path(root, "tools", "build_runner.py").is_file():
        return "its sources are in a checkout only"
    done = run(root, "tools.build_runner")
    return "" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def run(root: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool of the tree ``root``; stdout holds what it says."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
