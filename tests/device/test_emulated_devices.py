"""edgekit with emulated devices: a Raspberry Pi's Debian behind a real sshd, a phone's look behind the real adbd.

Emulation shows that everything fits together and what is computed, never how fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgekit.bundle import Bundle, BundleWriter
from tests.support.emulated_devices import DROID, PI, TOOL, Devices, set_up
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle
from tests.support.tooling import need
from tools import emulation_host as host
from tools.demo_models import minilm

SSH = ("ssh", "-F", str(host.STATE / "ssh" / "config"), "pi")
ADB = ("adb", "-s", DROID.removeprefix("adb:"), "shell", "-T")
BALLAST = 50_000_000
LARGE = 300_000_000
INCOMING = "data/local/tmp/edgekit/incoming"
MAIN = """
public class Main {
    public static void main(String[] arguments) {
        System.out.println(System.getProperty("key") + "|" + String.join("|", arguments) + "|" + System.getProperty("os.arch"));
        System.out.println(System.getenv("LD_LIBRARY_PATH"));
        System.exit(7);
    }
}
"""


def test_up_prints_the_targets_and_keeps_what_is_up(devices: Devices) -> None:
    (keeper,) = host.processes(host.KEEPER)
    assert devices.tool("up") == f"{PI}\n{DROID}\n"
    assert host.processes(host.KEEPER) == [keeper]
    assert devices.tool("status") == f"pi: answers ({PI}, cortex-a76)\ndroid: answers ({DROID}, cortex-a76)\n"


def test_edgekit_says_what_they_are(devices: Devices) -> None:
    done = devices.edgekit("devices", "show", PI, DROID, "--json")
    assert done.returncode == 0, done.stderr
    board, phone = json.loads(done.stdout)["devices"]
    assert board["model"] == "Raspberry Pi 5 Model B Rev 1.0" and board["system"].startswith("Debian GNU/Linux 13")
    assert [core["max_mhz"] for core in board["cores"]] == [2400.0] * 4
    assert board["emulated"] == "its processes are run by qemu"
    assert phone["model"] == "edgekit emulated phone" and phone["system"] == "Android 14"
    assert [core["max_mhz"] for core in phone["cores"]] == [1800.0] * 4 + [2800.0] * 4
    assert phone["battery"] == "87 % Discharging"
    assert phone["emulated"] == "an emulator's system property is set"
    for facts in (board, phone):
        assert facts["machine"] == "aarch64" and facts["temperature"] == 47.2 and facts["governor"] == "ondemand"
        assert "asimddp" in facts["features"] and "i8mm" not in facts["features"]


def test_the_phone_lets_in_no_more_than_a_phone(devices: Devices) -> None:
    done = devices.run(
        *ADB, "id -un; getprop ro.build.version.sdk; getprop none else; ! command -v python3 && ! touch /system/x"
    )
    assert (done.stdout, done.returncode) == (b"shell\n34\nelse\n", 0)
    battery = devices.run(*ADB, "dumpsys battery").stdout.decode().split("\n")
    assert "  level: 87" in battery and "  status: 3" in battery
    assert devices.run(*ADB, "taskset f0 echo pinned").stdout == b"pinned\n"


def test_nothing_outside_reaches_them(devices: Devices) -> None:
    for port in (2222, 5555):
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
    # The virtual machine's own socket, which belongs to no network namespace.
    script = "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)"
    assert b"Address family not supported" in devices.run(*SSH, f"python3 -c '{script}'").stderr


def test_the_phone_runs_java(devices: Devices, tmp_path: Path) -> None:
    need("javac", "jar")
    (tmp_path / "Main.java").write_text(MAIN)
    subprocess.run(["javac", "--release", "11", "Main.java"], cwd=tmp_path, check=True)
    subprocess.run(["jar", "cf", "main.jar", "Main.class"], cwd=tmp_path, check=True)
    devices.run(*ADB, "cat > /data/local/tmp/main.jar", stdin=(tmp_path / "main.jar").read_bytes())
    done = devices.run(
        *ADB,
        "LD_LIBRARY_PATH=/data/local/tmp CLASSPATH=/data/local/tmp/main.jar "
        "app_process '-Dkey=a value' /system/bin Main 'one argument' -two",
    )
    assert done.stdout == b"a value|one argument|-two|aarch64\n/system/lib64:/data/local/tmp\n", done.stderr
    assert done.returncode == 7
    assert b"libc.so" in devices.run(*ADB, "ls /system/lib64").stdout


@pytest.mark.parametrize("shell", [SSH, ADB], ids=["ssh", "adb"])
def test_bytes_go_through_unchanged(devices: Devices, shell: tuple[str, ...]) -> None:
    awkward = bytes(range(256)) * 9 + b"\r\n\n\r\x03\x04\x1a~.\n~.\n" * 99
    data = random.Random(1).randbytes(3_000_001) + awkward
    place = "/tmp/f" if shell is SSH else "/data/local/tmp/f"
    done = devices.run(*shell, f"cat > {place} && sha256sum < {place}; echo other >&2; exit 5", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert done.stderr == b"other\n" and done.returncode == 5
    assert devices.run(*shell, f"cat {place}; rm {place}").stdout == data


def test_a_decoder_passes_on_the_pi(devices: Devices, pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    done = devices.edgekit("verify", str(tmp_path / "b"), "--target", pi)
    assert done.returncode == 0, done.stderr
    assert f"on {pi}, 1 thread: FusedMatMul" in done.stdout and done.stdout.endswith("verdict: PASS\n")


def test_the_operator_uses_what_the_processor_has(devices: Devices, pi: str, tmp_path: Path) -> None:
    linear_bundle(tmp_path / "b", "t2")
    for isa, used in (("", "neon_dotprod"), ("neon", "neon")):
        done = devices.edgekit("verify", str(tmp_path / "b"), "--target", pi, **({"EDGEKIT_ISA": isa} if isa else {}))
        assert done.returncode == 0, done.stderr
        assert f"TernaryMatMul: native operator ({used})" in done.stdout and done.stdout.endswith("verdict: PASS\n")
    done = devices.edgekit("verify", str(tmp_path / "b"), "--target", pi, EDGEKIT_ISA="neon_i8mm")
    assert done.returncode == 2
    assert done.stderr.endswith(
        f"edgekit: {pi}: EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has neon_dotprod neon scalar. "
        "Unset EDGEKIT_ISA to let the library choose\n"
    )


def test_power_lost_while_files_travel(devices: Devices, pi: str, tmp_path: Path) -> None:
    arguments = ("verify", str(_heavy(tmp_path)), "--target", pi)
    incoming = host.STATE / "pi" / "upper" / "root" / ".edgekit-device" / "incoming"

    def arrived() -> int:
        return max((path.stat().st_size for path in incoming.glob("*")), default=0)

    code, said = devices.killed("pi", arguments, lambda _: arrived() > BALLAST // 20)
    assert code == 2
    assert said[-1].startswith("edgekit: ssh:pi: ssh lost the connection: ")
    assert "Traceback" not in "\n".join(said)
    devices.tool("start", "pi")
    assert 0 < arrived() < BALLAST
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("verdict: PASS\n")


def test_power_lost_while_the_model_runs(devices: Devices, pi: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("verify", str(tmp_path / "b"), "--target", pi)
    code, said = devices.killed("pi", arguments, lambda line: "replay golden vectors" in line)
    assert code == 2
    assert said[-1].startswith("edgekit: ssh:pi: ssh lost the connection") and "Traceback" not in "\n".join(said)
    devices.tool("start", "pi")
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr


def test_a_phone_that_went_is_no_riddle(devices: Devices) -> None:
    devices.tool("kill", "droid")
    done = devices.edgekit("devices", "show", DROID)
    assert done.returncode == 2 and done.stderr.startswith(f"edgekit: {DROID}: ") and done.stderr.count("\n") == 1
    status = subprocess.run([TOOL, "status"], capture_output=True, text=True, check=False)
    assert status.returncode == 1 and f"droid: off ({DROID}, cortex-a76)" in status.stdout
    devices.tool("start", "droid")
    assert devices.run(*ADB, "echo back").stdout == b"back\n"


def test_down_leaves_nothing_and_up_begins_anew(devices: Devices) -> None:
    networks = {_network(process.pid) for process in host.processes("pi")}
    devices.run(*ADB, "echo kept > /data/local/tmp/kept")
    devices.tool("down")
    try:
        assert not any(host.processes(part) for part in ("pi", "droid", "adb", "exec", host.KEEPER))
        assert "emulation" not in Path("/proc/mounts").read_text()
        assert not (host.BINFMT / host.RULE).exists() and not host.STATE.exists()
        assert networks and networks.isdisjoint(map(_network, psutil.pids()))
        assert devices.tool("down") == ""
        refused = devices.run("true")
        assert refused.returncode == 1 and b"the emulated devices are down: tools/emulated_devices up" in refused.stderr
    finally:
        assert devices.tool("up") == f"{PI}\n{DROID}\n"
    assert devices.run(*ADB, "cat /data/local/tmp/kept").returncode == 1


def test_up_clears_what_a_crash_left(devices: Devices) -> None:
    for part in (host.KEEPER, "adb"):
        for process in host.processes(part):
            process.kill()
    assert devices.tool("up") == f"{PI}\n{DROID}\n"
    assert len(host.processes(host.KEEPER)) == len(host.processes("adb")) == 1
    assert devices.tool("status").count("answers") == 2


def _network(pid: int) -> str:
    """Which network namespace a process is in; empty when it has ended or hides it."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _heavy(directory: Path) -> Path:
    """A bundle that takes a while to travel."""
    bundle = linear_bundle(directory / "light")
    with BundleWriter(directory / "heavy") as writer:
        shutil.copytree(bundle.directory, writer.directory, dirs_exist_ok=True)
        (writer.directory / "ballast.bin").write_bytes(random.Random(2).randbytes(BALLAST))
        return writer.commit(bundle.manifest).directory


