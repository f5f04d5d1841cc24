"""Targets, what devices say of themselves, and what is said when one is out of reach."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from edgekit.cli.verbs import main
from edgekit.devices import Target, open_connection
from edgekit.devices.connection import attached_phones
from edgekit.devices.deploy import device_job
from edgekit.devices.linux import inspect_linux
from edgekit.devices.phone import LIBRARIES, Android, inspect_android, installed, setup_android
from edgekit.devices.probe import Core, parse, probe
from edgekit.errors import RuntimeUnavailable, UnsupportedError, UsageError
from tests.support.shell_connection import ShellConnection

PI = """@@ uname
aarch64
6.12.25+rpt-rpi-v8
Linux
@@ cpuinfo
processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU part\t: 0xd0b
@@ memory
MemTotal:        8256000 kB
@@ model
Raspberry Pi 5 Model B Rev 1.0
@@ os
Debian GNU/Linux 12 (bookworm)
@@ page
16384
@@ core 0
2400000
@@ core 1
2400000
@@ governor
ondemand
@@ temperature
47200
-127000
@@ battery
@@ executable
/usr/lib/systemd/systemd
"""
PHONE = """@@ uname
aarch64
6.1.75-android14-11
Linux
@@ cpuinfo
Features\t: fp asimd asimddp i8mm
@@ memory
MemTotal: 7654321 kB
@@ model
@@ os
@@ page
4096
@@ core 4
2800000
@@ core 0
1800000
@@ core 10
@@ governor
walt
@@ temperature
33000
41500
999999
@@ battery
87
Discharging
@@ android
ro.product.manufacturer=Acme
ro.product.model=One
ro.soc.model=SM8550
ro.build.version.release=14
ro.build.version.sdk=34
@@ emulator


@@ executable
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", Target("local", "local")),
        ("ssh:pi", Target("ssh:pi", "ssh", "pi")),
        ("ssh:me@pi.local:2222", Target("ssh:me@pi.local:2222", "ssh", "me@pi.local", 2222)),
        ("ssh:root@[fe80::1%eth0]:22", Target("ssh:root@[fe80::1%eth0]:22", "ssh", "root@fe80::1%eth0", 22)),
        ("adb:127.0.0.1:5555", Target("adb:127.0.0.1:5555", "adb", "127.0.0.1:5555")),
        ("adb:R58M12ABCDE", Target("adb:R58M12ABCDE", "adb", "R58M12ABCDE")),
    ],
)
def test_targets(text: str, expected: Target) -> None:
    assert Target.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "pi", "ssh:", "ssh:-oProxyCommand=x", "ssh:me@-x", "ssh:-x@pi", "ssh:pi:0", "ssh:pi:99999", "ssh:a b", "adb:",
     "adb:-s", "usb:1", "ssh:pi;ls", "LOCAL"],
)  # fmt: skip
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError, match=r"is none of local, ssh:\[user@\]host\[:port\] or adb:SERIAL"):
        Target.parse(text)


def test_a_pi_as_it_describes_itself() -> None:
    facts = parse("ssh:pi", PI)
    assert facts.model == "Raspberry Pi 5 Model B Rev 1.0" and facts.system == "Debian GNU/Linux 12 (bookworm)"
    assert facts.cores == (Core(0, 2400.0), Core(1, 2400.0)) and facts.features == ("asimd", "asimddp")
    assert (facts.memory_mb, facts.page_size, facts.temperature, facts.battery) == (8062, 16384, 47.2, "")
    assert facts.emulated == ""
    assert "2 cores (2 × 2.4 GHz), 8062 MB, pages of 16 KiB" in "\n".join(facts.lines())


def test_a_phone_as_it_describes_itself() -> None:
    facts = parse("adb:X", PHONE)
    assert (facts.model, facts.soc, facts.system) == ("Acme One", "SM8550", "Android 14")
    assert facts.cores == (Core(0, 1800.0), Core(4, 2800.0), Core(10, None))
    assert (facts.temperature, facts.battery, facts.emulated) == (41.5, "87 % Discharging", "")
    service = "Current Battery Service state:\n  status: 2\n  level: 64\n  scale: 100"
    assert parse("adb:X", PHONE.replace("87\nDischarging", service)).battery == "64 % Charging"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PHONE.replace("@@ emulator\n", "@@ emulator\n1\n"), "an emulator's system property is set"),
        (PI.replace("/usr/lib/systemd/systemd", "/usr/bin/qemu-aarch64-static"), "its processes are run by qemu"),
        (PI.replace("6.12.25+rpt-rpi-v8", "6.1.0-13-amd64"), "kernel 6.1.0-13-amd64 is another processor's"),
    ],
)
def test_emulation_is_recognised(text: str, why: str) -> None:
    facts = parse("ssh:pi", text)
    assert facts.emulated == why
    assert list(facts.lines())[-1] == f"  EMULATED ({why}): results count, times do not"


