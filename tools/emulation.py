"""Two emulated arm64 devices on this machine, for tests and for trying edgekit without hardware: "pi" is reached over ssh,
"droid" over adb. docs/guides/emulated-devices.md

Their programs are run by qemu; the kernel is this machine's. They share a network that nothing else reaches, because adbd
lets everyone in.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools import emulation_host as host
from tools.arm_rootfs import FEATURES
from tools.emulation_host import STATE

ROOT = Path(__file__).resolve().parent.parent
CPUS = STATE / "cpus.json"
SSH_CONFIG = STATE / "ssh" / "config"
SSH_PORT, ADB_SERVER_PORT = 2222, 5037
SERIAL = "127.0.0.1:5555"
TARGETS = {"pi": "ssh:pi", "droid": f"adb:{SERIAL}"}
SECONDS = 900.0  # for a device that runs to answer, however busy this machine is
PROGRAMS = ("qemu-aarch64-static", "mmdebstrap", "adb", "ssh", "ssh-keygen", "unshare", "nsenter", "ip")
PACKAGES = ("native-test-packages.txt", "device-test-packages.txt")


@dataclass(frozen=True)
class Server:
    """What a device runs: the user's id, the variables, QEMU_CPU beside them, and the command."""

    user: int
    variables: tuple[str, ...]
    command: tuple[str, ...]


