"""An aarch64 Debian with Python and the real ONNX Runtime wheel, to run programs in under qemu-user: no Pi, no root file
system mounted, no namespaces.

    python -m tools.arm_rootfs        makes build/arm64-root; a second call finds it there, unless what it is made of changed

ONNX Runtime reads /proc/cpuinfo and /sys; qemu shows it the files of the directory given with -L first. Each emulated
processor has such a directory of its own, links to the common one beside plain files that say what that processor is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.made import made

ROOT = Path(__file__).resolve().parent.parent
ROOTFS = ROOT / "build" / "arm64-root"
PACKAGES = "python3-minimal,libpython3-stdlib,libstdc++6,libgcc-s1"
WHEELS = ("onnxruntime==1.29.0", "numpy==2.3.5")  # ONNX Runtime as in the newest Android AAR within reach
PYTHON = "3.11"  # Debian bookworm's
DEBIAN = "bookworm"
DEBIAN_PACKAGES = (ROOT / "tools" / "native-test-packages.txt").read_text(encoding="utf-8").split()
CORES = 4
_ARMV8 = "fp asimd aes pmull sha1 sha2 crc32"
FEATURES = {
    # HWCAP of the processor that qemu's -cpu emulates (qemu 7.2), in Linux' names: a test compares. "max" grows with qemu.
    "cortex-a72": f"{_ARMV8} cpuid",
    "cortex-a76": f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "max": (
        f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm "
        "ilrcpc flagm sb paca pacg dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm "
        "svef64mm svebf16 i8mm bf16 rng bti mte sme"
    ),
}
PARTS = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b", "max": "0x051"}


def make() -> Path:
    """The root file system, made unless it is there. Ends the program with what is missing when it cannot be made."""
    for program in ("mmdebstrap", "qemu-aarch64-static"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed; as root: apt-get install {' '.join(DEBIAN_PACKAGES)}")
    return made(ROOTFS, repr((DEBIAN, PACKAGES, WHEELS, PYTHON, CORES, FEATURES, PARTS)), _fill)


def run(cpu: str, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs the emulated Python with ``argv``; ``cpu`` is one of FEATURES."""
    return _run_in(make(), cpu, argv, environment)


def _run_in(
    root: Path, cpu: str, argv: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    python = root / "usr" / "bin" / f"python{PYTHON}"
    command = ["qemu-aarch64-static", "-cpu", cpu, "-L", str(root / "cpus" / cpu), str(python), *argv]
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root / "wheels"), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1800, env={**inherited, **environment}
    )


def _fill(root: Path) -> None:
    _run("mmdebstrap", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}", DEBIAN, str(root))
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_28", "2_27", "2_17")]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
        f"--python-version={PYTHON}", *platforms, "--target", str(root / "wheels"), *WHEELS,
    )  # fmt: skip
    for cpu in FEATURES:
        _lay_out(root, cpu)
        done = _run_in(root, cpu, ["-c", "import onnxruntime"], {})
        if done.returncode != 0:
            raise SystemExit(f"{root}: onnxruntime cannot be imported on {cpu}:\n{done.stderr[-2000:]}")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed (exit code {done.returncode}):\n{done.stdout[-2000:]}")


def _lay_out(root: Path, cpu: str) -> None:
    """cpus/NAME: what qemu shows of this processor, and links to the rest."""
    base = root / "cpus" / cpu
    describe(base, cpu)
    for name in ("usr", "etc", "lib"):
        (base / name).symlink_to(f"../../{name}")


def describe(base: Path, cpu: str) -> None:
    """What Linux says of the processor, as files below ``base``: proc/cpuinfo and sys/devices/system/cpu.

    ONNX Runtime's cpuinfo crashes when a 64-bit ARM process finds the files of an x86 machine.
    """
    block = (
        "processor\t: {0}\nBogoMIPS\t: 108.00\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x1\nCPU part\t: {2}\nCPU revision\t: 0\n\n"
    )
    _write(base / "proc/cpuinfo", "".join(block.format(i, FEATURES[cpu], PARTS[cpu]) for i in range(CORES)))
    system, every_core = base / "sys/devices/system/cpu", f"0-{CORES - 1}"
    for name in ("possible", "present", "online"):
        _write(system / name, f"{every_core}\n")
    _write(system / "kernel_max", "255\n")
    for core in range(CORES):
        facts = {
            "topology/core_id": core, "topology/physical_package_id": 0, "topology/core_siblings_list": every_core,
            "topology/thread_siblings_list": core, "topology/cluster_cpus_list": every_core,
            "topology/package_cpus_list": every_core,
            "cpufreq/cpuinfo_max_freq": 1800000, "cpufreq/cpuinfo_min_freq": 600000,
        }  # fmt: skip
        for name, value in facts.items():
            _write(system / f"cpu{core}" / name, f"{value}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    print(make())
