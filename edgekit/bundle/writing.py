"""A bundle in the making: in a temporary sibling directory, renamed when it is whole."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reading import Bundle, sha256
from edgekit.errors import CheckFailed, UsageError
from edgekit.spec.names import MANIFEST
from edgekit.spec.records import FileInfo
from edgekit.strict import parse_json
from edgekit.unfinished import ended_like_ctrl_c, in_the_making, leftovers, own_directory


class BundleWriter:
    """``with BundleWriter(path) as writer: ...; return writer.commit(manifest)``.

    Until ``commit`` everything is in ``directory``, a hidden sibling of the target that disappears on any exception,
    on Ctrl-C and on SIGTERM. What a killed process left behind is put right by the next export to the same place.
    Raises UsageError when the target cannot be made, or exists (``force`` replaces a bundle, never anything else), and
    CheckFailed when the disk fills up, whoever wrote.
    """

    def __init__(self, target: Path, force: bool = False) -> None:
        self.target = Path(os.path.realpath(target))  # a link stays, what it points to is written
        self.force = force
        self.directory, self._old = in_the_making(self.target), in_the_making(self.target, "old")
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> BundleWriter:
        with self._writable():
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._tidy()
            self._check_target()
            self._cleanup.callback(own_directory(self.directory).close)
        self._cleanup.enter_context(ended_like_ctrl_c())
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._cleanup.close()
        if isinstance(error, Exception) and is_disk_full(error):
            raise CheckFailed(
                f"{self.target.parent}: the disk filled up while the bundle was written; make room or give another -o"
            ) from error

    def draft(self, manifest: Manifest) -> Bundle:
        """The bundle as it stands in the temporary directory, to be run before it is committed; hashes are left out."""
        self._write_manifest(manifest, hashes=False)
        return Bundle.open(self.directory)

    def commit(self, manifest: Manifest) -> Bundle:
        """Adds sizes and sha256 of every file, writes the manifest, moves the directory into place and opens it.

        Raises UsageError when the target was made by someone else meanwhile or cannot be replaced.
        """
        self._write_manifest(manifest, hashes=True)
        return self.place()

    def place(self) -> Bundle:
        """Moves a directory that has its manifest into place as it is, and opens it; raises as :meth:`commit` does.

        What is no valid bundle is not moved: BundleError.
        """
        Bundle.open(self.directory)
        for path in self._files():
            _sync(path)
        with self._writable():
            self._check_target()
            self._move()
        return Bundle.open(self.target)

    def _files(self) -> list[Path]:
        return sorted(p for p in self.directory.rglob("*") if p.is_file())

    def _write_manifest(self, manifest: Manifest, hashes: bool) -> None:
        files = tuple(
            FileInfo(p.relative_to(self.directory).as_posix(), p.stat().st_size, sha256(p) if hashes else "")
            for p in self._files()
            if p != self.directory / MANIFEST
        )
        (self.directory / MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8", newline="\n")

    def _move(self) -> None:
        if os.name == "nt":
            gc.collect()  # Windows moves no directory while a file in it is mapped, and a cycle may still hold a map
        if self.target.exists():
            self.target.rename(self._old)
        try:
            self.directory.rename(self.target)
        except BaseException:
            if self._old.exists() and not self.target.exists():
                self._old.rename(self.target)
            raise
        shutil.rmtree(self._old, ignore_errors=True)
        _sync(self.target.parent)

    def _tidy(self) -> None:
        """Removes what exports that were killed left behind; a bundle they had moved aside is moved back."""
        for path, kind in leftovers(self.target):
            if kind == "old" and not self.target.exists():
                path.rename(self.target)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise UsageError(f"{self.target}: is a file; -o names a directory")
        present = {p.relative_to(self.target).as_posix() for p in self.target.rglob("*") if not p.is_dir()}
        if not present:
            return
        foreign = sorted(present - _listed(self.target))
        if foreign:
            raise UsageError(
                f"{self.target}: holds {foreign[0]}, which is no part of a bundle; "
                "give -o another directory (nothing was changed)"
            )
        if not self.force:
            raise UsageError(f"{self.target}: a bundle is there already; --force replaces it")

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.target}: cannot be made ({error.strerror}); give -o a place that can be written"
            ) from error


def _listed(directory: Path) -> set[str]:
    """The files that a bundle's manifest lists, of whatever version; none when it is no bundle."""
    try:
        manifest = parse_json((directory / MANIFEST).read_bytes())
        return {MANIFEST, *(info["path"] for info in manifest["files"])} if "schema_version" in manifest else set()
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def is_disk_full(error: Exception) -> bool:
    """Also when the error comes out of safetensors, which has the system's words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
    return (
        type(error).__name__ == "SafetensorError" and re.search(r"os error (27|28|112|122)\b", str(error)) is not None
    )


def _sync(path: Path) -> None:
    """Asks the system to put a file or directory on the disk; directories cannot be synced on Windows."""
    try:
        handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