def test_one_command_verifies_a_real_model_everywhere(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    bundle, texts = tmp_path / "minilm", tmp_path / "texts.txt"
    texts.write_text("A phone lies on the table.\nThe second sentence is not as short as the first.\n")  # qemu is slow
    done = devices.edgekit("export", str(minilm()), "--recipe", "int8", "--samples", str(texts), "-o", str(bundle))
    assert done.returncode == 0, done.stderr
    done = devices.edgekit("verify", str(bundle), "--target", "local", "--target", pi, "--target", droid)
    assert done.returncode == 0, done.stderr
    head, *rows, verdict = done.stdout.splitlines()
    assert head.split("  ")[0] == "target" and "agrees with local" in head and verdict == "verdict: PASS"
    assert [row.split()[:2] for row in rows] == [[target, "PASS"] for target in ("local", pi, droid)]
    assert all(row.count("PASS") == 3 for row in rows[1:])


def test_no_time_of_an_emulated_device_counts(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("bench", str(tmp_path / "b"), "--prompt-tokens", "4", "--new-tokens", "4")
    done = devices.edgekit(*arguments, "--target", pi, "--target", droid)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for target, reason in ((pi, "its processes are run by qemu"), (droid, "an emulator's system property is set")):
        rows = [i for i, line in enumerate(lines) if line.startswith(f"{target} ")]
        assert [lines[i].split()[2] for i in rows] == ["prefill", "decode"]
        for i in rows:
            assert lines[i + 1].lstrip().startswith(f"INVALID: an emulated device ({reason})")
        assert f"  EMULATED ({reason}): results count, times do not" in lines
    conditions = "[cores 4-7, 47 to 47 °C, ondemand, battery 87 to 87 %, 0.0 mAh]"
    assert any(line.endswith(conditions) for line in lines), "the phone's fast cores, and what it tells of itself"


def test_the_same_tokens_everywhere(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    answers = []
    for target in ("local", pi, droid):
        done = devices.edgekit("generate", str(tmp_path / "b"), "a", "--raw", "-n", "8", "--json", "--target", target)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["tokens"])
    assert len(set(answers[0])) > 1 and answers[1:] == answers[:1] * 2


def test_the_phones_operator_uses_what_the_processor_has(devices: Devices, droid: str, tmp_path: Path) -> None:
    linear_bundle(tmp_path / "b", "t2")
    for isa, used in (("", "neon_dotprod"), ("neon", "neon")):
        chosen = {"EDGEKIT_ISA": isa} if isa else {}
        done = devices.edgekit("verify", str(tmp_path / "b"), "--target", droid, **chosen)
        assert done.returncode == 0, done.stderr
        assert f"TernaryMatMul: native operator ({used})" in done.stdout and done.stdout.endswith("verdict: PASS\n")
    done = devices.edgekit("verify", str(tmp_path / "b"), "--target", droid, EDGEKIT_ISA="neon_i8mm")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        f"edgekit: {droid}: EDGEKIT_ISA=neon_i8mm: this processor cannot run it; it has neon_dotprod neon scalar"
    )


def test_the_phone_dies_while_files_travel(devices: Devices, droid: str, tmp_path: Path) -> None:
    light = linear_bundle(tmp_path / "light")
    for number in range(5):  # a file may be there before the processes are found: then the fault was none
        arguments = ("verify", str(heavy_bundle(tmp_path / f"b{number}", light, number)), "--target", droid)
        code, said = devices.killed("droid", arguments, lambda _: arrived() > LARGE // 100)
        assert code == 2 and said[-1].startswith(f"edgekit: {droid}: ") and "Traceback" not in "\n".join(said)
        if arrived() < LARGE:
            break
        for path in (host.STATE / "droid" / "upper" / INCOMING).glob("*"):
            path.unlink()
        devices.tool("start", "droid")
    devices.tool("start", "droid")
    assert 0 < arrived() < LARGE, "what had come stays, and is gone on with"
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr
    assert arrived() == 0 and done.stdout.endswith("verdict: PASS\n")


def heavy_bundle(target: Path, light: Bundle, seed: int) -> Path:
    """``light`` and LARGE bytes of its own."""
    with BundleWriter(target) as writer:
        shutil.copytree(light.directory, writer.directory, dirs_exist_ok=True)
        (writer.directory / "ballast.bin").write_bytes(np.random.default_rng(seed).bytes(LARGE))
        writer.commit(light.manifest)
    return target


def test_the_phone_dies_while_the_model_runs(devices: Devices, droid: str, tmp_path: Path) -> None:
    decoder_bundle(tmp_path / "b")
    arguments = ("verify", str(tmp_path / "b"), "--target", droid)
    code, said = devices.killed("droid", arguments, lambda line: "replay golden vectors" in line)
    assert code == 2 and said[-1].startswith(f"edgekit: {droid}: ") and "Traceback" not in "\n".join(said)
    devices.tool("start", "droid")
    done = devices.edgekit(*arguments)
    assert done.returncode == 0, done.stderr


def test_older_and_newer_processors(devices: Devices, pi: str, droid: str, tmp_path: Path) -> None:
    linear_bundle(tmp_path / "b", "t2")
    devices.tool("up", "--pi-cpu", "cortex-a72", "--droid-cpu", "max")
    try:
        set_up(devices, PI)
        set_up(devices, DROID)
        done = devices.edgekit("verify", str(tmp_path / "b"), "--target", pi, "--target", droid)
        assert done.returncode == 0, done.stderr
        rows = {row.split()[0]: row for row in done.stdout.splitlines()}
        for target, isa in ((PI, "neon"), (DROID, "neon_i8mm")):
            assert f"native operator ({isa})" in rows[target] and rows[target].split()[1] == "PASS"
    finally:
        devices.tool("up")


def arrived() -> int:
    """Bytes of the largest file that is on its way to the phone."""
    files = (host.STATE / "droid" / "upper" / INCOMING).glob("*")
    return max((path.stat().st_size for path in files), default=0)
