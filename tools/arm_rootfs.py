"""An aarch64 Debian with Python and the real ONNX Runtime wheel, to run programs in under qemu-user: no Pi, no root file
system mounted, no namespaces.

    python -m tools.arm_rootfs        makes build/arm64-root; a second call finds it there

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

ROOT = Path(__file__).resolve().parent.parent
ROOTFS = ROOT / "build" / "arm64-root"
PACKAGES = "python3-minimal,libpython3-stdlib,libstdc++6,libgcc-s1"
WHEELS = ("onnxruntime==1.29.0", "numpy==2.3.5")  # ONNX Runtime as in the newest Android AAR within reach
PYTHON = "3.11"  # Debian bookworm's
CORES = 2
FEATURES = {
    # what Linux reports for the processor that qemu's -cpu emulates
    "cortex-a72": "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "max": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp i8mm",
}
PARTS = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b", "max": "0x051"}


def make() -> Path:
    """The root file system, made unless it is there. Ends the program with what is missing when it cannot be made."""
    if ROOTFS.is_dir():
        return ROOTFS
    for program in ("mmdebstrap", "qemu-aarch64-static"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed; as root: apt-get install mmdebstrap qemu-user-static")
    partial = ROOTFS.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _run("mmdebstrap", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}", "bookworm", str(partial))
    (partial / "wheels").mkdir()
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_28", "2_27", "2_17")]
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:",
        f"--python-version={PYTHON}", *platforms, "--target", str(partial / "wheels"), *WHEELS,
    )  # fmt: skip
    for cpu in FEATURES:
        _describe(partial, cpu)
    partial.rename(ROOTFS)
    return ROOTFS


def run(cpu: str, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs the emulated Python with ``argv``; ``cpu`` is one of FEATURES."""
    root = make()
    python = root / "usr" / "bin" / f"python{PYTHON}"
    command = ["qemu-aarch64-static", "-cpu", cpu, "-L", str(root / "cpus" / cpu), str(python), *argv]
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root / "wheels"), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**inherited, **environment}
    )


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed (exit code {done.returncode}):\n{done.stdout[-2000:]}")


def _describe(root: Path, cpu: str) -> None:
    """cpus/NAME: what qemu shows of this processor."""
    base = root / "cpus" / cpu
    base.mkdir(parents=True)
    for name in ("usr", "etc", "lib"):
        (base / name).symlink_to(f"../../{name}")
    block = (
        "processor\t: {0}\nBogoMIPS\t: 108.00\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x1\nCPU part\t: {2}\nCPU revision\t: 0\n\n"
    )
    _write(base / "proc/cpuinfo", "".join(block.format(i, FEATURES[cpu], PARTS[cpu]) for i in range(CORES)))
    system = base / "sys/devices/system/cpu"
    for name in ("possible", "present", "online"):
        _write(system / name, f"0-{CORES - 1}\n")
    _write(system / "kernel_max", "255\n")
    for core in range(CORES):
        place = system / f"cpu{core}"
        topology = {
            "core_id": core, "physical_package_id": 0, "core_siblings_list": f"0-{CORES - 1}",
            "thread_siblings_list": core, "cluster_cpus_list": f"0-{CORES - 1}", "package_cpus_list": f"0-{CORES - 1}",
        }  # fmt: skip
        for name, value in topology.items():
            _write(place / "topology" / name, f"{value}\n")
        for name in ("cpuinfo_max_freq", "cpuinfo_min_freq"):
            _write(place / "cpufreq" / name, "1800000\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    print(make())
