"""The demo app as a signed APK, without Gradle: ``tools/build_apk [--bundle DIR ...]`` prints its path.

The steps are Gradle's: aapt2 for resources, kotlinc and D8 for code, a zip file whose native libraries are stored
uncompressed on boundaries of 16 KiB (so that Android maps them from the APK on devices with such pages), apksigner. The
key is made on the fly and good for trying the app out only.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from tools import android_packages, kotlin
from tools.build_runner import DATE, ENGINE, ROOT, WORK, engine, libraries
from tools.fetch_ort_android import fetch, sha256
from tools.made import made

APP = ROOT / "android_demo" / "app"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
OPERATORS = ROOT / "edgekit" / "lowbit" / "native"
ABIS = ("arm64-v8a", "x86_64")
PAGE = 16384
LARGEST = 2**31 - 2**28  # bytes: Android counts positions in an APK in 31 bits, and the libraries need room too
KEY = WORK / "debug.keystore"
PASSWORD = "android"
ANDROID = "http://schemas.android.com/apk/res/android"
ALIGNMENT = 0xD935  # id of a zip entry's extra field that keeps an alignment, which apksigner respects


@dataclass(frozen=True)
class Settings:
    """What app/build.gradle.kts says, so that both builds make the same app; the version is edgekit's."""

    application: str
    min_sdk: int
    target_sdk: int
    version_code: int
    version_name: str

    @staticmethod
    def read(gradle: Path = APP / "build.gradle.kts") -> Settings:
        """Ends the program when one of them is not there."""
        text = gradle.read_text(encoding="utf-8")

        def value(name: str) -> str:
            found = re.search(rf'^\s*{name} = "?([\w.]+)"?$', text, re.MULTILINE)
            if found is None:
                raise SystemExit(f"{gradle}: has no line `{name} = ...`")
            return found[1]

        oldest, target, code = (int(value(name)) for name in ("minSdk", "targetSdk", "versionCode"))
        return Settings(value("applicationId"), oldest, target, code, __version__)


def build(apk: Path = WORK / "edgekit-demo.apk", bundles: Sequence[Path] = ()) -> Path:
    """``apk``, signed. ``bundles`` are directories that go into assets/bundles. Ends the program on failure."""
    settings = Settings.read()
    files = native_libraries() | assets(bundles)
    resources, sources_of_r = compile_resources(settings)
    print("compiling what has changed; all of it takes a few minutes", file=sys.stderr)
    dexes = compile_code(settings, sources_of_r)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        unsigned, signed = Path(scratch, "unsigned.apk"), Path(scratch, "signed.apk")
        write_apk(unsigned, resources, dexes, files)
        sign(unsigned, signed, settings)
        shutil.move(signed, apk)
    return apk


def native_libraries() -> dict[str, Path]:
    """Name in the APK -> file: ONNX Runtime, its Java binding and the operators, for each ABI."""
    files = {}
    for abi in ABIS:
        operators = OPERATORS / f"android-{abi}" / "libedgekit_ops.so"
        if not operators.is_file():
            raise SystemExit(f"{operators} is not there; run `make kernels` first")
        jni = fetch() / "jni" / abi
        for library in (jni / "libonnxruntime.so", jni / "libonnxruntime4j_jni.so", operators):
            files[f"lib/{abi}/{library.name}"] = library
    return files


def assets(bundles: Sequence[Path]) -> dict[str, Path]:
    """Name in the APK -> file, of every bundle's directory."""
    files: dict[str, Path] = {}
    for bundle in bundles:
        name = bundle.resolve().name
        if f"assets/bundles/{name}/manifest.json" in files:
            raise SystemExit(f"{bundle}: two bundles are named {name}; rename one of the directories")
        try:
            opened = Bundle.open(bundle)
            opened.check_hashes()
        except EdgekitError as error:
            raise SystemExit(str(error)) from None
        for path in ("manifest.json", *(file.path for file in opened.manifest.files)):
            files[f"assets/bundles/{name}/{path}"] = bundle / path
    size = sum(file.stat().st_size for file in files.values())
    if size > LARGEST:
        raise SystemExit(
            f"the bundles are {size / 1e9:.1f} GB, an app may hold {LARGEST / 1e9:.1f} GB of them: build it without and "
            "copy them to the device with adb push"
        )
    return files


def compile_resources(settings: Settings) -> tuple[Path, Path]:
    """An APK of manifest and resources only, and R.java, which numbers the resources."""
    if not FRAMEWORK.is_file():
        packages = " ".join(android_packages.DEBIAN_PACKAGES)
        raise SystemExit(f"{FRAMEWORK} is not there; as root: apt-get install {packages}")
    work = WORK / "resources"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    manifest = work / "AndroidManifest.xml"
    manifest.write_bytes(merged_manifest(settings))
    run("aapt2", "compile", "-o", str(work / "compiled.zip"), "--dir", str(APP / "src" / "main" / "res"))
    run(
        "aapt2", "link", "-o", str(work / "linked.apk"), "-I", str(FRAMEWORK), "--manifest", str(manifest),
        "--java", str(work), "--min-sdk-version", str(settings.min_sdk),
        "--target-sdk-version", str(settings.target_sdk), "--version-code", str(settings.version_code),
        "--version-name", settings.version_name, str(work / "compiled.zip"),
    )  # fmt: skip
    return work / "linked.apk", work / settings.application.replace(".", "/") / "R.java"


