"""What the disks of the emulated devices hold: one Debian for arm64 under both, and on top of it what makes each of them
what it is.

``build/device-root``, ``build/device-wheels`` and ``build/device-bionic`` are made once; a device's own files, ``layer``, are
written anew whenever the devices start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices.linux import ONNXRUNTIME, PYTHONS
from tools.arm_rootfs import FEATURES, PARTS
from tools.fetch_ort_android import AAR_SHA256, fetch
from tools.made import made

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
FIXTURES = ROOT / "tools" / "device_fixtures"
BIONIC = ROOT / "tests" / "support" / "bionic"
DEBIAN = "trixie"
PYTHON = (3, 13)  # trixie's
PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "gawk", "grep", "gzip", "libc-bin", "login",
    "passwd", "procps", "sed", "tar", "util-linux", "python3", "openssh-server", "adbd", "openjdk-21-jre-headless",
)  # fmt: skip
DIRECTORIES = ("run/sshd", "data/local", "root/.ssh", "system/bin", "sdcard")
SHELL_USER = 2000
"""Android's id of the user that adb's shell runs as."""
PASSWD = (
    "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
    f"shell:x:{SHELL_USER}:{SHELL_USER}:shell:/data/local/tmp:/system/bin/sh\n"
)
SSHD = """\
Port 2222
ListenAddress 127.0.0.1
HostKey /etc/ssh/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
Subsystem sftp internal-sftp
PidFile none
SetEnv QEMU_CPU={cpu}
"""
# Of what Android's toybox and shell bring, what Debian's packages above have: a script that needs more fails here as there.
COMMANDS = (FIXTURES / "commands.txt").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Core:
    """One core as /proc and /sys show it."""

    part: str  # ARM's number of the design, "0xd0b"
    khz: int
    cluster: int = 0


def cores(name: str, cpu: str) -> tuple[Core, ...]:
    """Four of a kind for the Pi, four small and four big ones for the phone."""
    if name == "pi":
        return (Core(PARTS[cpu], 1_800_000 if cpu == "cortex-a72" else 2_400_000),) * 4
    return (Core("0xd05", 1_800_000),) * 4 + (Core(PARTS[cpu], 2_800_000, 1),) * 4


PI_MODELS = {
    "cortex-a72": "Raspberry Pi 4 Model B Rev 1.5",
    "cortex-a76": "Raspberry Pi 5 Model B Rev 1.0",
    "max": "emulated ARM board",
}


def base() -> Path:
    """The Debian under both devices, about 400 MB; made unless it is there."""
    return made(BUILD / "device-root", repr((DEBIAN, PACKAGES, DIRECTORIES, PASSWD)), _fill_base)


def wheels() -> Path:
    """The wheels of ONNX Runtime and numpy for the Pi: ``edgekit devices setup`` has no network beside the devices."""
    wanted = (f"onnxruntime=={ONNXRUNTIME}", f"numpy=={PYTHONS[PYTHON]}")

    def fill(directory: Path) -> None:
        platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_28", "2_27", "2_17")]
        _run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            f"--python-version={PYTHON[0]}.{PYTHON[1]}", *platforms, "--dest", str(directory), *wanted,
        )  # fmt: skip

    return made(BUILD / "device-wheels", repr((PYTHON, wanted)), fill)


def bionic() -> Path:
    """Android's C library for the phone's Java machine; fetches ONNX Runtime for Android when it is missing."""
    from tests.support.bionic.shim import build

    sources = sorted([BIONIC / "libc.c", BIONIC / "liblog.c", BIONIC / "shim.py"])
    recipe = "".join([AAR_SHA256, *(source.read_text(encoding="utf-8") for source in sources)])

    def fill(directory: Path) -> None:
        fetch()
        build("arm64-v8a", directory)

    return made(BUILD / "device-bionic", recipe, fill)


def write_device(name: str, cpu: str, directory: Path, keys: Path) -> None:
    """An empty disk for ``pi`` or ``droid`` in ``directory``: ``layer`` lies under it, ``cpuinfo`` is for /proc. ``keys`` is
    where ``write_keys`` wrote."""
    for part in ("upper", "work", "root"):
        (directory / part).mkdir(parents=True)
    _write(directory / "cpuinfo", _cpuinfo(name, cpu))
    layer = directory / "layer"
    _write_cpufreq(layer / "sys/devices/system/cpu", cores(name, cpu))
    _write(layer / "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    _write(layer / "sys/class/thermal/thermal_zone0/temp", "47200\n")
    if name == "pi":
        _write_pi(layer, cpu, keys)
    else:
        _write_phone(layer)


def _cpuinfo(name: str, cpu: str) -> str:
    """/proc/cpuinfo, with the features of the processor that qemu emulates."""
    lines = (
        f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {FEATURES[cpu]}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {core.part}\nCPU revision\t: 0\n\n"
        for index, core in enumerate(cores(name, cpu))
    )
    return "".join(lines) + (f"Model\t\t: {PI_MODELS[cpu]}\n" if name == "pi" else "")


def write_keys(config: Path, port: int) -> None:
    """``config``, a file for ``ssh -F`` that leads to the Pi, and beside it new keys of the Pi and of its user."""
    for key in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated", "-f", str(config.with_name(key)))
    host_key = config.with_name("host_key.pub").read_text(encoding="utf-8")
    _write(config.with_name("known_hosts"), f"[127.0.0.1]:{port} {host_key}")
    options = {
        "HostName": "127.0.0.1", "Port": port, "User": "root", "IdentityFile": f'"{config.with_name("user_key")}"',
        "IdentitiesOnly": "yes", "UserKnownHostsFile": f'"{config.with_name("known_hosts")}"',
        "StrictHostKeyChecking": "yes",
    }  # fmt: skip
    _write(config, "Host pi\n" + "".join(f"  {key} {value}\n" for key, value in options.items()))


def _fill_base(root: Path) -> None:
    _run(
        "mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract", f"--include={','.join(PACKAGES)}",
        "--aptopt=APT::Install-Recommends false", DEBIAN, str(root),
    )  # fmt: skip
    # What the packages' own scripts would have done, which would have to be run by qemu.
    for kind in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{kind}.master", root / "etc" / kind)
    with (root / "etc/passwd").open("a", encoding="utf-8") as file:
        file.write(PASSWD)
    with (root / "etc/group").open("a", encoding="utf-8") as file:
        file.write(f"shell:x:{SHELL_USER}:\n")
    (root / "usr/bin/awk").symlink_to("gawk")
    for directory in DIRECTORIES:
        (root / directory).mkdir(parents=True, exist_ok=True)


def _write_pi(layer: Path, cpu: str, keys: Path) -> None:
    _write(layer / "sys/firmware/devicetree/base/model", f"{PI_MODELS[cpu]}\0")
    _write(layer / "etc/ssh/sshd_config", SSHD.format(cpu=cpu))
    for key, target in (("host_key", "etc/ssh/host_key"), ("user_key.pub", "root/.ssh/authorized_keys")):
        _write(layer / target, (keys / key).read_text(encoding="utf-8"))
        (layer / target).chmod(0o600)
    for private in ("root", "root/.ssh"):
        (layer / private).chmod(0o700)


def _write_phone(layer: Path) -> None:
    programs = layer / "system/bin"
    programs.mkdir(parents=True)
    for name in ("getprop", "dumpsys", "app_process", "taskset"):
        shutil.copy(FIXTURES / name, programs / name)
    shutil.copy(FIXTURES / "build.prop", layer / "system/build.prop")
    for name in COMMANDS:
        found = next((p for p in ("bin", "sbin") if os.path.lexists(BUILD / "device-root/usr" / p / name)), None)
        if found:
            (programs / name).symlink_to(f"/usr/{found}/{name}")
    shutil.copytree(bionic(), layer / "system/lib64", ignore=lambda _, names: [n for n in names if n[-3:] != ".so"])
    for name, value in (("capacity", "87"), ("status", "Discharging"), ("temp", "301"), ("charge_counter", "3500000")):
        _write(layer / "sys/class/power_supply/battery" / name, f"{value}\n")
    temporary = layer / "data/local/tmp"
    temporary.mkdir(parents=True)
    temporary.chmod(0o771)
    os.chown(temporary, SHELL_USER, SHELL_USER)


def _write_cpufreq(system: Path, found: tuple[Core, ...]) -> None:
    """/sys/devices/system/cpu: ONNX Runtime crashes when a 64-bit ARM process finds the files of an x86 machine there."""
    everything = f"0-{len(found) - 1}"
    for name in ("possible", "present", "online"):
        _write(system / name, f"{everything}\n")
    _write(system / "kernel_max", "255\n")
    for index, core in enumerate(found):
        cluster = [i for i, other in enumerate(found) if other.cluster == core.cluster]
        near = f"{cluster[0]}-{cluster[-1]}"
        facts = {
            "topology/core_id": index, "topology/physical_package_id": 0, "topology/core_siblings_list": everything,
            "topology/package_cpus_list": everything, "topology/thread_siblings_list": index,
            "topology/cluster_cpus_list": near, "cpufreq/related_cpus": near.replace("-", " "),
            "cpufreq/cpuinfo_max_freq": core.khz, "cpufreq/cpuinfo_min_freq": 600_000,
            "cpufreq/scaling_max_freq": core.khz, "cpufreq/scaling_cur_freq": core.khz,
            "cpufreq/scaling_governor": "ondemand",
        }  # fmt: skip
        for name, value in facts.items():
            _write(system / f"cpu{index}" / name, f"{value}\n")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed (exit code {done.returncode}):\n{done.stdout[-2000:]}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
