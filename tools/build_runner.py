"""The program that runs a bundle on Android (docs/runner.md): ``python -m tools.build_runner`` writes
edgekit/devices/android/runner.jar and prints its path.

It holds the engine, the runner, Kotlin's library and ONNX Runtime's Java classes twice: as classes, which a JVM runs in
tests, and as dex, which app_process runs on a phone. The same sources make the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from tools import android_packages, kotlin
from tools.fetch_ort_android import BUILD, fetch
from tools.made import alone

ROOT = BUILD.parent
ENGINE = ROOT / "android_demo" / "edgekit" / "src" / "main" / "kotlin"
RUNNER = ROOT / "android_demo" / "runner" / "src" / "main" / "kotlin"
JAR = ROOT / "edgekit" / "devices" / "android" / "runner.jar"
WORK = BUILD / "android"
MAIN = "dev.edgekit.runner.Main"
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say


def engine_sources() -> list[Path]:
    """The engine without what needs android.*."""
    sources = sorted(path for path in ENGINE.rglob("*.kt") if "android" not in path.relative_to(ENGINE).parts)
    if not sources:
        raise SystemExit(f"{ENGINE} has no Kotlin sources")
    return sources


def ort_classes() -> Path:
    """ONNX Runtime's Java classes, from its AAR."""
    return fetch() / "classes.jar"


def libraries() -> list[Path]:
    """The jars that the engine needs to run."""
    return [kotlin.stdlib(), kotlin.coroutines(), ort_classes()]


def engine(work: Path = WORK) -> Path:
    """engine.jar in ``work``: the engine without what needs android.*, compiled when its sources have changed."""
    jar = work / "engine.jar"
    kotlin.compile_jar(engine_sources(), jar, [kotlin.coroutines(), ort_classes()], explicit_api=True)
    return jar


def classes(work: Path = WORK) -> list[Path]:
    """The jars of runner and engine, without the libraries."""
    jar, sources = work / "runner-classes.jar", sorted(RUNNER.rglob("*.kt"))
    if not sources:
        raise SystemExit(f"{RUNNER} has no Kotlin sources")
    kotlin.compile_jar(sources, jar, [kotlin.coroutines(), ort_classes()], friends=[engine(work)])
    return [jar, engine(work)]


def build(jar: Path = JAR, work: Path = WORK) -> Path:
    """``jar``, built anew in ``work`` from what has changed. Ends the program when something does not compile."""
    own = classes(work)
    dexes = kotlin.dex(own, libraries(), work / "runner-dex", android_packages.android_jar())
    jar.parent.mkdir(parents=True, exist_ok=True)
    with alone(work / jar.name):
        partial = jar.with_name(f".{jar.name}.partial")
        write_jar(partial, [*own, *libraries()], dexes)
        partial.replace(jar)
    return jar


def write_jar(target: Path, jars: Iterable[Path], dexes: Iterable[Path]) -> None:
    """All content of ``jars`` and ``dexes`` in one jar; of two entries of one name the first is kept."""
    entries = {"META-INF/MANIFEST.MF": f"Manifest-Version: 1.0\r\nMain-Class: {MAIN}\r\n\r\n".encode()}
    for path in jars:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                # Classes for newer versions of Java would have to be told apart; nothing here runs on modules.
                if not name.endswith(("/", "module-info.class")) and not name.startswith("META-INF/versions/"):
                    entries.setdefault(name, archive.read(name))
    entries.update((path.name, path.read_bytes()) for path in dexes)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(entries, key=lambda name: (name != "META-INF/MANIFEST.MF", name)):
            archive.writestr(_entry(name), entries[name])


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, whatever system this runs on
    entry.external_attr = 0o644 << 16
    return entry


if __name__ == "__main__":
    print(build())