def merged_manifest(settings: Settings) -> bytes:
    """The app's manifest with what Gradle adds: the package's name, and that libraries are used inside the APK."""
    ElementTree.register_namespace("android", ANDROID)
    tree = ElementTree.parse(APP / "src" / "main" / "AndroidManifest.xml").getroot()
    tree.set("package", settings.application)
    application = tree.find("application")
    if application is None:
        raise SystemExit("the app's manifest has no <application>")
    application.set(f"{{{ANDROID}}}extractNativeLibs", "false")
    return bytes(ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True))


def compile_code(settings: Settings, sources_of_r: Path) -> list[Path]:
    """The dex files of app, library and what they need."""
    android = android_packages.android_jar()
    library, resources, app = WORK / "library.jar", WORK / "r.jar", WORK / "app.jar"
    sources = sorted((ENGINE / "dev" / "edgekit" / "android").glob("*.kt"))
    kotlin.compile_jar(sources, library, [android], friends=[engine()], explicit_api=True)
    kotlin.compile_java([sources_of_r], resources)
    needed = [android, kotlin.coroutines(), engine(), library, resources]
    kotlin.compile_jar(sorted((APP / "src" / "main" / "kotlin").rglob("*.kt")), app, needed)
    return kotlin.dex([app, resources, library, engine()], libraries(), WORK / "app-dex", android, settings.min_sdk)


def write_apk(target: Path, linked: Path, dexes: Sequence[Path], files: dict[str, Path]) -> None:
    """All of it in one zip file. Libraries and assets are stored, the former on boundaries of 16 KiB."""
    with zipfile.ZipFile(target, "w") as apk, zipfile.ZipFile(linked) as resources:
        for entry in resources.infolist():
            # Android 11 and newer refuse a resources.arsc that is compressed or not aligned.
            add(apk, entry.filename, resources.read(entry), stored=entry.compress_type == zipfile.ZIP_STORED)
        for path in dexes:
            add(apk, path.name, path.read_bytes(), stored=False)
        for name, path in sorted(files.items()):
            add_file(apk, name, path)


def add(apk: zipfile.ZipFile, name: str, content: bytes, *, stored: bool) -> None:
    """One entry from memory."""
    entry = new_entry(apk, name, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    apk.writestr(entry, content)


def add_file(apk: zipfile.ZipFile, name: str, path: Path) -> None:
    """One stored entry from a file of any size."""
    entry = new_entry(apk, name, zipfile.ZIP_STORED)
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, apk.open(entry, "w") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def new_entry(apk: zipfile.ZipFile, name: str, compression: int) -> zipfile.ZipInfo:
    """An entry whose content will start on a boundary of 16 KiB (libraries) or 4 bytes."""
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = compression
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    boundary = PAGE if name.endswith(".so") else 4
    start = apk.start_dir + 30 + len(name.encode())  # start_dir is where the next entry goes
    padding = -(start + 6) % boundary
    entry.extra = struct.pack("<HHH", ALIGNMENT, 2 + padding, boundary) + bytes(padding)
    return entry


def sign(unsigned: Path, apk: Path, settings: Settings) -> None:
    """Schemes 2 and 3, which every Android since 7 checks; the old scheme 1 is for older ones."""
    key = debug_key()
    run(
        "apksigner", "sign", "--ks", str(key), "--ks-pass", f"pass:{PASSWORD}",
        "--min-sdk-version", str(settings.min_sdk), "--v1-signing-enabled", "false", "--v2-signing-enabled", "true",
        "--v3-signing-enabled", "true", "--v4-signing-enabled", "false", "--out", str(apk), str(unsigned),
    )  # fmt: skip


def debug_key() -> Path:
    """A key store with one key, made once: with another key, Android would refuse the app as an update of itself."""

    def fill(target: Path) -> None:
        run(
            "keytool", "-genkeypair", "-keystore", str(target / KEY.name), "-storepass", PASSWORD, "-alias", "debug",
            "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=edgekit debug",
        )  # fmt: skip

    return made(KEY.with_suffix(".d"), "RSA 2048", fill) / KEY.name


def content_offset(apk: Path, entry: zipfile.ZipInfo) -> int:
    """Where the entry's content starts in the file, in bytes."""
    with apk.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    return int(entry.header_offset + 30 + name_length + extra_length)


def run(program: str, *arguments: str) -> str:
    """The command's output. Ends the program with what it said when it fails or is not installed."""
    if shutil.which(program) is None:
        packages = " ".join(android_packages.DEBIAN_PACKAGES)
        raise SystemExit(f"{program} is not installed; as root: apt-get install {packages}")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr + done.stdout)[-4000:]
        raise SystemExit(f"{program} {arguments[0]} failed (exit code {done.returncode}):\n{said}")
    return done.stdout


@click.command(help="Builds the demo app without Gradle and prints the path of the APK.")
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="a bundle that goes into the app; may be given several times")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=WORK / "edgekit-demo.apk",
              show_default="build/android/edgekit-demo.apk")  # fmt: skip
def main(bundles: tuple[Path, ...], output: Path) -> None:
    """The command line."""
    output.parent.mkdir(parents=True, exist_ok=True)
    apk = build(output.resolve(), bundles)
    print(f"{apk.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(apk)}", file=sys.stderr)
    print(apk)


if __name__ == "__main__":
    main()
