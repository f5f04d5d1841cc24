"""An emulated device's first process: mounts its disk and becomes its server. Started by tools/emulation.py, in namespaces of
its own, with the directory of the emulation as working directory: ``emulation_boot.py BASE NAME UID [VARIABLE=VALUE ...] --
COMMAND...``; COMMAND gets no other variables of the environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 22, 2
AUDIT_ARCH_X86_64, SYS_SOCKET, AF_VSOCK, EAFNOSUPPORT = 0xC000003E, 41, 40, 97
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | EAFNOSUPPORT
NO_VSOCK = (
    (LOAD, 0, 0, 4),  # struct seccomp_data: the architecture
    (JUMP_IF_EQUAL, 0, 5, AUDIT_ARCH_X86_64),
    (LOAD, 0, 0, 0),  # the system call
    (JUMP_IF_EQUAL, 0, 3, SYS_SOCKET),
    (LOAD, 0, 0, 16),  # its first argument
    (JUMP_IF_EQUAL, 0, 1, AF_VSOCK),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
)


def main(base: str, name: str, user: int, variables: list[str], command: list[str]) -> None:
    """Never returns."""
    root = f"{name}/root"
    # Names without the path to here, whose commas and colons would be taken for the options' own.
    layers = f"lowerdir={name}/layer:{base},upperdir={name}/upper,workdir={name}/work"
    _mount("-t", "overlay", "-o", layers, "overlay", root)
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("--bind", f"{name}/cpuinfo", f"{root}/proc/cpuinfo")
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", f"{root}/dev/pts")
    os.chroot(root)
    os.chdir("/")
    _forbid_vsock()
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # which a change of the user takes back
    os.execve(command[0], command, dict(v.split("=", 1) for v in variables))


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


def _forbid_vsock() -> None:
    """adbd listens on the virtual machine's socket too, which no network namespace holds, and asks nobody who they are."""
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_VSOCK)
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(NO_VSOCK), ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header))


def _prctl(option: int, value: int, pointer: ctypes.Array[ctypes.c_char] | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(option, ctypes.c_ulong(value), pointer or ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    _, where, who, uid, *rest = sys.argv
    split = rest.index("--")
    main(where, who, int(uid), rest[:split], rest[split + 1 :])
