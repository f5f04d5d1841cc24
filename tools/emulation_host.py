"""What the emulated devices take of this machine: processes, a network namespace, and the kernel's word that qemu runs arm64.

Every process that is started here carries MARK in its environment, by which it is found again, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

STATE = Path(__file__).resolve().parent.parent / "build" / "emulation"
MARK, PART = "EDGEKIT_EMULATION", "EDGEKIT_EMULATION_PART"
KEEPER = "keeper"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_MOUNTED = STATE / "binfmt-mounted"
RULE = f"edgekit-{hashlib.sha256(bytes(STATE)).hexdigest()[:8]}"  # another checkout has another
# ELF, 64 bits, little-endian, a program, ARM. Flags: qemu is opened now and once, and keeps the program's own argv[0].
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
FLAGS = "OPF"


def environment(part: str) -> dict[str, str]:
    """This environment, with the mark of a part of the emulation."""
    return {**os.environ, MARK: str(STATE), PART: part}


def processes(part: str) -> list[psutil.Process]:
    """The processes of a part that run, without those that this one descends from."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in _marked(part) if process.pid not in own]


def end(part: str) -> None:
    """Kills the processes of a part and all that they started."""
    found = processes(part)
    for process in list(found):
        with suppress(psutil.NoSuchProcess):
            found += process.children(recursive=True)
    for process in reversed(found):  # a namespace's first process takes all of it along
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for process in found:
        _wait_for_end(process)


def start(part: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
    """Starts a process that outlives this one, in STATE; what it says goes to the file ``PART.log`` there."""
    with (STATE / f"{part}.log").open("ab") as log:
        subprocess.Popen(
            command, env={**environment(part), **(variables or {})}, cwd=STATE, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def start_keeper() -> None:
    """A process that holds the network namespace, with nothing in it but its own loopback."""
    ready = STATE / "network"
    script = f"ip link set lo up && touch {ready.name} && exec sleep infinity"
    start(KEEPER, ["unshare", "--net", "sh", "-c", script])
    deadline = time.monotonic() + 120
    while not ready.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"no network namespace could be made:\n{log(KEEPER)}")
        time.sleep(0.02)


def inside() -> list[str]:
    """What goes before a command that runs in the devices' network; empty when they are down."""
    keepers = processes(KEEPER)
    return ["nsenter", f"--net=/proc/{keepers[0].pid}/ns/net", "--"] if keepers else []


def log(part: str) -> str:
    """The last that a part said."""
    path = STATE / f"{part}.log"
    return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.is_file() else ""


def register_qemu() -> None:
    """Makes the kernel start arm64 programs with qemu, whatever it was told before; ``unregister_qemu`` takes it back."""
    if not (BINFMT / "register").exists():
        BINFMT_MOUNTED.touch()
        command = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(
                f"the kernel does not start programs with qemu (modprobe binfmt_misc): {done.stderr.strip()}"
            )
    rule = f":{RULE}:M::{MAGIC}:{MASK}:{shutil.which('qemu-aarch64-static')}:{FLAGS}"
    (BINFMT / "register").write_text(rule, encoding="ascii")


def unregister_qemu() -> None:
    """Takes back what ``register_qemu`` did, and nothing else."""
    if (BINFMT / RULE).exists():
        (BINFMT / RULE).write_text("-1", encoding="ascii")
    if BINFMT_MOUNTED.exists() and BINFMT.is_dir() and {p.name for p in BINFMT.iterdir()} <= {"register", "status"}:
        subprocess.run(["umount", str(BINFMT)], check=False, stderr=subprocess.DEVNULL)


def _marked(part: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found = process.environ()
            if found.get(MARK) == str(STATE) and found.get(PART) == part:
                yield process


def _wait_for_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.02)
    raise SystemExit(f"process {process.pid} cannot be ended")
