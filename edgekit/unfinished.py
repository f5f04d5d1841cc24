"""Files and directories in the making: whose they are meanwhile, and what the signals do that end a process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

HAS_LOCKS = sys.platform != "win32"
if HAS_LOCKS:
    import fcntl

STOPPED_BY = ("SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that end the process without Python unwinding; not every system has all."""


class Claim:
    """Holds ``path``, a file or directory, until :meth:`close` or the end of the process, however that comes.

    The system's file lock says so to all processes, also of other containers, where a process's number says nothing. A
    file system without locks leaves ``path`` unclaimed. Raises BlockingIOError when somebody else holds it.
    """

    def __init__(self, path: Path, tries: int = 10) -> None:
        self._handle: int | None = None
        if not HAS_LOCKS:
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            _lock(handle, tries)
            if not _is_at(handle, path):
                raise BlockingIOError  # who held it has moved it away
            self._handle = handle
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            os.close(handle)

    def close(self) -> None:
        """Gives it free; may be called again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int, tries: int) -> None:
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps somebody is only looking
            if not left:
                raise
            time.sleep(0.005)


@contextlib.contextmanager
def unclaimed(path: Path, process: int) -> Iterator[bool]:
    """Whether nobody holds ``path``; nobody can begin to within the block. Where nothing can be locked, whether there is no
    ``process`` of that number."""
    try:
        claim = Claim(path, tries=1)
    except BlockingIOError:
        yield False
        return
    except OSError:
        yield True  # it is gone
        return
    with contextlib.closing(claim):
        yield claim._handle is not None or not psutil.pid_exists(process)


def own_directory(path: Path, tries: int = 100) -> Claim:
    """Makes ``path``, named by :func:`in_the_making`, and holds it.

    Who tidies up may take it for a leftover before it is held: then it is made again.
    """
    for _ in range(tries):
        path.mkdir(exist_ok=True)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return Claim(path)
    raise BlockingIOError(f"{path}: somebody else holds it, or removes it again and again")


def in_the_making(target: Path, kind: str = "partial") -> Path:
    """A hidden sibling of ``target`` that is this thread's own."""
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}-{threading.get_ident()}")


def leftovers(target: Path) -> Iterator[tuple[Path, str]]:
    """What :func:`in_the_making` named, with its kind, and nobody claims any more: its process was killed.

    Each is held while the caller has it, so that what a process is just making is not removed under its hands.
    """
    pattern = re.compile(re.escape(f".{target.name}.") + r"(partial|old)-((\d+)-\d+)")
    for path in sorted(target.parent.iterdir()):
        if leftover := pattern.fullmatch(path.name):
            made = path.with_name(f".{target.name}.partial-{leftover[2]}")
            with unclaimed(made, int(leftover[3])) as is_free:
                if is_free:
                    yield path, leftover[1]


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Within it SIGTERM and its like raise KeyboardInterrupt as Ctrl-C does, so that what is unfinished is cleaned up.

    Signals that are ignored (nohup) stay ignored; in other threads than the main one nothing changes.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in STOPPED_BY if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, _interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
