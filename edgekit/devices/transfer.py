"""Files to a device: only what it does not have, from where a broken transfer stopped, proved by sha256.

Everything lies under the connection's directory: ``files`` of it are listed in ``index`` (sha256, bytes, path), what is
on its way is ``incoming/<sha256>``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.reading import sha256
from edgekit.devices.connection import Connection, Done, last_words
from edgekit.errors import RuntimeUnavailable
from edgekit.spec.progress import Progress

BLOCK = 1 << 18
SPARE_BYTES = 64 << 20
"""Room that must be left on the device."""
TRIES = 3


@dataclass(frozen=True)
class Item:
    """A local file and where it belongs, relative to the connection's directory."""

    source: Path
    path: str
    sha256: str
    bytes: int


def item_of(source: Path, path: str) -> Item:
    """A local file, to be pushed to ``path``."""
    return Item(source, path, sha256(source), os.path.getsize(source))


def push(connection: Connection, items: Sequence[Item], progress: Progress = lambda what, share: None) -> int:
    """Makes the device hold ``items``; returns the bytes that had to travel.

    A broken link is tried again and goes on where it stopped. Raises RuntimeUnavailable when the device is out of
    reach, has no room, or what arrived is not what was sent.
    """
    held = _index(connection)
    missing = [i for i in items if held.get(i.path) != (i.sha256, i.bytes)]
    _check_room(connection, sum(i.bytes for i in missing))
    known = {sha: path for path, (sha, _) in held.items()}
    travelling = [i for i in missing if i.sha256 not in known or not _copy(connection, known[i.sha256], i)]
    total = sum(i.bytes for i in travelling)
    sent = 0

    def report(before: int, done: int) -> None:
        progress(f"push to {connection.name}", (before + done) / total)

    for item in travelling:
        _send(connection, item, functools.partial(report, sent))
        sent += item.bytes
    return total


def remove(connection: Connection) -> None:
    """Deletes everything that edgekit has on the device."""
    connection.text(f"rm -rf {shlex.quote(connection.directory)}")


def _copy(connection: Connection, source: str, item: Item) -> bool:
    """Takes the file from another place on the device; False when what lies there is no longer what it was."""
    script = f"mkdir -p incoming && cp {shlex.quote(source)} incoming/{item.sha256} && {_settle(item)}"
    return connection.run(f"{_enter(connection)} && {script}").code == 0


def _enter(connection: Connection) -> str:
    directory = shlex.quote(connection.directory)
    return f"mkdir -p {directory} && cd {directory}"


def _index(connection: Connection) -> dict[str, tuple[str, int]]:
    """sha256 and bytes by path of the files that are there with the size they should have."""
    script = (
        f"{_enter(connection)} && {{ [ ! -f index ] || while read -r sha bytes path; do "
        'if [ "$(stat -c %s "$path" 2>/dev/null)" = "$bytes" ]; then echo "$sha $bytes $path"; fi; done < index; }'
    )
    lines = (line.split(" ", 2) for line in connection.text(script).splitlines())
    return {path: (sha, int(size)) for sha, size, path in lines}


def _check_room(connection: Connection, needed: int) -> None:
    if not needed:
        return
    fields = connection.text(f"{_enter(connection)} && df -Pk .").splitlines()[-1].split()
    free = int(fields[3]) << 10
    if free < needed + SPARE_BYTES:
        raise RuntimeUnavailable(
            f"{connection.name}: {free >> 20} MB free in {connection.directory}, {(needed + SPARE_BYTES) >> 20} MB needed; "
            "`edgekit devices clean` removes what earlier runs left, or make room on the device"
        )


def _send(connection: Connection, item: Item, progress: Callable[[int], None]) -> None:
    """One file, however often the link breaks within ``TRIES``."""
    for attempt in range(1, TRIES + 1):
        reason = _attempt(connection, item, progress)
        if not reason:
            return
        if attempt == TRIES:
            raise RuntimeUnavailable(
                f"{connection.name}: {reason}; {TRIES} tries; what arrived is kept, and the next call goes on from there"
            )
        time.sleep(attempt)


def _attempt(connection: Connection, item: Item, progress: Callable[[int], None]) -> str:
    """Why the file did not arrive; empty when it did."""
    try:
        done = _stream(connection, item, progress)
    except RuntimeUnavailable as error:
        return str(error).removeprefix(f"{connection.name}: ")
    if done.code == 0:
        return ""
    if lost := connection.lost(done):
        return lost
    if done.stdout.startswith(b"sha256 "):
        return f"{item.source.name}: its sha256 is not the one that was sent"
    return f"{item.source.name}: could not be written ({last_words(done)})"


def _stream(connection: Connection, item: Item, progress: Callable[[int], None]) -> Done:
    """Appends to what already arrived, compares the hash and moves the file into its place."""
    size = f"mkdir -p incoming && stat -c %s incoming/{item.sha256} 2>/dev/null"
    at = int(connection.run(f"{_enter(connection)} && {size}").stdout or 0)
    at = at if at <= item.bytes else 0
    script = f"{_enter(connection)} && {'cat >>' if at else 'cat >'} incoming/{item.sha256} && {_settle(item)}"
    pipe = subprocess.PIPE
    process = subprocess.Popen(connection.argv(script), stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    try:
        with item.source.open("rb") as file, contextlib.suppress(BrokenPipeError):
            file.seek(at)
            while block := file.read(BLOCK):
                process.stdin.write(block)
                at += len(block)
                progress(at)
    except BaseException:
        process.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):  # the exit code and the last words say why
            process.stdin.close()
        process.stdin = None  # communicate() would flush it
        stdout, stderr = process.communicate()
    return Done(process.returncode, stdout, stderr.decode("utf-8", "replace"))


def _settle(item: Item) -> str:
    """The script that moves a complete file into its place, or deletes one that is not what was sent."""
    path, folder = shlex.quote(item.path), shlex.quote(str(Path(item.path).parent.as_posix()))
    return (
        f"set -- $(sha256sum incoming/{item.sha256}) && "
        f'if [ "$1" != {item.sha256} ]; then rm -f incoming/{item.sha256}; echo "sha256 $1"; exit 3; fi && '
        f"mkdir -p {folder} && mv incoming/{item.sha256} {path} && "
        f"echo {shlex.quote(f'{item.sha256} {item.bytes} {item.path}')} >> index"
    )
