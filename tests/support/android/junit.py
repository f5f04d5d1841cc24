"""Runs the JUnit tests of android_demo/ on this machine's Java."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.tooling import ROOT, require
from tools import android_packages, kotlin

BUILD = ROOT / "build" / "android-tests"
JUNIT = [Path("/usr/share/java/junit4.jar"), Path("/usr/share/java/hamcrest-core.jar")]
INSTALL = f"as root: apt-get install {' '.join(android_packages.DEBIAN_PACKAGES)}"


def run(name: str, sources: Sequence[Path], tests: Sequence[Path], classpath: Sequence[Path] = ()) -> str:
    """Compiles ``sources`` and ``tests`` as one module and runs every class of ``tests`` named ...Test.

    Gives JUnit's report; a test that fails ends the caller's test with it.
    """
    require(all(jar.is_file() for jar in JUNIT), f"JUnit is not installed; {INSTALL}")
    BUILD.mkdir(parents=True, exist_ok=True)
    jar = BUILD / f"{name}.jar"
    kotlin.compile_jar([*sources, *tests], jar, [*JUNIT, *classpath])
    classes = [test.relative_to(_root(test)).with_suffix("") for test in tests if test.stem.endswith("Test")]
    names = [".".join(path.parts) for path in classes]
    # JUnit before android.jar, which has classes of the same names that do nothing.
    jars = os.pathsep.join(map(str, [jar, kotlin.stdlib(), *JUNIT, *classpath]))
    command = ["java", *kotlin.BRIEF, "-cp", jars, "org.junit.runner.JUnitCore", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def _root(source: Path) -> Path:
    """.../src/test/kotlin, below which directories are packages."""
    return next(parent for parent in source.parents if parent.name == "kotlin")
