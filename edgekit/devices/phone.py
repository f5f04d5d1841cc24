"""Android devices over adb: the runner is a jar that app_process starts as the shell user; no app, no root."""

from __future__ import annotations

import shlex
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices.connection import Connection
from edgekit.devices.transfer import Item, item_of, push
from edgekit.errors import RuntimeUnavailable, UnsupportedError, UsageError
from edgekit.spec.progress import Progress

RUNNER = Path(__file__).parent / "android" / "runner.jar"
MAIN = "dev.edgekit.runner.Main"
OLDEST_SDK = 26
ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
"""Those that ONNX Runtime's package and the runner are made for, and the processor each stands for."""
LIBRARIES = ("libonnxruntime.so", "libonnxruntime4j_jni.so")
PACKAGE = "onnxruntime-android 1.29.0"
_FACTS = "getprop ro.product.cpu.abi; getprop ro.build.version.sdk"


@dataclass(frozen=True)
class Android:
    """What has to be known of a phone before anything runs there."""

    name: str  # Android's name of the ABI

    @property
    def machine(self) -> str:
        """As ``uname -m`` calls the processor."""
        return ABIS[self.name]

    @property
    def abi(self) -> str:
        """The operator library's name for it."""
        return f"android-{self.name}"

    def runner_files(self) -> list[Item]:
        """The runner; raises RuntimeUnavailable where it was not built."""
        if not RUNNER.is_file():
            raise RuntimeUnavailable(
                f"{RUNNER}: the runner for Android is not there; in a checkout `python -m tools.build_runner` makes it"
            )
        return [item_of(RUNNER, "runner/runner.jar")]

    def command(self, directory: str, variables: str, prefix: str, settings: str) -> str:
        """The script that becomes a runner; ``variables``, ``prefix`` and ``settings`` are quoted already."""
        libraries = shlex.quote(f"{directory}/lib")
        jar = shlex.quote(f"{directory}/runner/runner.jar")
        return (
            f"cd {shlex.quote(directory)} && exec env {variables} LD_LIBRARY_PATH={libraries} CLASSPATH={jar} "
            f"{prefix}app_process -Donnxruntime.native.path={libraries} {shlex.quote(directory)} {MAIN} {settings}"
        )


def inspect_android(connection: Connection) -> Android:
    """Asks the device. Raises UnsupportedError, naming what would be needed, for one that cannot run bundles."""
    abi, sdk, *_ = [*connection.text(_FACTS).splitlines(), "", ""]
    if abi.strip() not in ABIS:
        raise UnsupportedError(
            f"{connection.name}: its ABI is {abi.strip() or 'unknown'!r}; the runner is made for {', '.join(ABIS)}"
        )
    if not sdk.strip().isdigit() or int(sdk) < OLDEST_SDK:
        raise UnsupportedError(
            f"{connection.name}: Android API {sdk.strip() or 'unknown'}; API {OLDEST_SDK} (Android 8) or newer is needed"
        )
    return Android(abi.strip())


def setup_android(connection: Connection, package: Path | None, progress: Progress) -> str:
    """Pushes ONNX Runtime's libraries from its Android package; returns what runs there.

    ``package`` is the .aar, or a directory that it was unpacked to. Raises UsageError for one that is none,
    UnsupportedError as :func:`inspect_android`.
    """
    device = inspect_android(connection)
    if package is None:
        raise UsageError(
            f"{connection.name}: --aar FILE is needed: ONNX Runtime's Android package "
            "(com.microsoft.onnxruntime:onnxruntime-android:1.29.0 on Maven Central)"
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-aar-") as scratch:
        folder = package if package.is_dir() else _unpacked(package, device.name, Path(scratch))
        sources = [folder / "jni" / device.name / library for library in LIBRARIES]
        for source in sources:
            if not source.is_file():
                raise UsageError(f"{package}: holds no jni/{device.name}/{source.name}; give {PACKAGE}'s .aar")
        push(connection, [item_of(source, f"lib/{source.name}") for source in sources], progress)
    return installed(connection)


def installed(connection: Connection) -> str:
    """What is set up on the device. Raises RuntimeUnavailable when nothing is."""
    there = " && ".join(f"[ -f lib/{library} ]" for library in LIBRARIES)
    if connection.run(f"cd {shlex.quote(connection.directory)} && {there}").code != 0:
        raise RuntimeUnavailable(
            f"{connection.name}: ONNX Runtime is not set up there; run `edgekit devices setup {connection.name} --aar FILE` once"
        )
    return "onnxruntime for Android"


def _unpacked(package: Path, abi: str, scratch: Path) -> Path:
    """The libraries of one ABI out of an .aar, into ``scratch``."""
    try:
        with zipfile.ZipFile(package) as archive:
            names = set(archive.namelist())
            for name in (f"jni/{abi}/{library}" for library in LIBRARIES):
                if name in names:
                    target = scratch / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{package}: is no readable .aar ({error}); give {PACKAGE}'s") from error
    return scratch