SERVERS = {
    "pi": Server(0, ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",), ("/usr/sbin/sshd", "-D", "-e")),
    "droid": Server(
        2000,  # Android's "shell"
        ("PATH=/system/bin", "TMPDIR=/data/local/tmp", "ANDROID_ROOT=/system", "ANDROID_DATA=/data"),
        ("/usr/lib/android-sdk/platform-tools/adbd",),
    ),
}


def up(cpus: dict[str, str]) -> None:
    """Both devices, answering; those that already do are kept when their processors are the ones that are wanted."""
    if CPUS.is_file() and _cpus() == cpus and host.inside() and all(map(answers, TARGETS)):
        return
    down()
    from tools import emulation_disks as disks  # takes a while to import

    _say("what the disks are made of; the first time takes a minute")
    disks.base(), disks.wheels(), disks.bionic()
    began = time.monotonic()
    try:
        SSH_CONFIG.parent.mkdir(parents=True)
        disks.write_keys(SSH_CONFIG, SSH_PORT)
        for name, cpu in cpus.items():
            disks.write_device(name, cpu, STATE / name, SSH_CONFIG.parent)
        CPUS.write_text(json.dumps(cpus))
        host.register_qemu()
        host.start_keeper()
        _start_adb_server()
        for name in TARGETS:
            _start(name)
        for name in TARGETS:
            _wait(name)
    except BaseException:
        down()
        raise
    _say(f"both answer after {time.monotonic() - began:.1f} s")


def down() -> None:
    """Ends everything; of the files, build/device-* are kept, which the next ``up`` would only make again."""
    for part in (*TARGETS, "adb", "exec", host.KEEPER):
        host.end(part)
    host.unregister_qemu()
    if STATE.exists():
        shutil.rmtree(STATE)


def start(name: str) -> None:
    """A killed device, with the disk that it had."""
    _inside()
    if not host.processes(name):
        _start(name)
    _wait(name)


def kill(name: str) -> None:
    """Ends all processes of a device at once, as if the power went. Its disk is kept."""
    _inside()
    host.end(name)


def status() -> int:
    """Prints a line a device; 0 when both answer."""
    if not host.inside():
        print("down")
        return 1
    states = {name: _state(name) for name in TARGETS}
    for name, state in states.items():
        print(f"{name}: {state} ({TARGETS[name]}, {_cpus()[name]})")
    return 0 if set(states.values()) == {"answers"} else 1


def execute(command: list[str]) -> None:
    """Becomes a command that reaches the devices; it has no other network."""
    argv = [*_inside(), *command]
    os.execvpe(argv[0], argv, {**host.environment("exec"), **_variables()})


def answers(name: str) -> bool:
    """Whether a device runs a command."""
    if name == "pi":
        return _succeeds("ssh", "-F", str(SSH_CONFIG), "-o", "ConnectTimeout=60", "pi", "true")
    shell = ("adb", "-s", SERIAL, "shell", "-T", "true")
    if _succeeds(*shell):
        return True
    _succeeds("adb", "disconnect", SERIAL)  # a device that was killed stays "offline"
    return _succeeds("adb", "connect", SERIAL) and _succeeds(*shell)


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()
    _check_machine()
    if arguments.do == "exec":
        execute(arguments.command)
    if arguments.do == "status":
        sys.exit(status())
    with _alone():
        if arguments.do == "up":
            up({"pi": arguments.pi_cpu, "droid": arguments.droid_cpu})
            print(*TARGETS.values(), sep="\n")
        elif arguments.do == "down":
            down()
        else:
            {"kill": kill, "start": start}[arguments.do](arguments.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/emulated_devices", description="Two emulated arm64 devices: pi over ssh and droid over adb."
    )
    commands = parser.add_subparsers(dest="do", required=True, metavar="up|down|status|kill|start|exec")
    upwards = commands.add_parser("up", help="start both; prints their targets for edgekit --target")
    for name in TARGETS:
        upwards.add_argument(f"--{name}-cpu", choices=FEATURES, default="cortex-a76")
    commands.add_parser("down", help="end both and forget their disks")
    commands.add_parser("status", help="say which answer; exit code 0 when both do")
    for do, what in (("kill", "end one as if its power went"), ("start", "start one that was killed, with its disk")):
        commands.add_parser(do, help=what).add_argument("device", choices=TARGETS)
    run = commands.add_parser("exec", help="run a command, or a shell, that reaches the devices and no other network")
    run.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def _check_machine() -> None:
    """Ends the program with what is missing here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SystemExit(f"the emulated devices need Linux on x86-64; this is {sys.platform} on {platform.machine()}")
    if os.geteuid() != 0:
        raise SystemExit("the emulated devices need root, for namespaces and mounts: sudo tools/emulated_devices ...")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(" ".join((ROOT / "tools" / name).read_text(encoding="utf-8").split()) for name in PACKAGES)
        raise SystemExit(f"{', '.join(missing)} not installed; as root: apt-get install {packages}")


@contextmanager
def _alone() -> Iterator[None]:
    """One at a time."""
    STATE.parent.mkdir(exist_ok=True)
    with STATE.with_name("emulation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(name: str) -> None:
    server, emulated = SERVERS[name], f"QEMU_CPU={_cpus()[name]}"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    boot = [sys.executable, "-I", str(ROOT / "tools" / "emulation_boot.py"), "../device-root", name, str(server.user)]
    host.start(name, [*_inside(), *namespaces, *boot, *server.variables, emulated, "--", *server.command])


def _start_adb_server() -> None:
    """adb's server, which its clients would start elsewhere. It is not shown this machine's phones."""
    hidden = "[ ! -d /dev/bus/usb ] || mount -t tmpfs none /dev/bus/usb"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{hidden}; exec adb nodaemon server"]
    # It keeps its keys in HOME; without the last it lists the phone a second time, as emulator-5554.
    own = {"HOME": str(STATE), "TMPDIR": str(STATE), "ADB_LOCAL_TRANSPORT_MAX_PORT": "0"}
    host.start("adb", [*_inside(), *command], {**_variables(), **own})


def _wait(name: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not answers(name):
        if not host.processes(name):
            raise SystemExit(f"{name} ended:\n{host.log(name)}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} does not answer after {SECONDS:.0f} s:\n{host.log(name)}{host.log('adb')}")
        time.sleep(0.2)


def _state(name: str) -> str:
    if not host.processes(name):
        return "off"
    return "answers" if answers(name) else "does not answer"


def _succeeds(*command: str) -> bool:
    environment = {**host.environment("exec"), **_variables()}
    try:
        done = subprocess.run(
            [*_inside(), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    # adb connect says only in words that it failed.
    return done.returncode == 0 and not done.stdout.startswith((b"failed", b"unable", b"cannot"))


def _inside() -> list[str]:
    prefix = host.inside()
    if not prefix:
        raise SystemExit("the emulated devices are down: tools/emulated_devices up")
    return prefix


def _cpus() -> dict[str, str]:
    found: dict[str, str] = json.loads(CPUS.read_text())
    return found


def _variables() -> dict[str, str]:
    """What leads edgekit, ssh, adb and pip to the devices and the wheels."""
    return {
        "EDGEKIT_SSH_CONFIG": str(SSH_CONFIG),
        "ANDROID_ADB_SERVER_PORT": str(ADB_SERVER_PORT),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(STATE.with_name("device-wheels")),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
