"""Runs the JUnit tests of android_demo/ on this machine's Java."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.support.tooling import ROOT, need, require
from tools import android_packages, build_runner, kotlin
from tools.build_runner import WORK

TESTS = ROOT / "android_demo" / "edgekit" / "src" / "test" / "kotlin"
INSTALL = f"as root: apt-get install {' '.join(android_packages.DEBIAN_PACKAGES)}"


def needed() -> None:
    """Ends the test unless all that this needs is there."""
    need("java", "npm")
    require(all(jar.is_file() for jar in kotlin.JUNIT), f"JUnit is not installed; {INSTALL}")


@cache
def engine_tests() -> list[Path]:
    """The engine's tests with TokenizerMain, and the engine: what needs Android's classes is in neither."""
    needed()
    sources = sorted(path for path in TESTS.rglob("*.kt") if path.parent.name != "android")
    jar, engine = WORK / "engine-tests.jar", build_runner.engine()
    kotlin.compile_jar(sources, jar, [*kotlin.JUNIT, kotlin.coroutines(), build_runner.ort_classes()], friends=[engine])
    return [jar, engine]


def names(tests: Sequence[Path]) -> list[str]:
    """The classes of those sources that are named ...Test."""
    return [".".join(_package(test)) for test in tests if test.stem.endswith("Test")]


def run(jars: Sequence[Path], tests: Sequence[Path], *options: str) -> str:
    """Runs the classes of ``tests``, which are in ``jars``, and gives JUnit's report; one that fails ends the caller's test."""
    # JUnit before android.jar, which has classes of the same names that do nothing.
    classpath = os.pathsep.join(map(str, [jars[0], kotlin.stdlib(), *kotlin.JUNIT, *jars[1:]]))
    command = ["java", *kotlin.BRIEF, *options, "-cp", classpath, "org.junit.runner.JUnitCore", *names(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def _package(source: Path) -> tuple[str, ...]:
    """.../src/test/kotlin, below which directories are packages."""
    root = next(parent for parent in source.parents if parent.name == "kotlin")
    return source.relative_to(root).with_suffix("").parts