def test_a_device_that_tells_nothing() -> None:
    facts = parse("ssh:x", "")
    assert facts.cores == () and facts.memory_mb is None and facts.temperature is None
    assert list(facts.lines())[1].startswith("  , 0 cores")


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ``adb`` that runs the script here."""
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1 $2 $3 $4" = "-s X shell -T" ] || exit 9\nexec sh -c "$5"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_a_phone_is_asked_over_adb(adb: Path) -> None:
    with open_connection(Target.parse("adb:X")) as connection:
        assert connection.directory == "/data/local/tmp/edgekit"
        assert probe(connection).machine == os.uname().machine
        assert connection.run("cat; exit 7", stdin=bytes(range(256))).stdout == bytes(range(256))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("adb: device 'X' not found", "device 'X' not found; `adb devices` lists what is attached"),
        ("error: device unauthorized.", "device unauthorized.; unlock the phone and allow USB debugging"),
        ("error: device offline", "device offline; unplug and plug it in again"),
        ("error: protocol fault", "error: protocol fault"),
    ],
)
def test_phones_out_of_reach(adb: Path, words: str, message: str) -> None:
    adb.write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
    with pytest.raises(RuntimeUnavailable) as failure:
        open_connection(Target.parse("adb:X"))
    assert str(failure.value).startswith(f"adb:X: {message}")


def test_attached_phones_are_listed(adb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adb.write_text(
        '#!/bin/sh\nif [ "$1" = devices ]; then printf "List of devices attached\\nX\\tdevice\\nY\\tunauthorized\\n\\n"; exit; fi\n'
        'exec sh -c "$5"\n'
    )
    assert attached_phones() == [("X", "device"), ("Y", "unauthorized")]
    with pytest.raises(SystemExit):
        main(["devices", "show"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("adb:X: ") and lines[-1] == "adb:Y: unauthorized"
    adb.write_text("#!/bin/sh\necho List of devices attached\n")
    with pytest.raises(SystemExit):
        main(["devices", "show"])
    assert capsys.readouterr().out == "no phone is attached; give a Linux device as ssh:[user@]host\n"
    adb.write_text("#!/bin/sh\necho cannot start server >&2; exit 1\n")
    with pytest.raises(RuntimeUnavailable, match="adb devices: exit code 1: cannot start server"):
        attached_phones()


@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_programs_that_are_missing(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=f"{kind} is not installed; {kind}: targets need"):
        open_connection(Target.parse(f"{kind}:x"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            "Linux armv7l\n32\nglibc 2.36\n3 11",
            "Linux armv7l with 32 bits; ONNX Runtime has wheels for 64-bit Linux only",
        ),
        ("Linux aarch64\n32\nglibc 2.36\n3 11", "Linux aarch64 with 32 bits; ONNX Runtime has wheels for 64-bit"),
        (
            "Linux aarch64\n64\nglibc 2.24\n3 11",
            "C library 'glibc 2.24'; ONNX Runtime's wheels need glibc 2.27 or newer",
        ),
        ("Linux aarch64\n64\nnone\n3 11", "C library 'none'"),
        (
            "Linux aarch64\n64\nglibc 2.36\nnone",
            "python3 with venv is 'none' there; ONNX Runtime 1.29.0 has wheels for Python 3.11,",
        ),
        ("Linux aarch64\n64\nglibc 2.36\n3 9", "python3 with venv is '3 9' there"),
        ("Darwin arm64", "Darwin arm64 with ? bits"),
    ],
)
def test_devices_that_no_wheel_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, message: str) -> None:
    connection = ShellConnection(tmp_path)
    monkeypatch.setattr(connection, "text", lambda script: facts)
    with pytest.raises(UnsupportedError) as failure:
        inspect_linux(connection)
    assert message in str(failure.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("x86\n34\n", "its ABI is 'x86'; the runner is made for arm64-v8a, x86_64"),
        ("\n", "its ABI is 'unknown'"),
        ("arm64-v8a\n25\n", "Android API 25; API 26 (Android 8) or newer is needed"),
        ("arm64-v8a\n\n", "Android API unknown"),
    ],
)
def test_phones_that_run_no_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, message: str) -> None:
    connection = ShellConnection(tmp_path)
    monkeypatch.setattr(connection, "text", lambda script: facts)
    with pytest.raises(UnsupportedError) as failure:
        inspect_android(connection)
    assert message in str(failure.value)


class Phone(ShellConnection):
    """A phone that says what it is, and is this machine otherwise."""

    def argv(self, script: str) -> list[str]:
        return super().argv(f"getprop() {{ [ $1 = ro.build.version.sdk ] && echo 34 || echo arm64-v8a; }}; {script}")


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as package:
        for name in names:
            package.writestr(name, name * 10)
    return path


def test_a_phone_gets_onnxruntime_out_of_its_package(tmp_path: Path) -> None:
    connection = Phone(tmp_path / "device")
    with pytest.raises(
        RuntimeUnavailable, match=r"not set up there; run `edgekit devices setup ssh:here --aar FILE` once"
    ):
        installed(connection)
    names = [f"jni/{abi}/{library}" for abi in ("arm64-v8a", "x86_64") for library in LIBRARIES]
    package = archive(tmp_path / "ort.aar", "classes.jar", *names)
    setup_android(connection, package, lambda what, share: None)
    for library in LIBRARIES:
        assert (tmp_path / "device" / "lib" / library).read_text() == f"jni/arm64-v8a/{library}" * 10
    assert installed(connection) == "onnxruntime for Android"


def test_packages_that_are_none(tmp_path: Path) -> None:
    connection, say = Phone(tmp_path / "device"), lambda what, share: None
    with pytest.raises(UsageError, match=r"--aar FILE is needed: ONNX Runtime's Android package \(com.microsoft"):
        setup_android(connection, None, say)
    (tmp_path / "no.aar").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"no.aar: is no readable .aar \(File is not a zip file\)"):
        setup_android(connection, tmp_path / "no.aar", say)
    for package in (archive(tmp_path / "other.aar", "jni/x86/libonnxruntime.so"), tmp_path):
        with pytest.raises(
            UsageError, match=r"holds no jni/arm64-v8a/libonnxruntime.so; give onnxruntime-android 1.29.0's"
        ):
            setup_android(connection, package, say)


def test_how_a_runner_is_started_on_a_phone() -> None:
    command = Android("arm64-v8a").command("/data/local/tmp/edgekit", "A=1", "taskset f0 ", "'{}'")
    assert command == (
        "cd /data/local/tmp/edgekit && exec env A=1 LD_LIBRARY_PATH=/data/local/tmp/edgekit/lib "
        "CLASSPATH=/data/local/tmp/edgekit/runner/runner.jar taskset f0 app_process "
        "-Donnxruntime.native.path=/data/local/tmp/edgekit/lib /data/local/tmp/edgekit dev.edgekit.runner.Main '{}'"
    )


def test_a_runner_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.devices.phone.RUNNER", tmp_path / "runner.jar")
    with pytest.raises(
        RuntimeUnavailable, match=r"the runner for Android is not there; in a checkout `python -m tools"
    ):
        Android("arm64-v8a").runner_files()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo oops >&2; exit 3",
            "the runner ended at 'start' (exit code 3: oops); was it killed for memory, or the device switched off?",
        ),
        ("echo no JSON; sleep 9", "the runner ended at 'start' (SIGKILL: without a word); was it killed for memory"),
        ("echo 'link down' >&2; exit 255", "link down"),
        ('echo \'{"error": "BundleError", "message": "bad"}\'', "bad"),
        ('echo \'{"error": "SystemExit", "message": "x"}\'', "x"),
        ('echo \'{"error": "annotations", "message": "y"}\'', "y"),
    ],
)
def test_runners_that_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    connection = ShellConnection(tmp_path)
    monkeypatch.setattr(connection, "argv", lambda asked: ["sh", "-c", script])
    with pytest.raises(Exception, match=r"^ssh:here: ") as failure:
        device_job(connection, "")
    assert message in str(failure.value)


@pytest.mark.parametrize(
    "arrays", ["[]", '{"a": {"dtype": "object", "shape": [1], "data": ""}}', '{"a": {}}', '{"a": 1}']
)
def test_answers_that_hold_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: str) -> None:
    connection = ShellConnection(tmp_path)
    script = f"echo '{{\"runner\": 1}}'; read request; echo '{{\"arrays\": {arrays}}}'; read more"
    monkeypatch.setattr(connection, "argv", lambda asked: ["sh", "-c", script])
    with (
        device_job(connection, "") as job,
        pytest.raises(RuntimeUnavailable, match="the runner's answer to 'replay' holds no"),
    ):
        job.arrays("replay")
